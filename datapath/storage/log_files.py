"""The system calls that change the log's files, in one place that tests can replace."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from datapath.storage.data_directory import sync_directory

_MAX_BUFFERS = 512


class Files:
    """The system calls that change the log; tests inject failures and crashes here."""

    write_through: int = getattr(os, "RWF_DSYNC", 0)

    def write(self, descriptor: int, buffers: Sequence[bytes], offset: int, flags: int) -> int:
        """Write at an offset; return how many bytes were taken."""
        return os.pwritev(descriptor, buffers, offset, flags)

    def sync(self, descriptor: int) -> None:
        """Make a file's data durable."""
        os.fdatasync(descriptor)

    def allocate(self, descriptor: int, size_bytes: int) -> None:
        """Give the file that size, and the room for it."""
        os.posix_fallocate(descriptor, 0, size_bytes)

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        """Cut the file to that size."""
        os.ftruncate(descriptor, size_bytes)

    def remove(self, path: Path) -> None:
        """Delete a file, durably."""
        path.unlink()
        sync_directory(path.parent)

    def rename(self, path: Path, target: Path) -> None:
        """Give a file another name, durably."""
        path.rename(target)
        sync_directory(target.parent)
        if path.parent != target.parent:
            sync_directory(path.parent)


def write_all(files: Files, descriptor: int, buffers: list[bytes], offset: int, flags: int) -> None:
    """Write all, also where the system takes it in parts."""
    if len(buffers) > _MAX_BUFFERS:
        buffers = [b"".join(buffers)]
    total = sum(map(len, buffers))
    taken = files.write(descriptor, buffers, offset, flags)
    if taken == total:
        return
    rest = b"".join(buffers)
    while taken < total:
        taken += files.write(descriptor, [rest[taken:]], offset + taken, flags)
