"""Timers of a user's service: when one is due, and that it runs once an interval (rule X3).

Time is cut into intervals of equal length, counted from the Unix epoch in UTC. A timer's operation
asks the primary's wall clock for the number of the present interval, and runs only if that is
higher than the number it last ran in, which stands in the service's own state and changes in the
same delta. So whatever clocks do, and whoever is primary, no interval has two runs in the log: a
clock that is behind waits, one that is ahead uses up the intervals it takes for the present.

Pure: times in, decisions out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

MethodT = TypeVar("MethodT", bound=Callable[..., Any])

MIN_INTERVAL_MS = 100
MAX_INTERVAL_MS = 366 * 86_400_000
_DAY_MS = 86_400_000
_MARK = "__onecopy_timer__"
_TIME_OF_DAY = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])(?::([0-5][0-9]))?")


class Timer(msgspec.Struct, frozen=True):
    """Runs once in each interval of `interval_ms`; those begin `offset_ms` after whole ones."""

    interval_ms: int
    offset_ms: int = 0

    def interval_at(self, now_ms: float) -> int:
        """Return the number of the interval that a time (ms since the Unix epoch) is in."""
        return int(now_ms - self.offset_ms) // self.interval_ms


def may_fire(interval: int, last: int | None) -> bool:
    """Whether a timer may run in `interval`, after it last ran in `last` (X3).

    None: it is new, and waits for its first interval to begin.
    """
    return last is not None and interval > last


def every(
    *, seconds: float = 0, minutes: float = 0, hours: float = 0
) -> Callable[[MethodT], MethodT]:
    """Mark a method that runs once in each such interval, on the primary: `@every(minutes=5)`.

    Intervals are counted from the Unix epoch: `hours=1` is each full hour of UTC. One that passed
    while there was no primary is left out. Raises ValueError for less than 0.1 s or over a year.
    """
    interval_ms = round(1000 * (seconds + 60 * minutes + 3600 * hours))
    if not MIN_INTERVAL_MS <= interval_ms <= MAX_INTERVAL_MS:
        raise ValueError("every() takes from 0.1 seconds to 366 days, say @every(seconds=30)")
    return _mark(Timer(interval_ms))


def at(time_of_day: str) -> Callable[[MethodT], MethodT]:
    """Mark a method that runs once a day, at a time of UTC: `@at("03:30")`.

    Where there is no primary then, it runs as soon as there is one. Raises ValueError.
    """
    found = _TIME_OF_DAY.fullmatch(time_of_day)
    if found is None:
        raise ValueError(f'at() takes a time of day in UTC like "03:30", not {time_of_day!r}')
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return _mark(Timer(_DAY_MS, 1000 * (3600 * hours + 60 * minutes + seconds)))


def timer_of(function: object) -> Timer | None:
    """Return the timer that a method was marked with."""
    found = getattr(function, _MARK, None)
    return found if isinstance(found, Timer) else None


def _mark(timer: Timer) -> Callable[[MethodT], MethodT]:
    def mark(method: MethodT) -> MethodT:
        setattr(method, _MARK, timer)
        return method

    return mark
