"""Reading a store's file into the page cache, before requests wait for its pages one by one.

A store begins cold (see `datapath.storage.data_directory.trust_the_disk`). LMDB reads through a
map, so a page that is not in memory stops the whole event loop for one read of 4 KiB; a store of
10^7 keys answers a third of its reads until its pages are there.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

logger = logging.getLogger(__name__)

DEFAULT_READ_AHEAD_BYTES = 4 * 1024**3
_MEMORY_FRACTION = 0.5
"""Of the machine's memory: the rest is not pushed out for a store that is larger."""
_STEP_BYTES = 4 * 1024 * 1024


def read_ahead(file: Path, limit_bytes: int, stop: threading.Event) -> int:
    """Read up to `limit_bytes` from the beginning of a file; return how many. On any thread.

    Ends soon after `stop` is set. A failed read only ends it: who needs the page is told.
    """
    done = 0
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = min(os.fstat(descriptor).st_size, limit_bytes, _memory_bytes())
            # In pages of 4 KiB: flushes write such, and the kernel's cost for each is that of the
            # folio around it (measured: 3 us of CPU a page instead of 5).
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            while done < size and not stop.is_set():
                step = min(_STEP_BYTES, size - done)
                os.posix_fadvise(descriptor, done, step, os.POSIX_FADV_WILLNEED)
                done += step
                os.pread(descriptor, 1, done - 1)  # that asks, this waits
        finally:
            os.close(descriptor)
    except OSError as error:
        logger.warning("%s was not read ahead: %s", file, error)
    return done


def _memory_bytes() -> int:
    pages: int = os.sysconf("SC_PHYS_PAGES")
    return int(_MEMORY_FRACTION * pages * os.sysconf("SC_PAGE_SIZE"))
