"""A disk that crashes before the n-th operation, and what is then left on it.

Two readings of "left": after a kill everything that was written is there (the page cache lives);
after a power cut only what was synced is, names included. The real disk lies between the two.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import Any

COUNTED = ("open", "pwrite", "fsync", "fdatasync", "rename", "ftruncate", "posix_fallocate")


class Crash(BaseException):
    """Not an Exception: no handler for errors may take it for one."""


class CrashDisk:
    """Stands in for the `os` module in the code under test."""

    def __init__(self, directory: Path, crash_before: int | None = None) -> None:
        self.directory = directory
        self.crash_before = crash_before
        self.operations = 0
        self.crashed = False
        self.killed = directory.with_name(directory.name + "-killed")
        self._contents: dict[int, bytes] = {}
        self._names: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in COUNTED:
            return real

        def counted(*args: Any, **kwargs: Any) -> Any:
            if self.crashed:
                raise Crash
            if self.operations == self.crash_before:
                self.crashed = True
                # Now, before any `finally` or `except` of the code under test tidies up.
                if self.directory.exists():
                    shutil.copytree(self.directory, self.killed)
                raise Crash
            self.operations += 1
            result = real(*args, **kwargs)
            if name in ("fsync", "fdatasync"):
                self._note_synced(args[0])
            return result

        return counted

    def _note_synced(self, fd: int) -> None:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            self._names = {path.name: path.stat().st_ino for path in self.directory.iterdir()}
        else:
            self._contents[status.st_ino] = Path(f"/proc/self/fd/{fd}").read_bytes()

    def left_after_power_cut(self, target: Path) -> Path:
        target.mkdir()
        for name, inode in self._names.items():
            (target / name).write_bytes(self._contents.get(inode, b""))
        return target
