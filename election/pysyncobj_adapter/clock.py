"""The one clock of the adapter: PySyncObj's, so that deadlines of both may be compared."""

from __future__ import annotations

from pysyncobj.monotonic import monotonic as _monotonic


def monotonic() -> float:
    """Return seconds on a clock that only goes forward, at a rate nobody steers."""
    return float(_monotonic())
