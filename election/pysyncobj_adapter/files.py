"""Durable files: what has returned from here survives a power cut.

A rename counts only once its directory is synced; a checksum tells a whole file from a damaged one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
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
    RaftStorageFullError,
    StorageCorruptError,
)

_FILE_HEADER = struct.Struct("<8sIQ")  # magic, CRC-32C of length and payload, length of the payload
_LENGTH = struct.Struct("<Q")
_Content = TypeVar("_Content")


@functools.lru_cache(maxsize=64)
def new_path(path: Path) -> Path:
    """Return where the next version of a file is written, before it is renamed over this one."""
    return path.with_name(path.name + ".new")


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of `data`."""
    return int(google_crc32c.value(data))


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn "no space left" into a `RaftStorageFullError` that names the file."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RaftStorageFullError(
                f"{path}: {error.strerror}. Free space on this disk."
            ) from error
        raise


class Disk:
    """The file operations that the adapter rests on: these, and what is built of them.

    The simulator has another one, whose upper half is this.
    """

    def open(self, path: Path, flags: int) -> int:
        """Open a file, for this user alone if it is made."""
        return os.open(path, flags | os.O_CLOEXEC, 0o600)

    def close(self, fd: int) -> None:
        """Close it."""
        os.close(fd)

    def size(self, fd: int) -> int:
        """Return its size in bytes."""
        return os.fstat(fd).st_size

    def read(self, fd: int, size_bytes: int, offset_bytes: int) -> bytes:
        """Read at the offset, as the page cache has it."""
        return os.pread(fd, size_bytes, offset_bytes)

    def write(self, fd: int, data: bytes | memoryview, offset_bytes: int) -> int:
        """Write at the offset; return how many bytes were taken."""
        return os.pwrite(fd, data, offset_bytes)

    def allocate(self, fd: int, offset_bytes: int, size_bytes: int) -> None:
        """Reserve room."""
        os.posix_fallocate(fd, offset_bytes, size_bytes)

    def truncate(self, fd: int, size_bytes: int) -> None:
        """Cut the file to that size."""
        os.ftruncate(fd, size_bytes)

    def sync(self, fd: int) -> None:
        """Make content and size durable; of a directory, the names in it."""
        os.fsync(fd)

    def sync_data(self, fd: int) -> None:
        """Make the content durable where size and extents have not changed."""
        os.fdatasync(fd)

    def drop_cache(self, fd: int) -> None:
        """Let what is read next come from the disk."""
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def exists(self, path: Path) -> bool:
        """Whether there is such a file."""
        return path.exists()

    def remove(self, path: Path) -> None:
        """Remove the file, if there is one."""
        path.unlink(missing_ok=True)

    def rename(self, source: Path, target: Path) -> None:
        """Rename atomically, over what is there."""
        os.rename(source, target)  # noqa: PTH104 - one syscall, counted by the crash tests

    def lock_directory(self, directory: Path) -> int:
        """Make the directory if it is missing, and lock it; return what `close` gives back.

        Raises:
            BlockingIOError: somebody else holds it.

        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = self.open(directory / "lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close(fd)
            raise
        return fd

    # Built of these.

    def sync_directory(self, directory: Path) -> None:
        """Make the names in `directory` durable."""
        fd = self.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.sync(fd)
        finally:
            self.close(fd)

    def read_from_disk(self, path: Path) -> bytes:
        """Return a file's content as the disk has it, not the page cache.

        After a failed fsync the cache holds, as clean, what the disk may lack; a later fsync then
        succeeds and writes nothing, and a vote or entry would be believed that a power cut takes.
        """
        with disk_errors(path):
            fd = self.open(path, os.O_RDWR)
            try:
                self.sync(fd)
                self.drop_cache(fd)
                return self.read(fd, self.size(fd), 0)
            finally:
                self.close(fd)

    def write_all(self, fd: int, data: bytes, offset_bytes: int) -> None:
        """Write all of `data` at the offset."""
        view = memoryview(data)
        while view:
            written = self.write(fd, view, offset_bytes)
            view = view[written:]
            offset_bytes += written

    def new_file_beside(self, path: Path, data: bytes) -> Path:
        """Write `data` to `path`.new and fsync it; return that path, to be checked and renamed."""
        beside = new_path(path)
        with disk_errors(beside):
            fd = self.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            try:
                self.write_all(fd, data, 0)
                self.sync(fd)
            finally:
                self.close(fd)
        return beside

    def rename_durably(self, source: Path, target: Path) -> None:
        """Rename atomically, and return when the new name is durable.

        A failure leaves open which of the two is on the disk: the caller must not go on.
        """
        self.rename(source, target)
        self.sync_directory(target.parent)


REAL_DISK = Disk()


def encode_file(magic: bytes, payload: bytes) -> bytes:
    """Return a file's content: magic, checksum, length, payload."""
    length = _LENGTH.pack(len(payload))
    return _FILE_HEADER.pack(magic, crc32c(length + payload), len(payload)) + payload


def decode_file(magic: bytes, data: bytes, path: Path) -> bytes:
    """Return the payload that `encode_file` wrapped.

    Raises:
        StorageCorruptError: it is not what was written.

    """
    if len(data) < _FILE_HEADER.size:
        raise StorageCorruptError(path, len(data), "the file is cut short")
    found, checksum, length = _FILE_HEADER.unpack_from(data)
    payload = data[_FILE_HEADER.size :]
    if found != magic:
        raise StorageCorruptError(path, 0, f"the file does not start with {magic!r}")
    if len(payload) != length or crc32c(_LENGTH.pack(length) + payload) != checksum:
        raise StorageCorruptError(path, _FILE_HEADER.size, "the checksum does not match")
    return payload


def load_file(path: Path, magic: bytes, content: type[_Content], disk: Disk) -> _Content | None:
    """Return what `store_file` kept in a file, None if there is none.

    Raises:
        StorageCorruptError: it is not what was written.

    """
    disk.remove(new_path(path))
    if not disk.exists(path):
        return None
    payload = decode_file(magic, disk.read_from_disk(path), path)
    try:
        return msgspec.msgpack.decode(payload, type=content)
    except UNDECODABLE as error:
        raise StorageCorruptError(path, 0, f"the content is wrong ({error})") from error


def store_file(path: Path, magic: bytes, content: object, disk: Disk) -> None:
    """Replace a small file by `content`, durable on return. Raises StorageFullError."""
    data = encode_file(magic, msgspec.msgpack.encode(content))
    disk.rename_durably(disk.new_file_beside(path, data), path)


class DirectoryLock:
    """An exclusive lock on a directory, held until `release` or the end of the process."""

    def __init__(self, directory: Path, disk: Disk = REAL_DISK) -> None:
        """Take the lock; `directory` is made if missing.

        Raises:
            DirectoryInUseError: somebody else holds it.
            StorageFullError: there is no room for the directory or the lock file.

        """
        self._disk = disk
        with disk_errors(directory / "lock"):
            try:
                self._fd = disk.lock_directory(directory)
            except BlockingIOError as error:
                raise DirectoryInUseError(f"{directory} is used by another process") from error

    def release(self) -> None:
        """Give the lock back. Idempotent."""
        if self._fd >= 0:
            self._disk.close(self._fd)
            self._fd = -1
