"""`python -m tests.support.stopped_clock FILE …`: `onecopy`, by a clock that can stand still.

A guest's clock stands still while its hypervisor stops it. Here, too: FILE holds how long it has
stood still so far, in ms (8 bytes, little-endian float), and a test adds a pause to it before it
lets the process go on.
"""

from __future__ import annotations

import mmap
import struct
import sys
from pathlib import Path

from datapath import clock

SIZE_BYTES = 8


def stand_still(path: Path, total_ms: float) -> None:
    """Say how long it has stood still in all."""
    path.touch()
    with path.open("r+b") as file:
        file.write(struct.pack("<d", total_ms))


def _stop_clock(path: Path) -> None:
    real = clock.clock_ms
    with path.open("r+b") as file:
        stopped = mmap.mmap(file.fileno(), SIZE_BYTES)

    def clock_ms() -> float:
        return real() - float(struct.unpack_from("<d", stopped)[0])

    clock.clock_ms = clock_ms
    clock.clock_s = lambda: clock_ms() / 1000.0


if __name__ == "__main__":
    _stop_clock(Path(sys.argv.pop(1)))
    from cluster.cli.main import main  # the others take the clock by name: they come after it

    main()
