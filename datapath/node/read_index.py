"""Reads on a backup: which answer of the primary a read may use, and how old what is applied is.

A linearizable read on a backup asks the primary for its commit index, and waits until that is
applied here (Raft's read index). Many reads share one question. Pure: times are given, ms of the
boot clock, and a read is whatever the caller waits with.
"""

from __future__ import annotations

from typing import Generic, TypeVar

_Read = TypeVar("_Read")

QUESTION_TIMEOUT_MS = 1000.0
"""How long an answer is awaited before the question is asked anew."""


class ReadIndex(Generic[_Read]):
    """The questions of one node to its primary: one is under way at a time.

    `join` a read; while `ask` returns a number, put the question to the primary, and give its
    outcome to `answered` or `unanswered` with that number. Call `expire` at `due_ms`.
    """

    def __init__(self) -> None:
        self.waiting: list[tuple[float, _Read]] = []  # for a question that has not been asked yet
        self._asking: list[tuple[float, _Read]] = []  # those whose question is under way
        self._answered: list[tuple[int, float, list[tuple[float, _Read]]]] = []  # not applied yet
        self._number = 0
        self._asked_ms = 0.0
        self._fresh_ms = float("-inf")

    def join(self, read: _Read, deadline_ms: float) -> None:
        """Let a read wait for the next question, and until what is answered is applied.

        A read uses only an answer to a question that is asked after the read has begun: what was
        asked before may have been answered before a write that the reader knows of.
        """
        self.waiting.append((deadline_ms, read))

    def ask(self, now_ms: float) -> int:
        """Begin a question for all reads that wait; 0: none waits, or one is under way."""
        if self._asking or not self.waiting:
            return 0
        self._asking, self.waiting = self.waiting, []
        self._asked_ms = now_ms
        self._number += 1
        return self._number

    @property
    def is_asking(self) -> bool:
        """Whether a question is under way."""
        return bool(self._asking)

    @property
    def is_behind(self) -> bool:
        """Whether reads have an answer that is not applied yet."""
        return bool(self._answered)

    def is_under_way(self, number: int) -> bool:
        """Whether an answer to that question is awaited: to one that was given up it is not.

        A late answer says nothing to the reads of a later question.
        """
        return number == self._number and bool(self._asking)

    def answered(self, number: int, index: int) -> bool:
        """Let the reads of a question wait until `index` is applied; False: none does any more."""
        if not self.is_under_way(number):
            return False
        self._answered.append((index, self._asked_ms, self._asking))
        self._asking = []
        return True

    def unanswered(self, number: int) -> list[_Read]:
        """Return the reads of a question that will have no answer."""
        if not self.is_under_way(number):
            return []
        reads, self._asking = self._asking, []
        return [read for _, read in reads]

    def applied(self, index: int) -> list[_Read]:
        """Return the reads that may be answered from here, where everything up to `index` is."""
        reads: list[_Read] = []
        behind = []
        for answer in self._answered:
            needed, asked_ms, waited = answer
            if needed > index:
                behind.append(answer)
                continue
            # What is applied was complete when the question was asked. By the time of the answer
            # the primary may have committed more.
            self._fresh_ms = max(self._fresh_ms, asked_ms)
            reads += [read for _, read in waited]
        self._answered = behind
        return reads

    def expire(self, now_ms: float) -> list[_Read]:
        """Return the reads whose time is up, and give up a question that nobody needs any more.

        One without an answer for too long is asked anew, for the reads that have time left.
        """
        if self._asking and now_ms >= self._asked_ms + QUESTION_TIMEOUT_MS:
            self.waiting, self._asking = self._asking + self.waiting, []
        late: list[_Read] = []
        for reads in self._stages():
            late += [read for deadline_ms, read in reads if deadline_ms <= now_ms]
            reads[:] = [waited for waited in reads if waited[0] > now_ms]
        self._answered = [answer for answer in self._answered if answer[2]]
        return late

    @property
    def due_ms(self) -> float:
        """When `expire` is to be called next; infinite if no read waits."""
        deadlines = [deadline_ms for reads in self._stages() for deadline_ms, _ in reads]
        if self._asking:
            deadlines.append(self._asked_ms + QUESTION_TIMEOUT_MS)
        return min(deadlines, default=float("inf"))

    def leave(self) -> list[_Read]:
        """Return all reads that wait: there will be no answer."""
        reads = [read for stage in self._stages() for _, read in stage]
        self._asking, self.waiting, self._answered = [], [], []
        return reads

    def _stages(self) -> list[list[tuple[float, _Read]]]:
        return [*(reads for _, _, reads in self._answered), self._asking, self.waiting]

    def age_ms(self, now_ms: float) -> float:
        """How old what is applied here is at the most; infinite before the first answer."""
        return now_ms - self._fresh_ms
