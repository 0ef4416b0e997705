"""Durable files: what has returned from here survives a power cut.

A rename counts only once its directory is synced; a checksum tells a whole file from a damaged one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import google_crc32c
import msgspec

from election.pysyncobj_adapter.codec import UNDECODABLE
from election.pysyncobj_adapter.errors import (
    DirectoryInUseError,
    StorageCorruptError,
    StorageFullError,
)

_SEAL = struct.Struct("<8sIQ")  # magic, CRC-32C of length and payload, length of the payload
_LENGTH = struct.Struct("<Q")
_Content = TypeVar("_Content", bound=msgspec.Struct)


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of `data`."""
    return int(google_crc32c.value(data))


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn "no space left" into a `StorageFullError` that names the file."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(f"{path}: {error.strerror}. Free space on this disk.") from error
        raise


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_from_disk(path: Path) -> bytes:
    """Return a file's content as the disk has it, not the page cache.

    After a failed fsync the cache holds, as clean, what the disk may lack; a later fsync then
    succeeds and writes nothing, and a vote or an entry would be believed that a power cut takes.
    """
    with disk_errors(path):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            return path.read_bytes()
        finally:
            os.close(fd)


def write_all(fd: int, data: bytes, offset_bytes: int) -> None:
    """Write all of `data` at the offset."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset_bytes)
        view = view[written:]
        offset_bytes += written


def new_file_beside(path: Path, data: bytes) -> Path:
    """Write `data` to `path`.new and fsync it; return that path, to be checked and renamed."""
    beside = path.with_name(path.name + ".new")
    with disk_errors(beside):
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            write_all(fd, data, 0)
            os.fsync(fd)
        finally:
            os.close(fd)
    return beside


def rename_durably(source: Path, target: Path) -> None:
    """Rename atomically, and return when the new name is durable.

    A failure leaves open which of the two is on the disk: the caller must not go on.
    """
    os.rename(source, target)  # noqa: PTH104 - one syscall, counted by the crash tests
    sync_directory(target.parent)


def seal(magic: bytes, payload: bytes) -> bytes:
    """Return a file's content: magic, checksum, length, payload."""
    length = _LENGTH.pack(len(payload))
    return _SEAL.pack(magic, crc32c(length + payload), len(payload)) + payload


def unseal(magic: bytes, data: bytes, path: Path) -> bytes:
    """Return the payload that `seal` wrapped.

    Raises:
        StorageCorruptError: it is not what was written.

    """
    if len(data) < _SEAL.size:
        raise StorageCorruptError(path, len(data), "the file is cut short")
    found, checksum, length = _SEAL.unpack_from(data)
    payload = data[_SEAL.size :]
    if found != magic:
        raise StorageCorruptError(path, 0, f"the file does not start with {magic!r}")
    if len(payload) != length or crc32c(_LENGTH.pack(length) + payload) != checksum:
        raise StorageCorruptError(path, _SEAL.size, "the checksum does not match")
    return payload


def load_sealed(path: Path, magic: bytes, content: type[_Content]) -> _Content | None:
    """Return what `store_sealed` kept in a file, None if there is none.

    Raises:
        StorageCorruptError: it is not what was written.

    """
    path.with_name(path.name + ".new").unlink(missing_ok=True)
    if not path.exists():
        return None
    payload = unseal(magic, read_from_disk(path), path)
    try:
        return msgspec.msgpack.decode(payload, type=content)
    except UNDECODABLE as error:
        raise StorageCorruptError(path, 0, f"the content is wrong ({error})") from error


def store_sealed(path: Path, magic: bytes, content: msgspec.Struct) -> None:
    """Replace a small file by `content`, durable on return. Raises StorageFullError."""
    data = seal(magic, msgspec.msgpack.encode(content))
    rename_durably(new_file_beside(path, data), path)


class DirectoryLock:
    """An exclusive lock on a directory, held until `release` or the end of the process."""

    def __init__(self, directory: Path) -> None:
        """Take the lock; `directory` is made if missing.

        Raises:
            DirectoryInUseError: somebody else holds it.
            StorageFullError: there is no room for the directory or the lock file.

        """
        path = directory / "lock"
        with disk_errors(path):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._fd)
            raise DirectoryInUseError(f"{directory} is used by another process") from error

    def release(self) -> None:
        """Give the lock back. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
