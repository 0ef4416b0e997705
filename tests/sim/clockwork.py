"""The simulator's time: one queue of events, and the random numbers that a run is made of."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import Any

TRANSCRIPT_EVENTS = 200


class ViolationError(AssertionError):
    """A rule of the design is broken in a run; the message says which, and by whom."""


class Clockwork:
    """True time in ms, the event queue, the run's random numbers, what happened, and how often."""

    def __init__(
        self, seed: int, *, trace: bool = False, kept_lines: int = TRANSCRIPT_EVENTS
    ) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.now = 0.0
        self.seen: Counter[str] = Counter()
        self.tracing = trace
        self.transcript: deque[str] = deque(maxlen=kept_lines)
        self.events = 0
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = count()

    def after(self, delay_ms: float, action: Callable[..., None], *args: Any) -> None:
        """Do something after a delay."""
        heappush(self._queue, (self.now + delay_ms, next(self._number), action, args))

    def at(self, time_ms: float, action: Callable[..., None], *args: Any) -> None:
        """Do something at a time, which is not over."""
        heappush(self._queue, (time_ms, next(self._number), action, args))

    def run_until(self, until_ms: float) -> None:
        """Handle all events up to that time."""
        queue, handled = self._queue, 0
        while queue and queue[0][0] <= until_ms:
            self.now, _, action, args = heappop(queue)
            handled += 1
            action(*args)
        self.now = max(self.now, until_ms)
        self.events += handled

    def note(self, text: str) -> None:
        """Put a line into the transcript; callers test `tracing` first, to save the formatting."""
        self.transcript.append(f"{self.now:10.3f}  {text}")

    def chance(self, probability: float) -> bool:
        """Draw yes or no."""
        return self.random.random() < probability

    def between(self, low: float, high: float) -> float:
        """Draw a number."""
        return low + (high - low) * self.random.random()
