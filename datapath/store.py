"""The store: what committed entries have made of the state.

`store/CURRENT` names the live LMDB environment beside it (`env-<number>/`), so that an installed
snapshot takes over in one atomic step. An environment holds eight *spaces*, each a database of
byte keys (1 to 511 bytes) in order: 0 the service's, 1 and 2 the client table's. What stands there
is exactly what the entries wrote. A ninth database holds the format, the cluster id and the
(applied index, epoch), written in the same transaction as the entries' writes.

Entries are applied to an *overlay* in memory; a flush moves it to LMDB in one transaction:

    freeze          loop thread     the active overlay becomes the frozen one
    write_frozen    worker thread   the frozen overlay is written and committed, durably
    thaw            loop thread     reads see the new LMDB state, the frozen overlay is dropped

Reads look at the active overlay, then the frozen one, then LMDB, and so are right throughout.
After a crash the log is replayed from the durable index.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import islice
from pathlib import Path

import lmdb

from datapath.datadir import replace_file, storage_error, sync_directory
from datapath.errors import (
    DataDirectoryError,
    DiskFailedError,
    DiskFullError,
    SafetyError,
    StorageError,
)
from datapath.records import Entry

SPACES = 8
SERVICE_SPACE, CLIENT_SPACE, CLIENT_ORDER_SPACE = 0, 1, 2
MAX_KEY_SIZE_BYTES = 511
DEFAULT_MAP_SIZE_BYTES = 256 * 1024**3

_FORMAT = b"1"
_STATE = struct.Struct("<QQ")
_ITEM = struct.Struct("<BII")
# LMDB's binding gives the interpreter's lock back and takes it again with every record, and each
# time the event loop loses the race for it: so threads here stop for a moment every few records.
SLICE = 200
NAP_S = 0.00002
_OVERHEAD_BYTES = 120  # what a record in the overlay costs beside its key and value
_ENVIRONMENT_NAME = re.compile(r"env-(\d{16})")

Item = tuple[bytes, bytes]
Change = tuple[bytes, bytes | None]
_MISSING = b"\0missing"  # compared by identity


def lmdb_failure(error: lmdb.Error, path: Path, room_needed_bytes: int = 0) -> StorageError:
    """Translate an LMDB error: no room, or a disk not to be trusted."""
    full = isinstance(error, lmdb.MapFullError) or error.code in (errno.ENOSPC, errno.EDQUOT)
    if error.code == errno.EIO:
        # LMDB reports a short write as EIO, and a short write is how a disk becomes full.
        room = os.statvfs(path)
        full = room.f_bavail * room.f_frsize < room_needed_bytes + (1 << 20)
    return (DiskFullError if full else DiskFailedError)(f"store {path}: {error}")


class Environment:
    """One LMDB environment. Shared by the store and snapshot readers, closed by the last user."""

    def __init__(
        self, path: Path, map_size_bytes: int, *, fresh: bool = False, sync: bool = True
    ) -> None:
        self.path = path
        self._users = 1
        self._lock = threading.Lock()
        try:
            self.lmdb = lmdb.open(
                str(path),
                map_size=map_size_bytes,
                max_dbs=SPACES + 1,
                readahead=False,
                sync=sync,
                metasync=sync,
            )
            with self.lmdb.begin(write=True) as transaction:
                self.meta = self.lmdb.open_db(b"meta", transaction)
                names = [b"space%d" % number for number in range(SPACES)]
                self.spaces = [self.lmdb.open_db(name, transaction) for name in names]
                self._check_format(transaction, fresh=fresh)
        except lmdb.Error as error:
            failure = lmdb_failure(error, path)
            if isinstance(failure, DiskFullError):
                raise failure from error
            raise DataDirectoryError(
                f"store {path} cannot be opened ({error}): if its files are damaged, move the "
                "data directory away and join as a new node"
            ) from error

    def _check_format(self, transaction: lmdb.Transaction, *, fresh: bool) -> None:
        found = transaction.get(b"format", None, self.meta)
        if found is None and not fresh:  # LMDB takes an emptied file for a new one
            raise DataDirectoryError(
                f"store {self.path} has lost its content: restore it from a backup, or move the "
                "data directory away and join as a new node"
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
        transaction.put(b"state", _STATE.pack(index, epoch), db=self.meta)

    def state(self, transaction: lmdb.Transaction) -> tuple[int, int]:
        """Return the (applied index, epoch) that a transaction sees."""
        found = transaction.get(b"state", None, self.meta)
        if found is None:
            return 0, 0
        index, epoch = _STATE.unpack(found)
        return index, epoch

    def cluster_id(self, transaction: lmdb.Transaction) -> str:
        """Return the cluster id, or "" if none was set."""
        return bytes(transaction.get(b"cluster", None, self.meta) or b"").decode()

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


class ContentHash:
    """A hash over items in order: equal for equal content, however it is stored."""

    def __init__(self) -> None:
        self._hash = blake2b(digest_size=32)
        self.count = 0

    def update(self, space: int, items: Iterable[Item]) -> None:
        """Count in the next items of a space, in key order."""
        pieces: list[bytes] = []
        for key, value in items:
            pieces += (_ITEM.pack(space, len(key), len(value)), key, value)
        self.count += len(pieces) // 3
        self._hash.update(b"".join(pieces))

    def hex(self) -> str:
        """Return the hash so far."""
        return self._hash.hexdigest()


class _Overlay:
    """Writes not yet in LMDB, the last one of each key; up to (`index`, `epoch`)."""

    def __init__(self, index: int, epoch: int) -> None:
        self.index = index
        self.epoch = epoch
        self.size_bytes = 0
        self.writes: dict[int, dict[bytes, bytes | None]] = {number: {} for number in range(SPACES)}
        self._sorted: dict[int, list[bytes]] = {number: [] for number in range(SPACES)}

    def changes(
        self, space: int, start: bytes, end: bytes | None, *, reverse: bool
    ) -> Iterator[Change]:
        """Yield the changes with start <= key < end, in key order."""
        writes = self.writes[space]
        keys = self._sorted[space]
        if len(keys) < len(writes):
            # Keys only come: those not sorted yet are the last ones of the dict.
            keys.extend(islice(writes, len(keys), None))
            keys.sort()
        low = _position(keys, start)
        high = len(keys) if end is None else _position(keys, end)
        window = range(high - 1, low - 1, -1) if reverse else range(low, high)
        return ((keys[at], writes[keys[at]]) for at in window)


def _position(keys: list[bytes], key: bytes) -> int:
    low, high = 0, len(keys)
    while low < high:
        middle = (low + high) // 2
        if keys[middle] < key:
            low = middle + 1
        else:
            high = middle
    return low


def _merge(upper: Iterator[Change], lower: Iterator[Change], *, reverse: bool) -> Iterator[Change]:
    """Merge two streams in key order; of the same key, the upper one's change counts."""
    above, below = next(upper, None), next(lower, None)
    while above is not None and below is not None:
        if above[0] == below[0]:
            yield above
            above, below = next(upper, None), next(lower, None)
        elif (above[0] < below[0]) is not reverse:
            yield above
            above = next(upper, None)
        else:
            yield below
            below = next(lower, None)
    if above is not None:
        yield above
        yield from upper
    if below is not None:
        yield below
        yield from lower


