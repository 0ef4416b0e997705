"""A real node whose disk, event loop and wall clock fail on command.

    python -m tests.nodes.faulty_node CONTROL serve --config cluster.toml --node n1

runs `onecopy serve` with the system calls that make things durable, and `time.time`, replaced
first. What fails, and how, stands in the file CONTROL (`tests.nodes.faults`), which is looked at
before each such call: a change counts from the very next one. SIGUSR1 blocks the event loop.

LMDB syncs in C, out of reach from here: a flush of the store fails, or is late, as a whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tests.nodes.faults import Faults

DURABLE = getattr(os, "RWF_DSYNC", 0)
POLL_S = 0.01


class Injector:
    """Stands between the node and the system calls."""

    def __init__(self, control: Path) -> None:
        self._control = control
        self._seen = (0, 0)
        self._faults = Faults()
        # The signal's handler may come while its own thread reads.
        self._reading = threading.RLock()
        self._unsynced: dict[int, list[tuple[int, bytes]]] = {}  # what stood there before
        self.pwrite, self.pwritev = os.pwrite, os.pwritev
        self.fsync, self.fdatasync = os.fsync, os.fdatasync
        self.time = time.time

    def faults(self) -> Faults:
        """Return what is to fail now."""
        try:
            status = self._control.stat()
        except FileNotFoundError:
            return Faults()
        mark = (status.st_mtime_ns, status.st_ino)
        if mark != self._seen:
            with self._reading:
                self._faults = msgspec.json.decode(self._control.read_bytes(), type=Faults)
                self._seen = mark
        return self._faults

    def _delay(self, path: str) -> None:
        """Hold a durable write up for as long as it says, or until it says so no more."""
        end = time.monotonic() + self.faults().sync_delay_ms / 1000
        while (faults := self.faults()).delays(path) and time.monotonic() < end:
            time.sleep(min(POLL_S, faults.sync_delay_ms / 1000))

    def check(self, path: str) -> bool:
        """Delay and fail as told: raises OSError, or says whether to lose what was written."""
        self._delay(path)
        return self.faults().fails(path)

    # -- the replaced calls

    def on_pwritev(self, fd: int, buffers: Sequence[bytes], offset: int, flags: int = 0) -> int:
        if not flags & DURABLE:
            return self.pwritev(fd, buffers, offset, flags)
        if self.check(_path(fd)):
            if not self.faults().loses_what_failed:
                self.pwritev(fd, buffers, offset, 0)
            raise _failure()
        return self.pwritev(fd, buffers, offset, flags)

    def on_pwrite(self, fd: int, data: Any, offset: int) -> int:
        if self.faults().fails(_path(fd)):
            with contextlib.suppress(OSError):  # open for writing alone: a new file, not named yet
                before = os.pread(fd, len(data), offset)
                self._unsynced.setdefault(fd, []).append((offset, before))
        return self.pwrite(fd, data, offset)

    def syncing(self, call: Callable[[int], None]) -> Callable[[int], None]:
        def sync(fd: int) -> None:
            if self.check(_path(fd)):
                for offset, before in reversed(self._unsynced.pop(fd, [])):
                    if self.faults().loses_what_failed:
                        self.pwrite(fd, before, offset)
                raise _failure()
            call(fd)

        return sync

    def on_time(self) -> float:
        return self.time() + self.faults().wall_offset_s

    def on_stall(self, number: int, frame: object) -> None:
        """Block the thread of the event loop, as a long computation in it would."""
        time.sleep(self.faults().stall_ms / 1000)

    def install(self) -> None:
        """Replace the calls, before anything of the node is imported."""
        os.pwritev = self.on_pwritev  # type: ignore[assignment]
        os.pwrite = self.on_pwrite
        os.fsync = self.syncing(self.fsync)  # type: ignore[assignment]
        os.fdatasync = self.syncing(self.fdatasync)  # type: ignore[assignment]
        time.time = self.on_time
        signal.signal(signal.SIGUSR1, self.on_stall)
        self._wrap_store()

    def _wrap_store(self) -> None:
        import lmdb  # noqa: PLC0415 -- after the calls were replaced

        from datapath.storage import store  # noqa: PLC0415

        write_space = store._write_keyspace

        def write(
            transaction: lmdb.Transaction,
            database: lmdb._Database,
            writes: dict[bytes, bytes | None],
        ) -> None:
            if writes and self.check("/store/"):
                failure = lmdb.Error("mdb_txn_commit: Input/output error")
                failure.code = errno.EIO  # type: ignore[misc]  # its C half sets it
                raise failure
            write_space(transaction, database, writes)

        store._write_keyspace = write


def _path(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115 -- "(deleted)" may follow


def _failure() -> OSError:
    return OSError(errno.EIO, os.strerror(errno.EIO))


def main() -> None:
    """Take the control file off the arguments, break what it says, and be the node."""
    control = Path(sys.argv.pop(1))
    Injector(control).install()
    from cluster.cli.main import main as run  # noqa: PLC0415 -- after the calls were replaced

    run()


if __name__ == "__main__":
    main()
