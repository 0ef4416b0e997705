"""Mutants of what hosts users' services (X1 to X4), and of `async` operations beside others."""

from __future__ import annotations

from unittest.mock import patch

from cluster.services import scoped
from cluster.services.hosting import Host
from cluster.services.scoped import Scoped, ScopedReader
from cluster.services.signatures import ServiceMethod
from cluster.services.time_limit import TimeLimit
from datapath.execution.executor import Executor
from datapath.execution.pipeline import Pipeline
from tests.sim.mutant import Mutant, Patch

HOSTING = "tests/unit/cluster/services/test_hosting.py::"
LOADED = "tests/unit/cluster/node/test_services.py::"
TIMERS = "tests/unit/cluster/services/test_timers.py::"
CONCURRENCY = "tests/unit/datapath/execution/test_concurrency.py::"
MISBEHAVES = HOSTING + "test_a_method_that_misbehaves_leaves_nothing_behind_and_stops_nobody"


def _x1_ranges_have_no_end() -> list[Patch]:
    def bounds(
        reader: ScopedReader, start: bytes, end: bytes | None, _limit: int
    ) -> tuple[bytes, bytes | None]:
        return reader._prefix + start, end

    return [patch.object(ScopedReader, "_bounds", bounds)]


def _x1_keys_have_no_prefix() -> list[Patch]:
    return [patch.object(ScopedReader, "_full", lambda _, key: key)]


def _x1_all_keys_can_be_read() -> list[Patch]:
    return [patch("cluster.services.scoped.may_read", lambda *_: True)]


def _x1_what_may_be_read_may_be_written() -> list[Patch]:
    return [patch("cluster.services.scoped.may_write", scoped.may_read)]


def _x1_what_may_be_written_may_be_read() -> list[Patch]:
    return [patch("cluster.services.scoped.may_read", scoped.may_write)]


def _x1_a_service_that_awaits_sees_what_others_write() -> list[Patch]:
    return [patch("cluster.node.settings._check_rights", lambda *_: None)]


def _x2_writes_have_no_bound() -> list[Patch]:
    return [patch("cluster.services.scoped.fits", lambda *_: True)]


def _x2_a_write_too_many_is_forgiven() -> list[Patch]:
    def result(host: Host, method: ServiceMethod, value: object, view: Scoped) -> bytes:
        view.bounds.failure = None
        return real(host, method, value, view)

    real = Host._result
    return [patch.object(Host, "_result", result)]


def _x2_code_may_hold_the_node() -> list[Patch]:
    return [patch.object(TimeLimit, "__enter__", lambda limit: limit)]


def _x2_a_transaction_stays_open() -> list[Patch]:
    return [patch.object(ScopedReader, "close", lambda _: None)]


def _x2_what_was_given_up_counts() -> list[Patch]:
    return [patch.object(Pipeline, "_give_up_async", lambda *_: None)]


def _x2_a_service_runs_beside_itself() -> list[Patch]:
    return [patch("datapath.execution.concurrency.must_wait", lambda *_: False)]


def _x2_everybody_waits_for_a_service() -> list[Patch]:
    return [patch("datapath.execution.concurrency.must_wait", lambda _, executing: bool(executing))]


def _x3_a_timer_runs_whenever_it_is_asked_to() -> list[Patch]:
    return [patch("cluster.services.hosting.may_fire", lambda _, last: last is not None)]


def _x3_a_clock_that_is_behind_runs_it_again() -> list[Patch]:
    def fire(interval: int, last: int | None) -> bool:
        return last is not None and interval != last

    return [patch("cluster.services.hosting.may_fire", fire)]


def _x4_any_code_serves() -> list[Patch]:
    return [patch("cluster.services.hosting.may_serve", lambda *_: True)]


def _x4_it_migrates_at_each_start() -> list[Patch]:
    return [patch("cluster.services.hosting.must_migrate", lambda *_: True)]


def _x4_earlier_code_takes_it_back() -> list[Patch]:
    return [patch("cluster.services.hosting.is_outdated", lambda *_: False)]


def _d8_what_is_executed_does_not_count_as_waiting() -> list[Patch]:
    return [patch.object(Pipeline, "_count", lambda *_: None)]


def _d8_a_key_that_was_taken_meanwhile_is_taken_twice() -> list[Patch]:
    begin = Executor.begin_async

    async def begin_async(executor: Executor, operation: object) -> object:
        finish = await begin(executor, operation)  # type: ignore[arg-type]

        def blind(next_index: int) -> object:
            with patch.object(Executor, "_first_answer_held", lambda *_: None):
                return finish(next_index)

        return blind

    return [patch.object(Executor, "begin_async", begin_async)]


