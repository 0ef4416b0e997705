"""Disks that fail on purpose, for the storage tests."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

from datapath.records import Record, make_record
from datapath.storage.log import Log
from datapath.storage.log_files import Files

SEGMENT_SIZE_BYTES = 4096


def record(
    first: int, *, entries: int = 1, epoch: int = 1, size: int = 20, commit: int = 0
) -> Record:
    """A record of `entries` entries with values of `size` bytes."""
    return make_record(
        first,
        epoch,
        commit,
        [[(0, b"k%d" % i, b"v" * size)] for i in range(first, first + entries)],
    )


def records(first: int, count: int, **kind: int) -> list[Record]:
    """Records of one entry each."""
    return [record(first + i, **kind) for i in range(count)]


def held(log: Log) -> list[bytes]:
    """The bytes of all records that a log serves."""
    found: list[bytes] = []
    index = log.first_index
    while batch := log.read(index, 1000):
        found += [item.data for item in batch]
        index = batch[-1].last_index + 1
    return found


def abandon(log: Log) -> None:
    """Close the files as a killed process would: no sync, no last sync mark."""
    log._release()


class Crash(BaseException):
    """The process dies here."""


class FailingFiles(Files):
    """Raises `error` at call number `fail_at` (from 0) of the methods named, and at all later."""

    def __init__(self, fail_at: int, error: BaseException, methods: Sequence[str] = ()) -> None:
        self.calls = 0
        self.fail_at = fail_at
        self.error = error
        self.methods = methods

    def _count(self, method: str) -> None:
        if not self.methods or method in self.methods:
            self.calls += 1
            if self.calls > self.fail_at:
                raise self.error

    def write(self, descriptor: int, buffers: Sequence[bytes], offset: int, flags: int) -> int:
        self._count("write")
        return super().write(descriptor, buffers, offset, flags)

    def sync(self, descriptor: int) -> None:
        self._count("sync")
        super().sync(descriptor)

    def allocate(self, descriptor: int, size_bytes: int) -> None:
        self._count("allocate")
        super().allocate(descriptor, size_bytes)

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        self._count("truncate")
        super().truncate(descriptor, size_bytes)

    def remove(self, path: Path) -> None:
        self._count("remove")
        super().remove(path)

    def rename(self, path: Path, target: Path) -> None:
        self._count("rename")
        super().rename(path, target)


class ShortWrites(Files):
    """Takes half of what it is given until the room is used up, then says ENOSPC."""

    def __init__(self, room_bytes: int) -> None:
        self.room_bytes = room_bytes

    def write(self, descriptor: int, buffers: Sequence[bytes], offset: int, flags: int) -> int:
        data = b"".join(buffers)
        taken = min(max(len(data) // 2, 1), self.room_bytes)
        if not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room_bytes -= taken
        return super().write(descriptor, [data[:taken]], offset, flags)


class PowerLossFiles(Files):
    """Remembers what was written since the last sync of each file.

    `lose_power` copies the directory as a disk may hold it that had written any of the unsynced
    sectors, in any order.
    """

    SECTOR_BYTES = 32  # smaller than a real one: more ways to tear

    def __init__(self) -> None:
        self.unsynced: dict[str, list[tuple[int, bytes]]] = {}

    @staticmethod
    def _name(descriptor: int) -> str:
        return Path(f"/proc/self/fd/{descriptor}").readlink().name

    def write(self, descriptor: int, buffers: Sequence[bytes], offset: int, flags: int) -> int:
        data = b"".join(buffers)
        before = os.pread(descriptor, len(data), offset)
        if not flags:
            self.unsynced.setdefault(self._name(descriptor), []).append((offset, before))
        return super().write(descriptor, [data], offset, flags)

    def sync(self, descriptor: int) -> None:
        super().sync(descriptor)
        self.unsynced.pop(self._name(descriptor), None)

    def remove(self, path: Path) -> None:
        super().remove(path)
        self.unsynced.pop(path.name, None)

    def lose_power(self, directory: Path, target: Path, chance: random.Random) -> None:
        """Copy the log to `target`, with some of the unsynced sectors as they were before."""
        shutil.copytree(directory, target)
        for name, writes in self.unsynced.items():
            with (target / name).open("r+b") as file:
                for offset, before in reversed(writes):
                    for at in range(0, len(before), self.SECTOR_BYTES):
                        if chance.random() < 0.5:
                            file.seek(offset + at)
                            file.write(before[at : at + self.SECTOR_BYTES])
