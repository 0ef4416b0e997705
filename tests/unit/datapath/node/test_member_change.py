"""One wanted change of the members: what is looked at and proposed, and what its asker is told."""

from __future__ import annotations

import msgspec
import pytest

from datapath.errors import NotPrimaryError, OperationUnknownError, RejectedError
from datapath.node.member_change import MemberChange, addition, change_of_addresses, removal
from datapath.node.membership import MembershipRefusal
from election.agreement import Committed, Refused, Unknown
from election.identity import Addresses
from election.view import RemoveMember, View, ViewChange
from tests.unit.datapath.node.test_membership import member, view_of

NOBODY = NotPrimaryError("no_primary", "nobody", "")
HARD = MembershipRefusal(code="is_primary", reason="it is the primary", forcible=False)
SOFT = MembershipRefusal(code="unsafe_removal", reason="others are dead", loss="a copy")


def at(version: int, members: str = "a b c") -> View:
    return msgspec.structs.replace(view_of(members, members), version=version)


def test_a_removal_is_judged_under_the_view_that_it_is_proposed_at() -> None:
    change = removal("c", 100.0)
    assert change.next(0, at(1)) == "look"
    change.looked(at(1), [])
    assert change.next(0, at(2)) == "look", "what was seen was seen under another view"
    change.looked(at(2), [])
    assert change.next(0, at(2)) == "propose"
    assert change.change == RemoveMember("c")


def test_after_a_proposal_that_failed_who_lives_is_looked_at_anew() -> None:
    change = removal("c", 100.0)
    change.next(0, at(1))
    change.looked(at(1), [])
    assert change.next(0, at(1)) == "propose"
    change.proposed(Unknown("no answer"))
    assert change.next(0, at(1)) == "look"


def test_a_change_without_a_removal_needs_no_look() -> None:
    change = MemberChange(lambda _: RemoveMember("c"), 100.0)
    assert change.next(0, at(1)) == "propose"


@pytest.mark.parametrize(("found", "force", "ok"), [
    ([], False, True), ([SOFT], False, False), ([SOFT], True, True),
    ([HARD], True, False), ([SOFT, HARD], True, False),
])  # fmt: skip
def test_force_goes_over_what_may_be_forced(
    found: list[MembershipRefusal], force: bool, ok: bool
) -> None:
    change = removal("c", 100.0, force=force)
    change.next(0, at(1))
    change.looked(at(1), found)
    assert change.next(0, at(1)) == ("propose" if ok else "answer")
    assert change.forced is bool(found)
    if not ok:
        assert isinstance(change.answer(NOBODY), RejectedError)


def test_what_is_as_wanted_is_answered_with_its_view() -> None:
    change = removal("c", 100.0)
    gone = msgspec.structs.replace(at(3, "a b"), removed=("c",))
    assert change.next(0, gone) == "answer"
    assert change.answer(NOBODY) == gone


def test_a_success_is_answered_whatever_comes_after_it() -> None:
    change = removal("c", 100.0)
    change.next(0, at(1))
    change.looked(at(1), [])
    change.next(0, at(1))
    change.proposed(Committed(at(2, "a b")))
    assert change.next(1000, at(9)) == "answer"
    assert change.answer(NOBODY) == at(2, "a b")


def test_a_refusal_at_its_own_version_is_final_and_another_is_not() -> None:
    change = MemberChange(lambda _: RemoveMember("c"), 100.0)
    change.next(0, at(1))
    change.proposed(Refused(at(2), "the view has changed"))
    assert change.next(0, at(2)) == "propose"
    change.proposed(Refused(None, "not started"))
    assert change.next(0, at(2)) == "propose"
    change.proposed(Refused(at(2), "it is the last replica"))
    assert change.next(0, at(2)) == "answer"
    problem = change.answer(NOBODY)
    assert isinstance(problem, RejectedError)
    assert (problem.code, problem.detail) == ("refused", "it is the last replica")


def test_without_a_view_it_waits_and_in_the_end_nothing_was_proposed() -> None:
    change = removal("c", 100.0)
    assert change.next(0, None) == "wait"
    assert change.next(100, None) == "answer"
    assert change.answer(NOBODY) is NOBODY


def test_what_was_proposed_and_has_no_outcome_is_unknown() -> None:
    change = MemberChange(lambda _: RemoveMember("c"), 100.0)
    change.next(0, at(1))
    change.proposed(Unknown("no answer"))
    assert change.next(100, at(1)) == "answer"
    assert isinstance(change.answer(NOBODY), OperationUnknownError)


def test_a_refusal_after_a_proposal_without_an_outcome_does_not_call_it_not_applied() -> None:
    change = removal("c", 100.0)
    change.next(0, at(1))
    change.looked(at(1), [])
    change.next(0, at(1))
    change.proposed(Unknown("no answer"))
    assert change.next(0, at(1)) == "look"
    change.looked(at(1), [SOFT])
    assert change.next(0, at(1)) == "answer"
    problem = change.answer(NOBODY)
    assert isinstance(problem, OperationUnknownError)
    assert "others are dead" in problem.detail


def test_who_is_a_member_still_at_a_later_version_was_not_removed() -> None:
    change = removal("c", 100.0)
    change.next(0, at(1))
    change.looked(at(1), [])
    change.next(0, at(1))
    change.proposed(Unknown("no answer"))
    assert change.next(0, at(2)) == "look"
    change.looked(at(2), [SOFT])
    assert isinstance(change.answer(NOBODY), RejectedError)


def test_what_cannot_be_wanted_any_more_may_have_been_done_before() -> None:
    newcomer = member("d")
    change = addition(newcomer, 100.0)
    assert change.next(0, at(1)) == "propose"
    change.proposed(Unknown("no answer"))
    removed = msgspec.structs.replace(at(3), removed=("d",))
    assert change.next(0, removed) == "answer"
    assert isinstance(change.answer(NOBODY), OperationUnknownError)
    refused = addition(newcomer, 100.0)
    refused.next(0, removed)
    assert isinstance(refused.answer(NOBODY), RejectedError)


def test_a_move_that_is_refused_may_have_been_made_and_undone() -> None:
    change = change_of_addresses("c", Addresses(peer="x:1"), 100.0)
    assert change.next(0, at(1)) == "propose"
    change.proposed(Unknown("no answer"))
    assert change.next(0, at(3)) == "propose"
    change.proposed(Refused(at(3), "somebody else has that address"))
    assert isinstance(change.answer(NOBODY), OperationUnknownError)


def test_a_node_that_stops_answers_at_once() -> None:
    change = removal("c", 100.0)
    assert change.next(0, at(1), stopping=True) == "answer"
    assert change.answer(NOBODY) is NOBODY


def test_what_cannot_be_wanted_of_a_view_is_refused() -> None:
    def make(_: View) -> ViewChange | None:
        raise RejectedError("unknown_node", "there is no such node")

    change = MemberChange(make, 100.0)
    assert change.next(0, at(1)) == "answer"
    assert isinstance(change.answer(NOBODY), RejectedError)
