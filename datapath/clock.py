"""The one clock of the data path: it never goes back, and counts through suspend (D4)."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


clock_s: Callable[[], float] = functools.partial(time.clock_gettime, _CLOCK)
"""Seconds since an arbitrary moment; never compared between machines."""


def clock_ms() -> float:
    """Milliseconds since an arbitrary moment; never compared between machines."""
    return time.clock_gettime(_CLOCK) * 1000.0
