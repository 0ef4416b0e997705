"""The one clock of the adapter: PySyncObj's, so that deadlines of both may be compared.

It is looked up there at each call: who gives PySyncObj another clock gives it to all.
"""

from __future__ import annotations

import pysyncobj.syncobj as library


def monotonic() -> float:
    """Return seconds on a clock that only goes forward, at a rate nobody steers."""
    now_s: float = library.monotonicTime()
    return now_s
