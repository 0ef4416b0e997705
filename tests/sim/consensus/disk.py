"""A simulated disk under the adapter's own file code: a crash may take what is not synced."""

from __future__ import annotations

import errno
import os
import posixpath
from pathlib import Path
from typing import TYPE_CHECKING

from election.pysyncobj_adapter.files import Disk
from tests.sim.clockwork import Clockwork
from tests.sim.consensus.processes import Crashed

if TYPE_CHECKING:
    from tests.sim.consensus.processes import Process

SECTOR_BYTES = 512
FAST_MS = (0.1, 1.0)
SLOW_MS = (20.0, 60.0)
AT_ONCE_RATE = 0.5
"""Of the syncs of a fast disk: as one with a battery behind its cache."""


class File:
    """A file's content in the page cache, and on the disk."""

    def __init__(self) -> None:
        self.cache = bytearray()
        self.durable = bytearray()
        self.dirty: set[int] = set()
        self.version = 0
        """Rises with each change of what is durable."""

    def write(self, data: bytes | memoryview, offset: int) -> None:
        end = offset + len(data)
        if end > len(self.cache):
            self.cache.extend(bytes(end - len(self.cache)))
        self.cache[offset:end] = data
        self.dirty.update(range(offset // SECTOR_BYTES, -(-end // SECTOR_BYTES)))

    def make_durable(self, sectors: set[int]) -> None:
        """Let these sectors reach the disk, and the file's size with them."""
        cache, durable = self.cache, self.durable
        if len(durable) < len(cache):
            durable.extend(bytes(len(cache) - len(durable)))
        elif len(durable) > len(cache):
            del durable[len(cache) :]
        for sector in sectors:
            start = sector * SECTOR_BYTES
            durable[start : start + SECTOR_BYTES] = cache[start : start + SECTOR_BYTES]
        self.dirty -= sectors
        self.version += 1

    def forget_cache(self) -> None:
        self.cache = bytearray(self.durable)
        self.dirty.clear()


Names = dict[str, File]
"""By whole paths, as strings: those hash faster."""


class SimulatedDisk(Disk):
    """One machine's disk. It outlives processes; `process` is the one that uses it now."""

    def __init__(self, clockwork: Clockwork) -> None:
        self._clockwork = clockwork
        self.process: Process | None = None
        self.latency_ms = FAST_MS
        self.stalled_until = 0.0
        self.fails_next = False
        self.is_full = False
        self.names: Names = {}
        self.durable_names: Names = {}
        self._changes: list[tuple[str, File | None]] = []
        self._open_files: dict[int, File | str] = {}
        self._next_fd = 2_000_000

    # What the adapter calls.

    def open(self, path: Path, flags: int) -> int:
        self._step()
        name = str(path)
        found: File | str
        if flags & os.O_DIRECTORY:
            found = name
        else:
            file = self.names.get(name)
            if file is None:
                if not flags & os.O_CREAT:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
                self._refuse_if_full()
                file = self.names[name] = File()
                self._changes.append((name, file))
            elif flags & os.O_TRUNC:
                file.cache.clear()
                file.dirty.clear()
            found = file
        self._next_fd += 1
        self._open_files[self._next_fd] = found
        return self._next_fd

    def close(self, fd: int) -> None:
        self._open_files.pop(fd, None)

    def size(self, fd: int) -> int:
        return len(self._file(fd).cache)

    def read(self, fd: int, size_bytes: int, offset_bytes: int) -> bytes:
        return bytes(self._file(fd).cache[offset_bytes : offset_bytes + size_bytes])

    def write(self, fd: int, data: bytes | memoryview, offset_bytes: int) -> int:
        self._step()
        file = self._file(fd)
        if offset_bytes + len(data) > len(file.cache):
            self._refuse_if_full()
        file.write(data, offset_bytes)
        return len(data)

    def allocate(self, fd: int, offset_bytes: int, size_bytes: int) -> None:
        self._step()
        file, end = self._file(fd), offset_bytes + size_bytes
        if end > len(file.cache):
            self._refuse_if_full()
            file.cache.extend(bytes(end - len(file.cache)))

    def truncate(self, fd: int, size_bytes: int) -> None:
        self._step()
        del self._file(fd).cache[size_bytes:]

    def sync(self, fd: int) -> None:
        self._step()
        self._wait()
        found = self._open_files[fd]
        if self.fails_next:
            self.fails_next = False
            self._clockwork.seen["failed fsync"] += 1
            if isinstance(found, File):
                # The pages count as clean from now on, and some are not on the disk.
                found.make_durable(self._some(found.dirty))
                found.dirty.clear()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if isinstance(found, File):
            found.make_durable(found.dirty)
        else:
            self._sync_names(found)

    sync_data = sync

    def drop_cache(self, fd: int) -> None:
        file = self._file(fd)
        if not file.dirty:
            file.forget_cache()

    def exists(self, path: Path) -> bool:
        return str(path) in self.names

    def remove(self, path: Path) -> None:
        self._step()
        name = str(path)
        if self.names.pop(name, None) is not None:
            self._changes.append((name, None))

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        before, after = str(source), str(target)
        file = self.names.pop(before)
        self.names[after] = file
        self._changes += [(before, None), (after, file)]

    def lock_directory(self, directory: Path) -> int:
        self._next_fd += 1
        self._open_files[self._next_fd] = str(directory)
        return self._next_fd

    # Faults.

    def crash(self, *, power: bool) -> None:
        """The process is gone; with the power, whatever had not reached the disk by itself."""
        self.process = None
        self._open_files.clear()
        if not power:
            return
        clockwork = self._clockwork
        kept = clockwork.random.randint(0, len(self._changes))
        for name, file in self._changes[:kept]:
            self._apply(name, file)
        if kept < len(self._changes) or any(file.dirty for file in self.names.values()):
            clockwork.seen["unsynced writes lost"] += 1
        files = {id(file): file for file in (*self.names.values(), *self.durable_names.values())}
        for file in files.values():
            if file.dirty or len(file.cache) != len(file.durable):
                file.make_durable(self._some(file.dirty))
            file.forget_cache()
        self._changes.clear()
        self.names = dict(self.durable_names)

    def copy_of(self, directory: Path) -> dict[str, bytes]:
        """Return the files of a directory as they are on the disk."""
        return {
            name: bytes(file.durable)
            for name, file in self.durable_names.items()
            if posixpath.dirname(name) == str(directory)
        }

    def put_back(self, directory: Path, copy: dict[str, bytes]) -> None:
        """Replace a directory by a copy; nobody may use it now."""
        for name in [name for name in self.names if posixpath.dirname(name) == str(directory)]:
            del self.names[name]
        for name, content in copy.items():
            file = self.names[name] = File()
            file.write(content, 0)
            file.make_durable(file.dirty)
        self._changes.clear()
        self.durable_names = dict(self.names)

    def durable_file(self, name: str) -> File | None:
        """Return the file that has this name on the disk."""
        return self.durable_names.get(name)

    # Inside.

    def _file(self, fd: int) -> File:
        found = self._open_files.get(fd)
        if not isinstance(found, File):
            raise Crashed
        return found

    def _step(self) -> None:
        process = self.process
        if process is None:
            raise Crashed
        process.count_step()

    def _wait(self) -> None:
        process, clockwork = self.process, self._clockwork
        if process is None or process.is_starting:
            return
        stalled_ms = self.stalled_until - clockwork.now
        if stalled_ms <= 0 and self.latency_ms is FAST_MS and clockwork.chance(AT_ONCE_RATE):
            process.look()
            return
        process.block(max(clockwork.between(*self.latency_ms), stalled_ms))
        if process.has_crashed:
            raise Crashed

    def _refuse_if_full(self) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _some(self, sectors: set[int]) -> set[int]:
        """Draw which sectors have reached the disk: often none or all."""
        rate = self._clockwork.random.choice((0.0, 0.5, 1.0))
        return {sector for sector in sorted(sectors) if self._clockwork.chance(rate)}

    def _sync_names(self, directory: str) -> None:
        left = []
        for name, file in self._changes:
            if posixpath.dirname(name) == directory:
                self._apply(name, file)
            else:
                left.append((name, file))
        self._changes = left

    def _apply(self, name: str, file: File | None) -> None:
        if file is None:
            self.durable_names.pop(name, None)
        else:
            self.durable_names[name] = file
