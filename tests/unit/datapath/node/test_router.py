"""What a client is told after several attempts: the router, without a network."""

from __future__ import annotations

import pytest

from datapath.errors import (
    DataPathError,
    NotPrimaryError,
    OperationError,
    OperationNotAppliedError,
    OperationUnknownError,
    OverloadedError,
    PrimaryFullError,
    RejectedError,
    SafetyError,
)
from datapath.node.router import Attempts, may_repeat
from datapath.operations import Operation, Result
from datapath.transport.calls import NoAnswerError, NotSentError

KEYED = Operation("put", (b"k", b"v"), "key")
UNKEYED = Operation("put", (b"k", b"v"))
NOBODY = NotPrimaryError("no_primary", "nobody")

NOT_CARRIED_OUT = [NotPrimaryError("no_primary", "x"), NotSentError("x")]
UNCERTAIN = [NoAnswerError("x"), OperationUnknownError("unknown_outcome", "x")]
REFUSALS = [
    OperationNotAppliedError("not_enough_copies", "x"),
    OperationNotAppliedError("too_large", "x"),
    OperationNotAppliedError("service_failed", "x"),
    PrimaryFullError("storage_full", "x"),
    OverloadedError("overloaded", "x"),
]
FINAL_UNKNOWN = [
    OperationUnknownError("timeout", "x"),
    OperationUnknownError("not_enough_copies", "x"),
    OperationUnknownError("idempotency_key_expired", "x"),
]


def told(operation: Operation, *problems: DataPathError) -> str:
    """Return what is told after attempts that ended so, at the deadline if need be."""
    attempts = Attempts(operation, 100)
    for problem in problems:
        step = attempts.next(0, primary="n1", is_here=False)
        if step == "wait":
            step = attempts.next(0, primary="n1", is_here=False)
        assert step == "forward", f"no further attempt, before {problem!r}"
        attempts.failed(problem)
    assert attempts.next(100, primary="n1", is_here=False) == "answer"
    answer = attempts.answer(NOBODY, lambda: None)
    assert isinstance(answer, OperationError)
    return f"{answer.outcome} {answer.code}"


@pytest.mark.parametrize("problem", NOT_CARRIED_OUT, ids=repr)
@pytest.mark.parametrize("operation", [KEYED, UNKEYED], ids=["keyed", "unkeyed"])
def test_what_was_not_carried_out_is_tried_again(
    operation: Operation, problem: DataPathError
) -> None:
    assert told(operation, problem, problem, problem) == "not_applied no_primary"


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda problem: problem.code)
@pytest.mark.parametrize("operation", [KEYED, UNKEYED], ids=["keyed", "unkeyed"])
def test_a_refusal_is_told_as_it_is(
    operation: Operation, refusal: OperationNotAppliedError
) -> None:
    assert told(operation, *NOT_CARRIED_OUT, refusal) == f"not_applied {refusal.code}"


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda problem: problem.code)
@pytest.mark.parametrize("first", UNCERTAIN, ids=repr)
def test_once_an_attempt_is_uncertain_no_refusal_makes_it_not_applied(
    first: DataPathError, refusal: OperationNotAppliedError
) -> None:
    assert told(KEYED, first, *NOT_CARRIED_OUT, refusal) == "unknown unknown_outcome"


@pytest.mark.parametrize("first", UNCERTAIN, ids=repr)
def test_once_an_attempt_is_uncertain_the_deadline_makes_it_unknown(first: DataPathError) -> None:
    assert told(KEYED, first, *NOT_CARRIED_OUT) == "unknown unknown_outcome"


@pytest.mark.parametrize("first", UNCERTAIN, ids=repr)
def test_the_services_own_refusal_is_the_answer_to_all_attempts(first: DataPathError) -> None:
    refusal = RejectedError("precondition_failed", "x")
    assert told(KEYED, first, refusal) == "not_applied precondition_failed"


