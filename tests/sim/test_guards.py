"""Taking out each condition of the protocol: that it finds them, breaks them, and hears of it."""

from __future__ import annotations

import importlib

import pytest

from tests.sim.guards import MODULES, NOTHING, Break, _function, breaks, explained, verdicts

EXAMPLE = (
    "datapath.protocol.state:ReplicaState.truncate: from_index <= self.commit_index -> false",
    "datapath.protocol.log_index:LogIndex.trim: epoch is None -> true",
)


def _every_break() -> list[Break]:
    return [broken for module in MODULES for broken in breaks(module)]


def test_each_break_has_a_name_of_its_own() -> None:
    keys = [broken.key for broken in _every_break()]
    assert len(keys) > 400
    assert len(set(keys)) == len(keys)


def test_each_break_lies_in_a_function_that_can_be_replaced() -> None:
    for module, name in {(broken.module, broken.function) for broken in _every_break()}:
        assert _function(importlib.import_module(module), name).__qualname__ == name


def test_conditions_are_forced_and_their_operands_left_out() -> None:
    changes = {
        broken.change
        for broken in breaks("datapath.node.read_index")
        if broken.function == "ReadIndex.ask"
    }
    assert changes == {"true", "false", "without self._asking", "without not self.waiting"}


def test_each_explanation_says_what_the_break_costs() -> None:
    assert explained()  # it raises where one does not


def test_each_explanation_is_of_a_condition_that_is_there() -> None:
    assert not explained().keys() - {broken.key for broken in _every_break()}


@pytest.mark.long
@pytest.mark.slow
def test_a_break_is_noticed_and_nothing_is_not() -> None:
    chosen = [broken for broken in _every_break() if broken.key in EXAMPLE]
    assert len(chosen) == len(EXAMPLE)
    for broken, verdict in verdicts([*chosen, NOTHING], 10, 1):
        assert bool(verdict.caught_by) == (broken != NOTHING), verdict
