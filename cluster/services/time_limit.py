"""A bound on how long a user's code may hold the event loop (rule X2).

Python code of the main thread is interrupted by a signal: an endless loop, `time.sleep` and
blocking calls on sockets end with `TimeUpError`, again and again until the method is left, so that
one which catches everything ends too. What cannot be interrupted: code in C that does not return to
the interpreter (it holds the whole node; the others take over), and anything in a thread other than
the main one, where Python has no signals: there no bound is kept.
"""

from __future__ import annotations

import signal
import threading
import time
from _signal import getsignal  # type: ignore[import-not-found]  # signal's own costs ten times
from collections.abc import Generator
from types import FrameType, TracebackType
from typing import Any, Self

_AGAIN_S = 0.01
"""How soon it is raised again where the code went on."""
_SOON_S = 1e-6
_MAIN = threading.main_thread()


class TimeUpError(BaseException):
    """The code held the event loop for too long. No Exception: `except Exception` lets it by."""


class TimeLimit:
    """A context: what runs inside is interrupted after `seconds`. Not to be nested.

    `masked`: it must not be interrupted just now; asking `check` after that raises.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.masked = False
        self.armed = False
        self.late = False
        self._began = 0.0
        self._timer = (0.0, 0.0)

    def __enter__(self) -> Self:
        self.late = False
        if threading.get_ident() == _MAIN.ident:
            if getsignal(signal.SIGALRM) is not _on_alarm:
                _take_over()
            _Alarm.limit = self
            self._began = time.monotonic()
            self._timer = signal.setitimer(signal.ITIMER_REAL, self.seconds, _AGAIN_S)
            self.armed = True  # last: before that nothing is raised, and nothing is after it
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self.armed:
            return
        self.armed = False  # first: from here on nothing is raised
        signal.setitimer(signal.ITIMER_REAL, 0)
        _Alarm.limit = None
        left_s, interval_s = self._timer
        if left_s:  # whoever else uses this timer (a test's time-out, say) has it back
            left_s = max(left_s - (time.monotonic() - self._began), _SOON_S)
            signal.setitimer(signal.ITIMER_REAL, left_s, interval_s)

    def time_is_up(self) -> None:
        """Interrupt what runs inside, or remember to."""
        if not self.armed:
            return
        self.late = True
        if not self.masked:
            raise TimeUpError

    def check(self) -> None:
        """Raise TimeUpError if the time was up while it was masked."""
        if self.late and self.armed:
            raise TimeUpError


class _Alarm:
    """What the signal is for: a limit, or whatever had it before."""

    limit: TimeLimit | None = None
    previous: Any = None


def _take_over() -> None:
    _Alarm.previous = getsignal(signal.SIGALRM)
    signal.signal(signal.SIGALRM, _on_alarm)


_OWN_CODE = (TimeLimit.__enter__.__code__, TimeLimit.__exit__.__code__)


def _on_alarm(number: int, frame: FrameType | None) -> None:
    if _Alarm.limit is not None:
        # Raised amid these two it would leave the timer on for good; it comes again if need be.
        if frame is None or frame.f_code not in _OWN_CODE:
            _Alarm.limit.time_is_up()
    elif callable(_Alarm.previous):
        _Alarm.previous(number, frame)


class Stepped:
    """Awaits a coroutine, each step of which has a time limit of its own."""

    def __init__(self, coroutine: Any, limit: TimeLimit) -> None:
        self._coroutine = coroutine
        self._limit = limit

    def __await__(self) -> Generator[Any, Any, Any]:
        send, throw = self._coroutine.send, self._coroutine.throw
        step, value = send, None
        while True:
            try:
                with self._limit:
                    awaited = step(value)
            except StopIteration as end:
                return end.value
            try:
                step, value = send, (yield awaited)
            except BaseException as error:  # noqa: BLE001 -- it goes on into the coroutine
                step, value = throw, error
