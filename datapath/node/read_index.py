"""Reads on a backup: which answer of the primary a read may use, and how old what is applied is.

A linearizable read on a backup asks the primary for its commit index, and waits until that is
applied here (Raft's read index). Many reads share one question. Pure: times are given, ms of the
boot clock, and a read is whatever the caller waits with.
"""

from __future__ import annotations

from typing import Generic, TypeVar

_Read = TypeVar("_Read")


class ReadIndex(Generic[_Read]):
    """The questions of one node to its primary: one is under way at a time.

    `join` a read; while `ask` returns True, put the question to the primary, and give its answer
    to the reads that `settle` returns.
    """

    def __init__(self) -> None:
        self.waiting: list[_Read] = []  # for a question that has not been asked yet
        self._asking: list[_Read] = []  # those whose question is under way
        self._asked_ms = 0.0
        self._fresh_ms = float("-inf")

    def join(self, read: _Read) -> None:
        """Let a read wait for the next question.

        A read uses only an answer to a question that is asked after the read has begun: what was
        asked before may have been answered before a write that the reader knows of.
        """
        self.waiting.append(read)

    def ask(self, now_ms: float) -> bool:
        """Begin a question for all reads that wait; False: none waits, or one is under way."""
        if self._asking or not self.waiting:
            return False
        self._asking, self.waiting = self.waiting, []
        self._asked_ms = now_ms
        return True

    def settle(self) -> tuple[list[_Read], float]:
        """Return the reads that the question under way was asked for, and when it was asked."""
        reads, self._asking = self._asking, []
        return reads, self._asked_ms

    def leave(self) -> list[_Read]:
        """Return all reads that wait for any question: there will be no answer."""
        reads = self._asking + self.waiting
        self._asking, self.waiting = [], []
        return reads

    def applied(self, asked_ms: float) -> None:
        """Note that the answer to a question asked at `asked_ms` is applied here.

        What is applied was complete when the question was asked. By the time of the answer the
        primary may have committed more.
        """
        self._fresh_ms = max(self._fresh_ms, asked_ms)

    def age_ms(self, now_ms: float) -> float:
        """How old what is applied here is at the most; infinite before the first answer."""
        return now_ms - self._fresh_ms
