"""One proposal of a replica: what it waits for before it leaves, and what its end tells."""

from __future__ import annotations

import msgspec
import pytest

from datapath.node.proposal import Proposal, must_hear_first
from datapath.protocol import effects
from election.agreement import Committed, Refused, Unknown
from election.view import (
    AddToInSync,
    Confirm,
    Handover,
    RemoveFromInSync,
    TakeOver,
    View,
    ViewChange,
)
from tests.sim.script import Cluster
from tests.unit.datapath.node.test_membership import view_of

VIEW = msgspec.structs.replace(view_of("a b c", "a b c"), version=7)


def proposal_of(change: ViewChange) -> tuple[Proposal, list[View]]:
    """Return one of a replica that has asked for nothing, and the views that it was given."""
    views: list[View] = []
    replica = Cluster()["b"].replica
    return Proposal(replica, effects.Propose(change, 1), views.append), views


@pytest.mark.parametrize(("change", "hears"), [
    (TakeOver("b"), True), (RemoveFromInSync(("c",)), True),
    (Handover("b"), False), (AddToInSync("c"), False), (Confirm(), False),
])  # fmt: skip
def test_what_leaves_replicas_out_is_proposed_only_once_consensus_was_heard(
    change: ViewChange, hears: bool
) -> None:
    assert must_hear_first(change) is hears
    assert proposal_of(change)[0].step == ("hear" if hears else "propose")


def test_what_the_replica_does_not_want_any_more_is_not_proposed_and_nothing_is_unknown() -> None:
    proposal, views = proposal_of(TakeOver("b"))
    proposal.heard(VIEW, 0.0)
    assert (proposal.step, proposal.answered, views) == ("end", True, [VIEW])


def test_who_hears_nothing_proposes_nothing() -> None:
    proposal, views = proposal_of(TakeOver("b"))
    proposal.unheard()
    assert (proposal.step, proposal.answered, views) == ("end", False, [])


def test_a_take_over_leaves_that_is_wanted_still() -> None:
    cluster = Cluster()
    cluster.hold_proposals()
    cluster["a"].crash()
    cluster.until(lambda: cluster.held(TakeOver))
    (waiting,) = [p for p in cluster.world.agreement.proposals.values() if p.step == "propose"]
    assert isinstance(waiting.effect.change, TakeOver)


@pytest.mark.parametrize("outcome", [Committed(VIEW), Refused(VIEW, "too late")])
def test_an_answer_is_the_end_and_its_view_is_taken(outcome: Committed | Refused) -> None:
    proposal, views = proposal_of(Confirm())
    proposal.proposed(outcome)
    assert (proposal.step, proposal.answered, views) == ("end", True, [VIEW])


def test_an_unknown_outcome_is_read_back_and_not_proposed_again() -> None:
    proposal, views = proposal_of(Confirm())
    proposal.proposed(Unknown("no answer"))
    assert proposal.step == "read_back"
    proposal.heard(VIEW, 0.0)
    assert (proposal.step, proposal.answered, views) == ("end", True, [VIEW])


def test_what_cannot_be_read_back_stays_unknown() -> None:
    proposal, _ = proposal_of(Confirm())
    proposal.proposed(Unknown("no answer"))
    proposal.unheard()
    assert (proposal.step, proposal.answered) == ("end", False)
