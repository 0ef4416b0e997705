"""The LMDB environments that hold the state, and which of them is the live one.

`store/CURRENT` names the live environment beside it (`env-<number>/`), so that an installed
snapshot takes over in one atomic step. An environment holds eight *keyspaces* (their numbers:
`datapath.keyspaces`), each a database of byte keys (1 to 511 bytes) in order. Under each key
stands the value that the entries wrote, and a CRC-32C of key and value (4 bytes, little-endian):
LMDB itself has no checksums. A ninth database, `meta`, holds the format, the cluster id and the
(applied index, epoch), the last one with a CRC too, written in the same transaction as the entries'
writes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import struct
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import google_crc32c
import lmdb
import xxhash

from datapath.errors import (
    DataDirectoryError,
    DiskFailedError,
    DiskFullError,
    SafetyError,
    StorageError,
    is_out_of_space,
)
from datapath.keyspaces import KEYSPACES
from datapath.storage.data_directory import (
    FILE_MODE,
    replace_file,
    storage_error,
    sync_directory,
    trust_the_disk,
)

MAX_STORED_KEY_SIZE_BYTES = 511
DEFAULT_MAP_SIZE_BYTES = 256 * 1024**3
# LMDB's binding gives the interpreter's lock back and takes it again with every record, and each
# time the event loop loses the race for it: so threads here stop for a moment every few records.
LOCK_SIZE_BYTES = 16 * 1024
SLICE = 200
SLICE_SIZE_BYTES = 256 * 1024
NAP_S = 0.00002

STORE_FORMAT = 4
"""Of the store's items, and of its `meta`."""
_FORMAT = b"%d" % STORE_FORMAT
_CRC = struct.Struct("<I")
_SOUND_CRC = 0x48674BC7  # the CRC-32C of whatever ends with its own, little-endian
_STATE_KEY = b"state"
_STATE = struct.Struct("<QQ")
_LARGE_BYTES = 4096
_ITEM = struct.Struct("<BII")
_ENVIRONMENT_NAME = re.compile(r"env-(\d{16})")

StoredItem = tuple[bytes, bytes]


def _room_bytes(path: Path) -> int:
    room = os.statvfs(path)
    return room.f_bavail * room.f_frsize


@contextlib.contextmanager
def writing(path: Path, needed_bytes: int = 0) -> Iterator[None]:
    """Write up to `needed_bytes` to the environment `path`; LMDB's errors come out translated."""
    room_before_bytes = _room_bytes(path)
    try:
        yield
    except lmdb.Error as error:
        raise lmdb_failure(error, path, needed_bytes, room_before_bytes) from error


def lmdb_failure(
    error: lmdb.Error, path: Path, needed_bytes: int = 0, room_before_bytes: int | None = None
) -> StorageError:
    """Translate an LMDB error: no room, or a disk not to be trusted. Of a write, `writing` does it.

    `room_before_bytes`: what there was when a write of up to `needed_bytes` began.
    """
    full = isinstance(error, lmdb.MapFullError) or is_out_of_space(error.code)
    if error.code == errno.EIO:
        # LMDB reports a short write as EIO, and a short write is how a disk becomes full. Somebody
        # may have made room since.
        room = _room_bytes(path)
        if room_before_bytes is not None:
            room = min(room, room_before_bytes)
        full = room < needed_bytes + (1 << 20)
    if full and not isinstance(error, lmdb.MapFullError):
        return DiskFullError(f"store {path}: no space is left on the disk ({error})")
    return (DiskFullError if full else DiskFailedError)(f"store {path}: {error}")


def add_checksum(key: bytes, value: bytes) -> bytes:
    """Return what is stored under `key` for `value`."""
    return value + _CRC.pack(google_crc32c.extend(google_crc32c.value(key), value))