@pytest.mark.parametrize("first", UNCERTAIN, ids=repr)
def test_an_uncertain_attempt_without_a_key_is_the_last_one(first: DataPathError) -> None:
    assert not may_repeat(UNKEYED, first)
    assert told(UNKEYED, first) == "unknown unknown_outcome"


@pytest.mark.parametrize("last", FINAL_UNKNOWN, ids=lambda problem: problem.code)
@pytest.mark.parametrize("operation", [KEYED, UNKEYED], ids=["keyed", "unkeyed"])
def test_what_the_primary_says_is_unknown_is_not_tried_again(
    operation: Operation, last: OperationUnknownError
) -> None:
    assert told(operation, last) == f"unknown {last.code}"


APPLIED = Result(True, 7, 1, 1, "n2", repeated=True)
FEWER = OperationUnknownError("not_enough_copies", "it stands, on fewer copies")


@pytest.mark.parametrize("end", [*NOT_CARRIED_OUT, *UNCERTAIN, *REFUSALS, *FINAL_UNKNOWN], ids=repr)
def test_what_is_applied_here_is_told_whatever_the_attempts_came_to(end: DataPathError) -> None:
    attempts = Attempts(KEYED, 100)
    attempts.failed(end)
    assert attempts.answer(NOBODY, lambda: APPLIED) is APPLIED
    told = attempts.answer(NOBODY, lambda: FEWER)
    assert isinstance(told, OperationError)
    assert told.outcome == "unknown"


def test_what_is_applied_here_is_not_looked_for_without_a_key() -> None:
    attempts = Attempts(UNKEYED, 100)
    assert attempts.answer(NOBODY, lambda: APPLIED) is NOBODY


@pytest.mark.parametrize("end", [*UNCERTAIN, *FINAL_UNKNOWN], ids=repr)
def test_what_may_be_applied_is_not_called_refused_by_what_stands_under_its_key(
    end: DataPathError,
) -> None:
    """It may be applied and forgotten, and its key used again for something else."""
    attempts = Attempts(KEYED, 100)
    attempts.failed(end)
    refusal = RejectedError("idempotency_key_reused", "another request", for_good=True)
    told = attempts.answer(NOBODY, lambda: refusal)
    assert isinstance(told, OperationUnknownError)


def test_the_services_own_refusal_is_told_whatever_is_applied_under_its_key() -> None:
    """A key that was used for something else is refused, not answered with that one's result."""
    refusal = RejectedError("idempotency_key_reused", "another request", for_good=True)
    attempts = Attempts(KEYED, 100)
    attempts.failed(refusal)
    assert attempts.answer(NOBODY, lambda: APPLIED) is refusal


def test_a_broken_invariant_is_no_end_of_an_attempt() -> None:
    with pytest.raises(SafetyError):
        Attempts(KEYED, 100).failed(SafetyError("x"))


def test_attempts_are_not_made_one_after_the_other_without_a_wait() -> None:
    attempts = Attempts(KEYED, 100)
    assert attempts.next(0, primary="", is_here=False) == "wait"
    assert attempts.next(0, primary="n1", is_here=True) == "here"
    attempts.failed(NOBODY)
    assert attempts.next(0, primary="n2", is_here=False) == "wait"
    assert attempts.next(0, primary="n2", is_here=False) == "forward"
    attempts.failed(NOBODY)
    assert attempts.next(0, primary="n2", is_here=False, stopping=True) == "answer"


@pytest.mark.parametrize(
    ("operation", "problem"),
    [(UNKEYED, NoAnswerError("x")), (KEYED, RejectedError("x", "x")), (UNKEYED, REFUSALS[0])],
    ids=repr,
)
def test_after_a_final_end_there_is_no_further_attempt_though_there_is_time(
    operation: Operation, problem: DataPathError
) -> None:
    """D8: above all a write without a key is not sent again."""
    attempts = Attempts(operation, 100)
    assert attempts.next(0, primary="n1", is_here=False) == "forward"
    attempts.failed(problem)
    for now_ms in (0, 1, 99):
        assert attempts.next(now_ms, primary="n1", is_here=False) == "answer"
