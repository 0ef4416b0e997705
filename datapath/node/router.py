"""What becomes of an operation over all its attempts: try here, forward, wait, or answer.

Sans-I/O: `datapath.node.gateway` (and the simulator's forwarders) tell it where the primary is and
how each attempt ended, and do what it says. What a client is told rests on two rules:

- An attempt that may have been carried out is repeated only under an idempotency key: the repeat
  then gets the first answer (D8). See `may_repeat`.
- Once an attempt is uncertain, nothing but the operation's own answer makes it "not applied": the
  refusal of a later attempt says nothing about the earlier one, which may yet arrive (`proves`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeGuard

from datapath.errors import (
    DataPathError,
    NotPrimaryError,
    OperationError,
    OperationUnknownError,
    RejectedError,
)
from datapath.operations import Operation, Result
from datapath.transport.calls import NoAnswerError, NotSentError

AttemptStep = Literal["here", "forward", "wait", "answer"]


def was_not_carried_out(problem: DataPathError) -> bool:
    """Whether an attempt that ended so has changed nothing, never will, and may be made anew."""
    return isinstance(problem, NotPrimaryError | NotSentError)


def may_have_been_carried_out(problem: DataPathError) -> bool:
    """Whether an attempt that ended so may have changed something, or may yet."""
    return isinstance(problem, NoAnswerError | OperationUnknownError)


def may_repeat(operation: Operation, problem: DataPathError) -> bool:
    """Whether an operation may be attempted again after an attempt that ended so.

    What may have been carried out is repeated only under an idempotency key. "timeout",
    "not_enough_copies" and the like are answers of the primary: repeating would not better them.
    """
    if was_not_carried_out(problem):
        return True
    if not operation.idempotency_key or not may_have_been_carried_out(problem):
        return False
    return isinstance(problem, NoAnswerError) or (
        isinstance(problem, OperationUnknownError) and problem.code == "unknown_outcome"
    )


def proves(problem: OperationError) -> bool:
    """Whether an attempt's refusal is the operation's own answer, and so every attempt's.

    The service's refusal is remembered under the key, or would be the same at any later time. That
    there was no room, too few copies or too much to do is told by one attempt of itself only.
    """
    return isinstance(problem, RejectedError)


class Attempts:
    """The attempts of one operation. `deadline_ms` is on the clock that `next` is given.

    Alternate `next` with what it asks for; after "here" or "forward", tell how the attempt ended
    by `failed` (a success needs nothing more).
    """

    def __init__(self, operation: Operation, deadline_ms: float) -> None:
        self._operation = operation
        self.deadline_ms = deadline_ms
        self.is_uncertain = False
        self.last = ""
        self._answer: OperationError | None = None
        self._waits = False

    def next(
        self, now_ms: float, *, primary: str, is_here: bool, stopping: bool = False
    ) -> AttemptStep:
        """Say what to do now. `primary` "" is none known; `is_here`: it is this node.

        After "wait", ask again when something has changed. On "answer" see `answer`.
        """
        if self._answer is not None or stopping or now_ms >= self.deadline_ms:
            return "answer"
        if self._waits or not primary:
            self._waits = False
            return "wait"
        self._waits = True  # whatever comes of the attempt, the next one is not made at once
        return "here" if is_here else "forward"

    def failed(self, problem: DataPathError) -> None:
        """Take how an attempt ended. Raises `problem` if it is no end of an attempt."""
        if not isinstance(problem, OperationError | NotSentError | NoAnswerError):
            raise problem
        self._waits = True
        self.last = str(problem)
        if may_have_been_carried_out(problem):
            self.is_uncertain = True
        if may_repeat(self._operation, problem):
            return
        self._answer = problem if self._is_final(problem) else self._unknown()

    def _is_final(self, problem: DataPathError) -> TypeGuard[OperationError]:
        """Whether an end that is not repeated is what the client is told."""
        if not isinstance(problem, OperationError):
            return False
        return problem.outcome == "unknown" or proves(problem) or not self.is_uncertain

    def answer(
        self, nobody: NotPrimaryError, recall: Callable[[], Result | OperationError | None]
    ) -> Result | OperationError:
        """Return what the client is told.

        `nobody` says that no primary could take it in time. `recall` looks for the first answer
        under the operation's key in what is applied on this node (None: not there, or no store).
        """
        if self._answer is not None:
            error = self._answer
        else:
            error = self._unknown() if self.is_uncertain else nobody
        if not self._operation.idempotency_key or proves(error):
            return error
        known = recall()
        if isinstance(known, Result) or (known is not None and error.outcome == "not_applied"):
            return known
        return error

    def _unknown(self) -> OperationUnknownError:
        return OperationUnknownError(
            "unknown_outcome",
            f"it was sent, but an attempt may have been carried out (last answer: {self.last}). "
            "It may or may not be applied: repeat it under the same Idempotency-Key, or read "
            "before you repeat it",
        )