def verify_checksum(key: bytes, stored: bytes, path: Path) -> None:
    """Check what is stored under `key` in the environment `path`.

    Raises DataDirectoryError if it is not what was written.
    """
    if google_crc32c.extend(google_crc32c.value(key), stored) != _SOUND_CRC:
        raise DataDirectoryError(
            f"store {path} is damaged: the value of {key!r} has a wrong checksum. Move the data "
            "directory away and join as a new node"
        )


def strip_checksum(key: bytes, stored: bytes, path: Path) -> bytes:
    """Return the value that is stored under `key`; as `verify_checksum`."""
    verify_checksum(key, stored, path)
    return stored[: -_CRC.size]


def _allocate_lock(path: Path) -> None:
    """Give LMDB's lock file its room: LMDB maps it sparse, and would die of SIGBUS on a full disk.

    Raises DiskFullError or DiskFailedError.
    """
    file = path / "lock.mdb"
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(descriptor).st_blocks * 512 < LOCK_SIZE_BYTES:
                os.posix_fallocate(descriptor, 0, LOCK_SIZE_BYTES)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise storage_error(error, f"making {file}") from error


def _trust_the_disk(file: Path) -> None:
    """A transaction whose sync had failed must not be believed. Raises StorageError."""
    if not file.exists():
        return
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        try:
            trust_the_disk(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise storage_error(error, f"opening {file}") from error


def _fill_up(file: Path, environment: lmdb.Environment) -> None:
    """Give a file that was cut short its full size, so that no page of it lies outside.

    LMDB reads through a map: a page behind the end kills the process with SIGBUS, and says nothing.
    A page of zeros is told as damage. (LMDB itself may leave free pages at the end unwritten.)
    """
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    try:
        if file.stat().st_size < needed:
            os.truncate(file, needed)
    except OSError as error:
        raise storage_error(error, f"opening {file}") from error


class Environment:
    """One LMDB environment. Shared by the store and snapshot readers, closed by the last user.

    `readonly`: another process of this machine has it open to write. `scans`: it is read in order,
    so that the system may read ahead; else a value would cost more than its own pages. `alone`:
    nobody else has it open, and nothing but the file of the data is to be touched.
    """

    def __init__(
        self,
        path: Path,
        map_size_bytes: int,
        *,
        fresh: bool = False,
        sync: bool = True,
        readonly: bool = False,
        scans: bool = False,
        alone: bool = False,
    ) -> None:
        self.path = path
        self.map_size_bytes = map_size_bytes
        self._users = 1
        self._discarded = False
        self._lock = threading.Lock()
        room_before_bytes = _room_bytes(path)
        try:
            if not readonly:
                _allocate_lock(path)
                _trust_the_disk(path / "data.mdb")
            self.lmdb = lmdb.open(
                str(path),
                map_size=map_size_bytes,
                mode=FILE_MODE,
                max_dbs=KEYSPACES + 1,
                readahead=scans,
                sync=sync,
                metasync=sync,
                readonly=readonly,
                lock=not alone,
            )
            if readonly:
                if alone:
                    _fill_up(path / "data.mdb", self.lmdb)
                self._open_databases(None)
                with self.lmdb.begin() as transaction:
                    self._check_format(transaction, fresh=fresh)
                return
            _fill_up(path / "data.mdb", self.lmdb)
            # A write transaction that finds everything there writes nothing (a reader's handles
            # would go with it): so a node starts on a full disk.
            with self.lmdb.begin(write=True) as transaction:
                self._open_databases(transaction)
                self._check_format(transaction, fresh=fresh)
        except lmdb.Error as error:
            failure = lmdb_failure(error, path, room_before_bytes=room_before_bytes)
            if isinstance(failure, DiskFullError):
                raise failure from error
            raise DataDirectoryError(
                f"store {path} cannot be opened ({error}): if its files are damaged, move the "
                "data directory away and join as a new node"
            ) from error

    def _open_databases(self, transaction: lmdb.Transaction | None) -> None:
        """Open them within a write transaction, or those that are there in one of their own."""
        create = transaction is not None
        self.meta = self.lmdb.open_db(b"meta", transaction, create=create)
        names = [b"space%d" % number for number in range(KEYSPACES)]
        self.keyspaces = [self.lmdb.open_db(name, transaction, create=create) for name in names]

    def _check_format(self, transaction: lmdb.Transaction, *, fresh: bool) -> None:
        found = transaction.get(b"format", None, self.meta)
        if found is None and not fresh:  # LMDB takes an emptied file for a new one
            raise DataDirectoryError(
                f"store {self.path} has lost its content: never replace it by an older copy; "
                "move the data directory away and join as a new node"
            )
        if found not in (None, _FORMAT):
            raise DataDirectoryError(
                f"store {self.path} has format {found!r}, this version reads {_FORMAT!r}: use the "
                "version of onecopy that wrote it"
            )

    def write_meta(
        self, transaction: lmdb.Transaction, index: int, epoch: int, cluster_id: str
    ) -> None:
        """Put the position, format and cluster into a write transaction."""
        transaction.put(b"format", _FORMAT, db=self.meta)
        transaction.put(b"cluster", cluster_id.encode(), db=self.meta)
        self.write_state(transaction, index, epoch)

    def write_state(self, transaction: lmdb.Transaction, index: int, epoch: int) -> None:
        """Put the (applied index, epoch) into a write transaction."""
        state = add_checksum(_STATE_KEY, _STATE.pack(index, epoch))
        transaction.put(_STATE_KEY, state, db=self.meta)

    def state(self, transaction: lmdb.Transaction) -> tuple[int, int]:
        """Return the (applied index, epoch) that a transaction sees."""
        found = transaction.get(_STATE_KEY, None, self.meta)
        if found is None:
            return 0, 0
        index, epoch = _STATE.unpack(strip_checksum(_STATE_KEY, bytes(found), self.path))
        return index, epoch

    def cluster_id(self, transaction: lmdb.Transaction) -> str:
        """Return the cluster id, or "" if none was set."""
        return bytes(transaction.get(b"cluster", None, self.meta) or b"").decode()

    def scan(
        self,
        transaction: lmdb.Transaction[bytes],
        keyspace: int,
        start: bytes,
        end: bytes | None,
        *,
        reverse: bool,
    ) -> Iterator[StoredItem]:
        """Yield what a transaction sees with start <= key < end, in key order or reversed."""
        if len(start) > MAX_STORED_KEY_SIZE_BYTES:
            start = start[:MAX_STORED_KEY_SIZE_BYTES] + b"\0"
        cursor = transaction.cursor(self.keyspaces[keyspace])
        if not reverse:
            if not (
                cursor.set_range(start[:MAX_STORED_KEY_SIZE_BYTES]) if start else cursor.first()
            ):
                return
            for item in cursor.iternext():
                if end is not None and item[0] >= end:
                    return
                if item[0] >= start:
                    yield item[0], strip_checksum(*item, self.path)
            return
        # The last key before `end`: one back from the first that is not.
        found = (
            cursor.prev()
            if end is not None and cursor.set_range(end[:MAX_STORED_KEY_SIZE_BYTES])
            else cursor.last()
        )
        if not found:
            return
        for item in cursor.iterprev():
            if item[0] < start:
                return
            if end is None or item[0] < end:
                yield item[0], strip_checksum(*item, self.path)

    def space(self, transaction: lmdb.Transaction) -> tuple[int, int]:
        """Return the size of the file, and of those of its pages that are in use, in bytes."""
        main = self.lmdb.stat()
        databases = (self.meta, *self.keyspaces)
        stats = (main, *(transaction.stat(database) for database in databases))
        pages = sum(
            stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"] for stat in stats
        )
        page_bytes: int = main["psize"]
        return (self.lmdb.info()["last_pgno"] + 1) * page_bytes, pages * page_bytes

    def acquire(self) -> Environment:
        """Keep the environment open until `release`."""
        with self._lock:
            if not self._users:
                raise SafetyError(f"store {self.path} is closed")
            self._users += 1
        return self

    def release(self) -> None:
        """Give it back; the last user closes it."""
        with self._lock:
            self._users -= 1
            if not self._users:
                self.lmdb.close()
                if self._discarded:
                    shutil.rmtree(self.path, ignore_errors=True)

    def discard(self) -> None:
        """Give it back, and have the last user delete it: CURRENT does not name it any more."""
        self._discarded = True
        self.release()


class ContentHash:
    """A hash over items in order: equal for equal content, however the pages lie.

    Against damage and divergence, not against forgers: those who have the secret are trusted.
    """

    def __init__(self) -> None:
        self._hash = xxhash.xxh3_128()
        self.count = 0

    def update(
        self, keyspace: int, items: Iterable[tuple[bytes | memoryview, bytes | memoryview]]
    ) -> None:
        """Count in the next items of a keyspace, in key order, each as it is stored."""
        pieces: list[bytes | memoryview] = []
        pack, count = _ITEM.pack, 0
        for key, stored in items:
            count += 1
            size = len(stored)
            if size < _LARGE_BYTES:
                pieces += (pack(keyspace, len(key), size), key, stored)
            else:  # not worth a copy
                pieces += (pack(keyspace, len(key), size), key)
                self._hash.update(b"".join(pieces))
                self._hash.update(stored)
                pieces.clear()
        self._hash.update(b"".join(pieces))
        self.count += count

    def hex(self) -> str:
        """Return the hash so far."""
        return self._hash.hexdigest()


def current_environment(directory: Path) -> str:
    """Return the name of the live environment; "" if there is no CURRENT.

    Raises DataDirectoryError if CURRENT names nothing that is there.
    """
    try:
        name = (directory / "CURRENT").read_text(errors="replace").strip()
    except FileNotFoundError:
        return ""
    if not _ENVIRONMENT_NAME.fullmatch(name) or not (directory / name / "data.mdb").exists():
        raise DataDirectoryError(
            f"{directory / 'CURRENT'} names {name!r}, which does not exist: restore exactly that "
            "directory (never an older copy), or move the data directory away and join as a new "
            "node"
        )
    return name


def next_environment(directory: Path) -> Path:
    """Return a name for an environment that is not in use."""
    found = [_ENVIRONMENT_NAME.fullmatch(path.name) for path in directory.iterdir()]
    highest = max((int(match[1]) for match in found if match), default=0)
    return directory / f"env-{highest + 1:016}"


def set_current(directory: Path, name: str) -> None:
    """Make `name` the live environment, atomically and durably. Raises OSError."""
    sync_directory(directory / name)
    sync_directory(directory)
    replace_file(directory / "CURRENT", name.encode() + b"\n")


def remove_other_environments(directory: Path) -> None:
    """Delete environments that CURRENT does not name; takes long if they are large."""
    live = current_environment(directory)
    for path in directory.iterdir():
        if _ENVIRONMENT_NAME.fullmatch(path.name) and path.name != live:
            shutil.rmtree(path, ignore_errors=True)


def create_environment(directory: Path, map_size_bytes: int) -> str:
    """Make the first environment of a store, the live one, and return its name."""
    for leftover in directory.glob("env-*"):
        # CURRENT comes last: without it there may only be what an interrupted start left.
        environment = Environment(leftover, map_size_bytes, fresh=True)
        with environment.lmdb.begin() as transaction:
            index, _ = environment.state(transaction)
        environment.release()
        if index:
            raise DataDirectoryError(
                f"store {directory} has lost its CURRENT file, but {leftover.name} holds "
                "entries: restore exactly that file, or move the data directory away and join as "
                "a new node"
            )
        shutil.rmtree(leftover)
    path = next_environment(directory)
    path.mkdir(mode=0o700)
    environment = Environment(path, map_size_bytes, fresh=True)
    try:
        with environment.lmdb.begin(write=True) as transaction:
            environment.write_meta(transaction, 0, 0, "")
    finally:
        environment.release()
    set_current(directory, path.name)
    return path.name