class Store:
    """A replica's state. `Store.open` makes one; use it on one thread, but for what says else."""

    def __init__(self, directory: Path, environment: Environment, map_size_bytes: int) -> None:
        self.directory = directory
        self._map_size_bytes = map_size_bytes
        self._environment = environment
        self._read = environment.lmdb.begin()
        self._durable = environment.state(self._read)
        self._active = _Overlay(*self._durable)
        self._frozen: _Overlay | None = None
        self._written = False
        self._writing = False
        self._broken = ""

    @classmethod
    def open(
        cls,
        directory: str | Path,
        *,
        cluster_id: str = "",
        map_size_bytes: int = DEFAULT_MAP_SIZE_BYTES,
    ) -> Store:
        """Open the store, make it if it is new, and remove what an interrupted install left.

        Raises:
            DataDirectoryError: damaged, of another cluster or format.
            DiskFullError, DiskFailedError: it could not be made or read.

        """
        directory = Path(directory)
        try:
            if not directory.is_dir():
                directory.mkdir(parents=True)
                sync_directory(directory.parent)
            name = current_environment(directory)
            if not name:
                name = _create(directory, map_size_bytes)
            store = cls(directory, Environment(directory / name, map_size_bytes), map_size_bytes)
        except OSError as error:
            raise storage_error(error, f"opening the store {directory}") from error
        try:
            store.remove_leftovers()
            store._bind(cluster_id)
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Close the store; what is only in the overlay is dropped (the log has it)."""
        if not self._broken.startswith("closed"):
            self._broken = f"closed: {self.directory}"
            self._read.abort()
            self._environment.release()

    # Where it is

    @property
    def applied_index(self) -> int:
        """The last entry that reads see."""
        return self._active.index

    @property
    def applied_epoch(self) -> int:
        """The epoch of the entry `applied_index`."""
        return self._active.epoch

    @property
    def durable_index(self) -> int:
        """The last entry that LMDB holds: the log is replayed from here."""
        return self._durable[0]

    @property
    def durable_epoch(self) -> int:
        """The epoch of the entry `durable_index`."""
        return self._durable[1]

    @property
    def active_bytes(self) -> int:
        """What the next flush would write, estimated with its cost in memory."""
        return self._active.size_bytes

    @property
    def overlay_bytes(self) -> int:
        """What is not in LMDB yet, a running flush included."""
        return self._active.size_bytes + (self._frozen.size_bytes if self._frozen else 0)

    @property
    def flushing(self) -> bool:
        """Whether there is a frozen overlay."""
        return self._frozen is not None

    @property
    def cluster_id(self) -> str:
        """The cluster that the state belongs to, or ""."""
        return self._environment.cluster_id(self._read)

    # Apply and read

    def apply(self, entries: list[Entry], last_index: int, epoch: int) -> None:
        """Apply committed entries, the last of which is (`last_index`, `epoch`).

        Raises:
            SafetyError: they do not follow what was applied, or a key or space is impossible.

        """
        active = self._active
        if last_index - active.index != len(entries) or epoch < active.epoch:
            raise SafetyError(
                f"{len(entries)} entries up to ({last_index}, {epoch}) do not follow what was "
                f"applied: ({active.index}, {active.epoch})"
            )
        writes = active.writes
        size = 0
        for entry in entries:
            for space, key, value in entry:
                if space not in writes or not 0 < len(key) <= MAX_KEY_SIZE_BYTES:
                    raise SafetyError(f"entry with an impossible write: {space}, {key!r}")
                writes[space][key] = value
                size += len(key) + _OVERHEAD_BYTES
                if value is not None:
                    size += len(value)
        active.size_bytes += size
        active.index, active.epoch = last_index, epoch

    def get(self, space: int, key: bytes) -> bytes | None:
        """Return the value under `key`, or None."""
        value = self._active.writes[space].get(key, _MISSING)
        if value is not _MISSING:
            return value
        if self._frozen is not None:
            value = self._frozen.writes[space].get(key, _MISSING)
            if value is not _MISSING:
                return value
        if not 0 < len(key) <= MAX_KEY_SIZE_BYTES:
            return None
        try:
            return self._read.get(key, None, self._environment.spaces[space])
        except lmdb.Error as error:
            raise lmdb_failure(error, self._environment.path) from error

    def range(
        self, space: int, start: bytes, end: bytes | None, limit: int, *, reverse: bool = False
    ) -> list[Item]:
        """Return up to `limit` (key, value) with start <= key < end, in key order or reversed.

        `end` None is no upper bound. The work is bounded by `limit` and the overlay's size: keys
        deleted since the last flush are passed over one by one, about 1 us each. Who takes keys
        off the front, as from a queue, starts after the last one he took.
        """
        layers = [overlay for overlay in (self._frozen, self._active) if overlay is not None]
        try:
            merged = self._scan(space, start, end, reverse=reverse)
            for overlay in layers:
                if overlay.writes[space]:
                    changes = overlay.changes(space, start, end, reverse=reverse)
                    merged = _merge(changes, merged, reverse=reverse)
            present = ((key, value) for key, value in merged if value is not None)
            return list(islice(present, max(limit, 0)))
        except lmdb.Error as error:
            raise lmdb_failure(error, self._environment.path) from error

    def _scan(
        self, space: int, start: bytes, end: bytes | None, *, reverse: bool
    ) -> Iterator[Change]:
        """Yield what LMDB holds with start <= key < end."""
        if len(start) > MAX_KEY_SIZE_BYTES:
            start = start[:MAX_KEY_SIZE_BYTES] + b"\0"
        cursor = self._read.cursor(self._environment.spaces[space])
        if not reverse:
            if not (cursor.set_range(start[:MAX_KEY_SIZE_BYTES]) if start else cursor.first()):
                return
            for item in cursor.iternext():
                if end is not None and item[0] >= end:
                    return
                if item[0] >= start:
                    yield item
            return
        # The last key before `end`: one back from the first that is not.
        found = (
            cursor.prev()
            if end is not None and cursor.set_range(end[:MAX_KEY_SIZE_BYTES])
            else cursor.last()
        )
        if not found:
            return
        for item in cursor.iterprev():
            if item[0] < start:
                return
            if end is None or item[0] < end:
                yield item

    def count(self, space: int) -> int:
        """Return how many keys a space has. Costs about 1 us for each key in the overlay."""
        database = self._environment.spaces[space]
        total: int = self._read.stat(database)["entries"]
        held: dict[bytes, bool] = {}
        for overlay in (self._frozen, self._active):
            for key, value in overlay.writes[space].items() if overlay else ():
                before = held.get(key)
                if before is None:
                    before = self._read.get(key, None, database) is not None
                held[key] = value is not None
                total += held[key] - before
        return total

    # Flush

    def freeze(self) -> bool:
        """Make the active overlay the frozen one; False if there is one, or nothing to flush."""
        if self._frozen is not None or self._active.index == self._durable[0]:
            return False
        self._written = False
        self._frozen = self._active
        self._active = _Overlay(self._frozen.index, self._frozen.epoch)
        return True

    def write_frozen(self) -> None:
        """Write the frozen overlay to LMDB, durably. On a worker thread.

        Raises:
            DiskFullError: nothing was written; try again later.
            DiskFailedError: the disk failed; the store refuses to flush again (D9).

        """
        frozen = self._frozen
        if self._broken:
            raise DiskFailedError(f"the store refuses to flush: {self._broken}")
        if frozen is None or self._written:
            return
        environment = self._environment.acquire()
        self._writing = True
        try:
            transaction = environment.lmdb.begin(write=True)
            try:
                for space, writes in frozen.writes.items():
                    _write_space(transaction, environment.spaces[space], writes)
                state = _STATE.pack(frozen.index, frozen.epoch)
                transaction.put(b"state", state, db=environment.meta)
                transaction.commit()
            except BaseException:
                transaction.abort()
                raise
        except lmdb.Error as error:
            failure = lmdb_failure(error, environment.path, 2 * frozen.size_bytes)
            if not isinstance(failure, DiskFullError):
                self._broken = str(failure)
            raise failure from error
        finally:
            self._writing = False
            environment.release()
        self._written = True

    def thaw(self) -> None:
        """Drop the frozen overlay, which LMDB now holds. Does nothing before it does."""
        if self._frozen is None or not self._written:
            return
        self._renew_read()
        if self._durable != (self._frozen.index, self._frozen.epoch):
            raise SafetyError(f"LMDB is at {self._durable} after a flush to {self._frozen.index}")
        self._frozen = None

    def flush(self) -> None:
        """Flush at once, on this thread: for tools, tests and shutting down."""
        while self.freeze() or self._frozen is not None:
            self.write_frozen()
            self.thaw()

    def _renew_read(self) -> None:
        self._read.abort()
        self._read = self._environment.lmdb.begin()
        self._durable = self._environment.state(self._read)

    # Whole state

    def digest(self) -> tuple[int, str]:
        """Return (index, hash) of all that LMDB holds: flush first. On any thread.

        Equal on all replicas at the same index.
        """
        environment = self._environment.acquire()
        try:
            with environment.lmdb.begin() as transaction:
                total = ContentHash()
                for space, database in enumerate(environment.spaces):
                    items = transaction.cursor(database).iternext()
                    while piece := list(islice(items, SLICE)):
                        total.update(space, piece)
                        time.sleep(NAP_S)
                return environment.state(transaction)[0], total.hex()
        except lmdb.Error as error:
            raise lmdb_failure(error, environment.path) from error
        finally:
            environment.release()

    def acquire_environment(self) -> Environment:
        """Return the live environment, kept open until its `release`: for a snapshot reader."""
        return self._environment.acquire()

    def reopen(self) -> None:
        """Go over to the environment that CURRENT names, after a snapshot was installed.

        What the overlay held is dropped: the snapshot holds it, and is newer.

        Raises:
            SafetyError: a flush is running, or the snapshot is older than what was applied.

        """
        if self._writing:
            raise SafetyError("the store cannot be replaced while a flush is running")
        name = current_environment(self.directory)
        if name == self._environment.path.name:
            return
        newer = Environment(self.directory / name, self._map_size_bytes)
        with newer.lmdb.begin() as transaction:
            index, epoch = newer.state(transaction)
        if index < self.applied_index:
            newer.release()
            raise SafetyError(
                f"a snapshot at {index} is older than the store: {self.applied_index}"
            )
        self._read.abort()
        self._environment.release()
        self._environment = newer
        self._frozen = None
        self._renew_read()
        self._active = _Overlay(index, epoch)

    def remove_leftovers(self) -> None:
        """Delete environments that CURRENT does not name. On any thread; takes long if large."""
        live = current_environment(self.directory)
        for path in self.directory.iterdir():
            if _ENVIRONMENT_NAME.fullmatch(path.name) and path.name != live:
                shutil.rmtree(path, ignore_errors=True)

    def _bind(self, cluster_id: str) -> None:
        known = self.cluster_id
        if cluster_id and known and known != cluster_id:
            raise DataDirectoryError(
                f"store {self.directory} belongs to cluster {known}, not {cluster_id}: point this "
                "node at the right data directory"
            )
        if cluster_id and not known:
            try:
                with self._environment.lmdb.begin(write=True) as transaction:
                    self._environment.write_meta(transaction, *self._durable, cluster_id)
            except lmdb.Error as error:
                raise lmdb_failure(error, self._environment.path) from error
            self._renew_read()


def _write_space(
    transaction: lmdb.Transaction, database: lmdb._Database, writes: dict[bytes, bytes | None]
) -> None:
    cursor = transaction.cursor(database)
    changes = iter(writes.items())
    while piece := sorted(islice(changes, SLICE)):
        cursor.putmulti([(key, value) for key, value in piece if value is not None])
        for key, value in piece:
            if value is None:
                transaction.delete(key, db=database)
        time.sleep(NAP_S)


# CURRENT


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
            f"{directory / 'CURRENT'} names {name!r}, which is not there: restore it, or move the "
            "data directory away and join as a new node"
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


def _create(directory: Path, map_size_bytes: int) -> str:
    for leftover in directory.glob("env-*"):
        # CURRENT comes last: without it there may only be what an interrupted start left.
        environment = Environment(leftover, map_size_bytes, fresh=True)
        with environment.lmdb.begin() as transaction:
            index, _ = environment.state(transaction)
        environment.release()
        if index:
            raise DataDirectoryError(
                f"store {directory} has lost its CURRENT file, but {leftover.name} holds entries: "
                "restore it, or move the data directory away and join as a new node"
            )
        shutil.rmtree(leftover)
    path = next_environment(directory)
    path.mkdir()
    environment = Environment(path, map_size_bytes, fresh=True)
    try:
        with environment.lmdb.begin(write=True) as transaction:
            environment.write_meta(transaction, 0, 0, "")
    finally:
        environment.release()
    set_current(directory, path.name)
    return path.name
