"""The one clock of the data path: it never goes back, and counts through suspend (D4)."""

from __future__ import annotations

import time

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def clock_s() -> float:
    """Seconds since an arbitrary moment; never compared between machines."""
    return time.clock_gettime(_CLOCK)


def clock_ms() -> float:
    """Milliseconds since an arbitrary moment; never compared between machines."""
    return time.clock_gettime(_CLOCK) * 1000.0