HOSTING_MUTANTS = (
    Mutant(
        "X1", "a range has no end of its own", _x1_ranges_have_no_end,
        unit=HOSTING + "test_a_service_sees_its_own_keys_alone",
    ),
    Mutant(
        "X1", "keys are written as they are", _x1_keys_have_no_prefix,
        unit=HOSTING + "test_a_service_sees_its_own_keys_alone",
    ),
    Mutant(
        "X1", "all keys can be read", _x1_all_keys_can_be_read,
        unit=f"{MISBEHAVES}[escape-service_failed-a service sees its own keys alone]",
    ),
    Mutant(
        "X1", "what may be read may be written", _x1_what_may_be_read_may_be_written,
        unit=HOSTING + "test_rights_to_read_and_to_write_are_separate",
    ),
    Mutant(
        "X1", "what may be written may be read", _x1_what_may_be_written_may_be_read,
        unit=HOSTING + "test_rights_to_read_and_to_write_are_separate",
    ),
    Mutant(
        "X1", "a service that awaits sees what others write",
        _x1_a_service_that_awaits_sees_what_others_write,
        unit=LOADED + "test_a_service_that_awaits_shares_no_keys_with_one_that_writes",
    ),
    Mutant(
        "X2", "writes have no bound", _x2_writes_have_no_bound,
        unit=f"{MISBEHAVES}[write_much-too_large-shop.misbehave writes too much]",
    ),
    Mutant(
        "X2", "a write too many that was caught is forgiven", _x2_a_write_too_many_is_forgiven,
        unit=f"{MISBEHAVES}[write_much_quietly-too_large-shop.misbehave writes too much]",
    ),
    Mutant(
        "X2", "code may hold the node", _x2_code_may_hold_the_node,
        unit="tests/unit/cluster/services/test_time_limit.py::test_what_blocks_is_interrupted",
    ),
    Mutant(
        "X2", "a transaction can be used after its operation", _x2_a_transaction_stays_open,
        unit=HOSTING + "test_a_transaction_cannot_be_used_after_its_operation",
    ),
    Mutant(
        "X2", "what takes too long is neither cancelled nor dropped", _x2_what_was_given_up_counts,
        unit=CONCURRENCY
        + "test_what_takes_longer_than_its_client_waits_is_cancelled_and_has_no_effect",
    ),
    Mutant(
        "X2", "an async operation runs beside others of its service",
        _x2_a_service_runs_beside_itself,
        unit=CONCURRENCY + "test_other_services_go_on_and_its_own_waits",
    ),
    Mutant(
        "X2", "everybody waits for an async operation", _x2_everybody_waits_for_a_service,
        unit=CONCURRENCY + "test_other_services_go_on_and_its_own_waits",
    ),
    Mutant(
        "X3", "a timer runs whenever it is asked to", _x3_a_timer_runs_whenever_it_is_asked_to,
        unit=HOSTING
        + "test_a_timer_runs_once_in_each_interval_over_failovers_and_clocks_that_differ",
    ),
    Mutant(
        "X3", "a clock that is behind runs a timer again",
        _x3_a_clock_that_is_behind_runs_it_again,
        unit=HOSTING
        + "test_a_timer_runs_once_in_each_interval_over_failovers_and_clocks_that_differ",
    ),
    Mutant(
        "X4", "any code serves", _x4_any_code_serves,
        unit=HOSTING + "test_a_service_that_has_not_started_does_not_serve",
    ),
    Mutant(
        "X4", "what is stored is migrated at each start", _x4_it_migrates_at_each_start,
        unit=HOSTING + "test_what_is_stored_is_migrated_once_before_it_serves",
    ),
    Mutant(
        "X4", "earlier code takes a state back", _x4_earlier_code_takes_it_back,
        unit=HOSTING + "test_earlier_code_does_not_touch_what_was_migrated",
    ),
    Mutant(
        "D8", "a key does not count while its operation is executed",
        _d8_what_is_executed_does_not_count_as_waiting,
        unit=CONCURRENCY
        + "test_a_repeat_that_is_refused_while_the_first_is_executed_is_not_told_not_applied",
    ),
    Mutant(
        "D8", "a key that another service has used meanwhile is used again",
        _d8_a_key_that_was_taken_meanwhile_is_taken_twice,
        unit=CONCURRENCY
        + "test_a_key_that_another_service_has_used_meanwhile_is_refused_and_nothing_kept",
    ),
)  # fmt: skip
