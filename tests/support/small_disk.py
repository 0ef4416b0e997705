"""Small file systems in memory, to be filled. Linux, as root."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

_MNT_DETACH = 2


def mount_small_disk(path: Path, size_bytes: int, files: int = 0) -> None:
    """Mount a tmpfs of that size over a directory. Raises OSError where that is not permitted.

    `files`: how many files and directories there may be, its root included; 0: as many as fit.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"size={size_bytes},nr_inodes={files}".encode()
    if libc.mount(b"tmpfs", os.fsencode(path), b"tmpfs", 0, options) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def unmount(path: Path) -> None:
    """Take it away, as soon as nobody uses it any more."""
    ctypes.CDLL(None).umount2(os.fsencode(path), _MNT_DETACH)


def fill(disk: Path, leave_bytes: int = 0) -> Path:
    """Use up a disk with a file of other people's; return it.

    Others write there meanwhile, and take what was free a moment ago.
    """
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        for _ in range(100):
            room = os.statvfs(disk)
            try:
                os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - leave_bytes)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                file.truncate(0)
            else:
                return ballast
    raise AssertionError(f"{disk} cannot be filled")
