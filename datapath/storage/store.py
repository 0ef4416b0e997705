"""The store: what committed entries have made of the state.

The state stands in an LMDB environment (see `datapath.storage.environment`). Entries are applied to
an *overlay* in memory; a flush moves it to LMDB in one transaction:

    freeze          loop thread     the active overlay becomes the frozen one
    write_frozen    worker thread   the frozen overlay is written and committed, durably
    drop_frozen     loop thread     reads see the new LMDB state, the frozen overlay is dropped

Reads look at the active overlay, then the frozen one, then LMDB, and so are right throughout.
After a crash the log is replayed from the durable index.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import lmdb

from datapath.errors import (
    DataDirectoryError,
    DiskFailedError,
    SafetyError,
    StoppedError,
    StorageError,
)
from datapath.keyspaces import ROLES
from datapath.records import Entry
from datapath.storage.data_directory import storage_error, sync_directory
from datapath.storage.environment import (
    DEFAULT_MAP_SIZE_BYTES,
    MAX_STORED_KEY_SIZE_BYTES,
    NAP_S,
    SLICE,
    SLICE_SIZE_BYTES,
    ContentHash,
    Environment,
    StoredItem,
    add_checksum,
    create_environment,
    current_environment,
    lmdb_failure,
    remove_other_environments,
    strip_checksum,
    verify_checksum,
    writing,
)
from datapath.storage.overlay import KeyChange, Overlay, merge

MAX_PAGE_STEPS = 2000
"""How many keys are looked at for a page: about 1 us each, for those that have been deleted too."""
_OVERHEAD_BYTES = 120  # what a record in the overlay costs beside its key and value
_MAX_FOUND_ROLES = 4096
_MISSING = b"\0missing"  # compared by identity


class Store:
    """A replica's state. `Store.open` makes one; use it on one thread, but for what says else."""

    def __init__(self, directory: Path, environment: Environment, map_size_bytes: int) -> None:
        self.directory = directory
        self.on_damage: Callable[[StorageError], object] = lambda _: None
        """Called on the loop thread, before a read raises: the node must not go on with it."""
        self._map_size_bytes = map_size_bytes
        self._environment = environment
        self._read = environment.lmdb.begin()
        self._found_roles: dict[bytes, bytes | None] = {}  # what `_read`, one state, has of ROLES
        self._durable = environment.state(self._read)
        self.active = Overlay(*self._durable)
        """What the next flush writes."""
        self.overlay_bytes = 0
        """What is not in LMDB yet, a running flush included; estimated with its cost in memory."""
        self.applied_index = self.active.index
        """The last entry that reads see."""
        self._frozen: Overlay | None = None
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
                directory.mkdir(mode=0o700, parents=True)
                sync_directory(directory.parent)
            name = current_environment(directory)
            if not name:
                name = create_environment(directory, map_size_bytes)
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
    def durable_index(self) -> int:
        """The last entry that LMDB holds: the log is replayed from here."""
        return self._durable[0]

    @property
    def durable_epoch(self) -> int:
        """The epoch of the entry `durable_index`."""
        return self._durable[1]

    @property
    def file(self) -> Path:
        """The file of the live environment."""
        return self._environment.path / "data.mdb"

    @property
    def cluster_id(self) -> str:
        """The cluster that the state belongs to, or ""."""
        return self._environment.cluster_id(self._read)

    # Apply and read

    def apply(self, entries: list[Entry], last_index: int, epoch: int) -> None:
        """Apply committed entries, the last of which is (`last_index`, `epoch`).

        Raises:
            SafetyError: they do not follow what was applied, or a key or keyspace is impossible.

        """
        active = self.active
        if last_index - active.index != len(entries) or epoch < active.epoch:
            raise SafetyError(
                f"{len(entries)} entries up to ({last_index}, {epoch}) do not follow what was "
                f"applied: ({active.index}, {active.epoch})"
            )
        writes = active.writes
        size = 0
        for entry in entries:
            for keyspace, key, value in entry:
                if keyspace not in writes or not 0 < len(key) <= MAX_STORED_KEY_SIZE_BYTES:
                    raise SafetyError(f"entry with an impossible write: {keyspace}, {key!r}")
                writes[keyspace][key] = value
                size += len(key) + _OVERHEAD_BYTES
                if value is not None:
                    size += len(value)
        active.size_bytes += size
        self.overlay_bytes += size
        self.applied_index = active.index = last_index
        active.epoch = epoch

    def get(self, keyspace: int, key: bytes) -> bytes | None:
        """Return the value under `key`, or None."""
        value = self.active.writes[keyspace].get(key, _MISSING)
        if value is not _MISSING:
            return value
        if self._frozen is not None:
            value = self._frozen.writes[keyspace].get(key, _MISSING)
            if value is not _MISSING:
                return value
        if not 0 < len(key) <= MAX_STORED_KEY_SIZE_BYTES:
            return None
        if keyspace == ROLES:  # the same few with each request of a caller
            value = self._found_roles.get(key, _MISSING)
            if value is not _MISSING:
                return value
        environment = self._environment
        try:
            stored = self._read.get(key, None, environment.keyspaces[keyspace])
            value = None if stored is None else strip_checksum(key, stored, environment.path)
        except lmdb.Error as error:
            raise lmdb_failure(error, environment.path) from error
        except DataDirectoryError as error:
            self.on_damage(error)
            raise
        if keyspace == ROLES:
            if len(self._found_roles) >= _MAX_FOUND_ROLES:
                self._found_roles.clear()
            self._found_roles[key] = value
        return value

    def range(
        self, keyspace: int, start: bytes, end: bytes | None, limit: int, *, reverse: bool = False
    ) -> list[StoredItem]:
        """Return up to `limit` (key, value) with start <= key < end, in key order or reversed.

        `end` None is no upper bound. The work is bounded by `limit` and the overlay's size: keys
        deleted since the last flush are passed over one by one, about 1 us each. Who takes keys
        off the front, as from a queue, starts after the last one he took.
        """
        stored = self._environment.scan(self._read, keyspace, start, end, reverse=reverse)
        merged = self._merged(keyspace, start, end, stored, reverse=reverse)
        present = ((key, value) for key, value in merged if value is not None)
        with self._reading():
            return list(islice(present, max(limit, 0)))

    def page(
        self, keyspace: int, start: bytes, end: bytes | None, limit: int, max_size_bytes: int
    ) -> tuple[list[StoredItem], bytes | None]:
        """Return (key, value) pairs with start <= key < end, and the key to go on at, or None.

        There are at most `limit`, and none follows the one with which `max_size_bytes` are
        reached. The work is bounded: MAX_PAGE_STEPS keys are looked at, those deleted since the
        last flush included; so there may be fewer pairs, even none, although more follow.
        """
        read_bytes = 0

        def count(items: Iterator[StoredItem]) -> Iterator[StoredItem]:
            nonlocal read_bytes
            for item in items:
                read_bytes += len(item[1])
                yield item

        stored = count(self._environment.scan(self._read, keyspace, start, end, reverse=False))
        merged = self._merged(keyspace, start, end, stored, reverse=False)
        items: list[StoredItem] = []
        size_bytes = steps = 0
        with self._reading():
            for key, value in merged:
                steps += 1
                if value is None:
                    if steps >= MAX_PAGE_STEPS or read_bytes >= max_size_bytes:
                        return items, key + b"\0"
                elif len(items) >= limit or size_bytes >= max_size_bytes:
                    return items, key
                else:
                    items.append((key, value))
                    size_bytes += len(key) + len(value)
        return items, None

    def _merged(
        self,
        keyspace: int,
        start: bytes,
        end: bytes | None,
        stored: Iterator[StoredItem],
        *,
        reverse: bool,
    ) -> Iterator[KeyChange]:
        """Yield what is `stored`, and what the overlays say instead; None: deleted."""
        merged: Iterator[KeyChange] = stored
        for overlay in (self._frozen, self.active):
            if overlay is not None and overlay.writes[keyspace]:
                changes = overlay.changes(keyspace, start, end, reverse=reverse)
                merged = merge(changes, merged, reverse=reverse)
        return merged

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except lmdb.Error as error:
            raise lmdb_failure(error, self._environment.path) from error
        except DataDirectoryError as error:
            self.on_damage(error)
            raise

    def count(self, keyspace: int) -> int:
        """Return how many keys a keyspace has. Costs about 1 us for each key in the overlay."""
        database = self._environment.keyspaces[keyspace]
        total: int = self._read.stat(database)["entries"]
        held: dict[bytes, bool] = {}
        for overlay in (self._frozen, self.active):
            for key, value in overlay.writes[keyspace].items() if overlay else ():
                before = held.get(key)
                if before is None:
                    before = self._read.get(key, None, database) is not None
                held[key] = value is not None
                total += held[key] - before
        return total

    # Flush

    def freeze(self) -> bool:
        """Make the active overlay the frozen one; False if there is one, or nothing to flush."""
        if self._frozen is not None or self.active.index == self._durable[0]:
            return False
        self._frozen, self._written = self.active, False
        self.active = Overlay(self._frozen.index, self._frozen.epoch)
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
            with writing(environment.path, 2 * frozen.size_bytes):
                self._write(environment, frozen)
        except DiskFailedError as failure:
            self._broken = str(failure)
            raise
        finally:
            self._writing = False
            environment.release()
        self._written = True

    @staticmethod
    def _write(environment: Environment, frozen: Overlay) -> None:
        transaction = environment.lmdb.begin(write=True)
        try:
            for keyspace, writes in frozen.writes.items():
                _write_keyspace(transaction, environment.keyspaces[keyspace], writes)
            environment.write_state(transaction, frozen.index, frozen.epoch)
            transaction.commit()
        except BaseException:
            transaction.abort()
            raise

    def drop_frozen(self) -> None:
        """Drop the frozen overlay, which LMDB now holds. Does nothing before it does."""
        if self._frozen is None or not self._written:
            return
        self._renew_read()
        if self._durable != (self._frozen.index, self._frozen.epoch):
            raise SafetyError(f"LMDB is at {self._durable} after a flush to {self._frozen.index}")
        self.overlay_bytes -= self._frozen.size_bytes
        self._frozen = None

    def flush(self) -> None:
        """Flush at once, on this thread: for tools, tests and shutting down."""
        while self.freeze() or self._frozen is not None:
            self.write_frozen()
            self.drop_frozen()

    def _renew_read(self) -> None:
        self._read.abort()
        self._read = self._environment.lmdb.begin()
        self._found_roles.clear()
        self._durable = self._environment.state(self._read)

    # Another environment for the same state

    @property
    def is_flushing(self) -> bool:
        """Whether a flush has begun and not ended."""
        return self._frozen is not None or self._writing

    def space(self) -> tuple[int, int]:
        """Return the size of the store's file, and how much of it is used, in bytes."""
        return self._environment.space(self._read)

    def switch(self, copy: Environment) -> Environment:
        """Go over to a copy, which CURRENT names now; return the former one."""
        if self.is_flushing:
            raise SafetyError("the store cannot be replaced while a flush is running")
        with copy.lmdb.begin() as transaction:
            state = copy.state(transaction)
        if state != self._durable:
            raise SafetyError(f"{copy.path} is at {state}, the store at {self._durable}")
        former, self._environment = self._environment, copy
        self._renew_read()
        return former

    def refuse(self, reason: str) -> None:
        """Flush no more (D9)."""
        self._broken = reason

    # Whole state

    def digest(self, stop: threading.Event | None = None) -> tuple[int, str]:
        """Return (index, hash) of all that LMDB holds: flush first. On any thread.

        Equal on all replicas at the same index. Raises StoppedError soon after `stop` is set.
        """
        environment = self._environment.acquire()
        try:
            with environment.lmdb.begin() as transaction:
                total = ContentHash()
                for keyspace, database in enumerate(environment.keyspaces):
                    for piece in _pieces(transaction.cursor(database).iternext()):
                        if stop is not None and stop.is_set():
                            raise StoppedError(f"nobody waits for the digest of {self.directory}")
                        for key, stored in piece:
                            verify_checksum(key, stored, environment.path)
                        total.update(keyspace, piece)
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
        self.active, self.overlay_bytes = Overlay(index, epoch), 0
        self.applied_index = index

    def remove_leftovers(self) -> None:
        """Delete environments that CURRENT does not name. On any thread; takes long if large."""
        remove_other_environments(self.directory)

    def _bind(self, cluster_id: str) -> None:
        known = self.cluster_id
        if cluster_id and known and known != cluster_id:
            raise DataDirectoryError(
                f"store {self.directory} belongs to cluster {known}, not {cluster_id}: point this "
                "node at the right data directory"
            )
        if cluster_id and not known:
            with (
                writing(self._environment.path),
                self._environment.lmdb.begin(write=True) as transaction,
            ):
                self._environment.write_meta(transaction, *self._durable, cluster_id)
            self._renew_read()


def _pieces(items: Iterator[StoredItem]) -> Iterator[list[StoredItem]]:
    """Yield the items some at a time, bounded in number and in bytes."""
    piece: list[StoredItem] = []
    size_bytes = 0
    for item in items:
        piece.append(item)
        size_bytes += len(item[1])
        if len(piece) >= SLICE or size_bytes >= SLICE_SIZE_BYTES:
            yield piece
            piece, size_bytes = [], 0
    if piece:
        yield piece


def _write_keyspace(
    transaction: lmdb.Transaction, database: lmdb._Database, writes: dict[bytes, bytes | None]
) -> None:
    cursor = transaction.cursor(database)
    changes = iter(writes.items())
    while piece := sorted(islice(changes, SLICE)):
        cursor.putmulti(
            [(key, add_checksum(key, value)) for key, value in piece if value is not None]
        )
        for key, value in piece:
            if value is None:
                transaction.delete(key, db=database)
        time.sleep(NAP_S)
