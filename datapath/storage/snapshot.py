"""Snapshots: the whole state at one (index, epoch), in numbered chunks.

`SnapshotReader` reads it inside one LMDB read transaction while writes go on; `SnapshotWriter`
builds a new environment beside the live one, which takes over in one atomic step. Neither holds
more than a chunk in memory. A chunk, the same for as long as the reader lives, is MessagePack
[[keyspace, key, stored], …], in order of (keyspace, key); `stored` is what the environment holds
under the key, its checksum included. The checksum over all is the content's hash, the same as
`Store.digest` gives at that index; each chunk's own is the transfer's.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TypeVar

import lmdb
import msgspec

from datapath.keyspaces import KEYSPACES
from datapath.storage.data_directory import storage_error, sync_file
from datapath.storage.environment import (
    DEFAULT_MAP_SIZE_BYTES,
    NAP_S,
    SLICE,
    ContentHash,
    Environment,
    lmdb_failure,
    next_environment,
    set_current,
    verify_checksum,
    writing,
)

DEFAULT_CHUNK_SIZE_BYTES = 512 * 1024
WRITE_BACK_BYTES = 16 * 1024 * 1024
"""How much a writer leaves to the kernel before it begins to make it durable."""

_Item = tuple[int, bytes, bytes]
_Stored = TypeVar("_Stored", bytes, memoryview)
_Group = tuple[int, list[tuple[bytes, _Stored]]]
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[tuple[int, bytes, memoryview]])


class SnapshotReader:
    """Reads an environment as it was when this was made; a store's overlay is not in it.

    One thread at a time. While it lives LMDB cannot reuse the pages it sees: `close` it, which
    releases the environment.
    """

    def __init__(
        self, environment: Environment, *, chunk_size_bytes: int = DEFAULT_CHUNK_SIZE_BYTES
    ) -> None:
        self._environment = environment
        self._transaction = environment.lmdb.begin()
        self._chunk_size_bytes = chunk_size_bytes
        self._starts: list[tuple[int, bytes]] = [(0, b"")]  # where each chunk starts
        self._hash = ContentHash()
        self._complete = False
        self.index, self.epoch = self._environment.state(self._transaction)

    def close(self) -> None:
        """Let go of the store's pages. Closing twice is harmless."""
        if not self._closed():
            self._transaction.abort()
            self._environment.release()
            del self._environment

    def _closed(self) -> bool:
        return not hasattr(self, "_environment")

    def read_chunk(self, number: int) -> bytes | None:
        """Return a chunk, or None after the last one.

        Any chunk that was read before may be read again, and the one after it.

        Raises:
            ValueError: a chunk before it has not been read yet.
            StorageError: the store cannot be read.

        """
        if number >= len(self._starts):
            if self._complete:
                return None
            raise ValueError(f"chunk {number} asked for before chunk {len(self._starts) - 1}")
        if self._complete and number == len(self._starts) - 1:
            return None
        try:
            items, following = self._collect(*self._starts[number])
        except lmdb.Error as error:
            raise lmdb_failure(error, self._environment.path) from error
        if number == len(self._starts) - 1:
            for keyspace, group in _by_keyspace(items):
                self._hash.update(keyspace, group)
            if items:
                self._starts.append(following)
            self._complete = following[0] == KEYSPACES
        if not items:
            return None
        return _encoder.encode(items)

    def _collect(self, keyspace: int, start: bytes) -> tuple[list[_Item], tuple[int, bytes]]:
        """Return a chunk's items, and where the next one starts: KEYSPACES for nowhere."""
        items: list[_Item] = []
        room = self._chunk_size_bytes
        while keyspace < KEYSPACES:
            cursor = self._transaction.cursor(self._environment.keyspaces[keyspace])
            if cursor.set_range(start) if start else cursor.first():
                for key, stored in cursor.iternext():
                    if room <= 0:
                        return items, (keyspace, key)
                    verify_checksum(key, stored, self._environment.path)
                    items.append((keyspace, key, stored))
                    if not len(items) % SLICE:
                        time.sleep(NAP_S)
                    room -= len(key) + len(stored) + 8
            keyspace, start = keyspace + 1, b""
        return items, (KEYSPACES, b"")

    @property
    def checksum(self) -> str:
        """The hash over all; known when all chunks were read. Raises ValueError before."""
        self._check_complete()
        return self._hash.hex()

    @property
    def count_so_far(self) -> int:
        """How many items were in the chunks that have been read."""
        return self._hash.count

    @property
    def count(self) -> int:
        """How many items there are; known when all chunks were read. Raises ValueError before."""
        self._check_complete()
        return self._hash.count

    def _check_complete(self) -> None:
        if not self._complete:
            raise ValueError("the snapshot has not been read to its end")


class SnapshotWriter:
    """Builds the state at (index, epoch) in a new environment beside the live one.

    `feed` the chunks in order, `finish`, `install`, then `Store.reopen`. A crash before `install`
    leaves the old store, one after it the new; what is left over goes when the store is opened.
    One thread at a time, and one writer at a time for a store.
    """

    def __init__(
        self,
        directory: str | Path,
        index: int,
        epoch: int,
        *,
        cluster_id: str = "",
        map_size_bytes: int = DEFAULT_MAP_SIZE_BYTES,
    ) -> None:
        self.index = index
        self.epoch = epoch
        self.next_chunk = 0
        self._directory = Path(directory)
        self.count = 0
        """How many items were taken."""
        self._cluster_id = cluster_id
        self.on_durable: Callable[[int], object] | None = None
        """Is told now and then how many of the items are durable.

        With it, this is not fed beside a live node, and whoever feeds it checks the digest.
        """
        self._hash = ContentHash()
        self._syncer = ThreadPoolExecutor(1, "snapshot-sync")
        self._sync: Future[None] | None = None
        self._syncing_count = 0
        self._unsynced_bytes = 0
        self._finished = False
        self._installed = False
        self.path = next_environment(self._directory)
        try:
            self.path.mkdir(mode=0o700)
        except OSError as error:
            raise storage_error(error, f"making {self.path}") from error
        # Nothing counts before `finish` has synced it.
        try:
            self._environment: Environment | None = Environment(
                self.path, map_size_bytes, fresh=True, sync=False
            )
        except BaseException:
            shutil.rmtree(self.path, ignore_errors=True)
            raise

    def feed(self, number: int, chunk: bytes) -> None:
        """Take the chunk `next_chunk`; one taken before is passed over.

        Raises:
            ValueError: not the next one, damaged, or not in order: ask for it again.
            DiskFullError: it was not taken; try again later, or `abort`.
            DiskFailedError: `abort`.

        """
        environment = self._open_environment()
        if number < self.next_chunk:
            return
        if number > self.next_chunk:
            raise ValueError(f"chunk {number} arrived, but {self.next_chunk} is next")
        groups = snapshot_items(chunk)
        if not all(0 <= keyspace < KEYSPACES for keyspace, _ in groups):
            raise ValueError(f"chunk {number} names a keyspace that does not exist")
        with writing(self.path, len(chunk) * 2):
            self._write(environment, number, groups)
        for keyspace, items in groups:
            self.count += len(items)
            if self.on_durable is None:
                self._hash.update(keyspace, items)
        self.next_chunk += 1
        self._unsynced_bytes += len(chunk)
        if self._unsynced_bytes >= WRITE_BACK_BYTES and (self._sync is None or self._sync.done()):
            self._await_sync()
            self._sync = self._syncer.submit(sync_file, self.path / "data.mdb")
            self._syncing_count = self.count
            self._unsynced_bytes = 0

    def _await_sync(self) -> None:
        """Wait for the sync that runs, if any. Raises DiskFullError or DiskFailedError."""
        if self._sync is not None:
            try:
                self._sync.result()
            except OSError as error:
                raise storage_error(error, f"writing {self.path}") from error
            if self.on_durable is not None:
                self.on_durable(self._syncing_count)

    def _write(
        self, environment: Environment, number: int, groups: list[_Group[memoryview]]
    ) -> None:
        try:
            with environment.lmdb.begin(write=True) as transaction:
                for keyspace, items in groups:
                    cursor = transaction.cursor(environment.keyspaces[keyspace])
                    for at in range(0, len(items), SLICE):
                        piece = items[at : at + SLICE]
                        if cursor.putmulti(piece, append=True)[1] != len(piece):
                            raise ValueError(f"chunk {number} is not in key order")
                        if self.on_durable is None:
                            time.sleep(NAP_S)
        except lmdb.BadValsizeError as error:
            raise ValueError(f"chunk {number} holds an impossible key") from error

    def finish(self, expected_checksum: str, count: int) -> None:
        """Check the whole and make it durable.

        Raises:
            ValueError: it is not what the reader read: `abort`, and start again.
            DiskFullError, DiskFailedError: it could not be made durable: `abort`.

        """
        environment = self._open_environment()
        digest = self._hash.hex() if self.on_durable is None else expected_checksum
        if (digest, self.count) != (expected_checksum, count):
            raise ValueError(
                f"the snapshot's {self.count} items are not the {count} that were sent, or "
                "their digest is wrong"
            )
        self._await_sync()
        self._syncer.shutdown()
        with writing(self.path, 1 << 20):
            with environment.lmdb.begin(write=True) as transaction:
                environment.write_meta(transaction, self.index, self.epoch, self._cluster_id)
            environment.lmdb.sync(force=True)
        environment.release()
        self._environment = None
        self._finished = True

    def install(self) -> None:
        """Make it the live environment, atomically and durably; then call `Store.reopen`.

        Raises DiskFullError or DiskFailedError: the old one is still live.
        """
        if not self._finished:
            raise ValueError("the snapshot is not finished")
        # Set first: CURRENT may name it even when this fails.
        self._installed = True
        try:
            set_current(self._directory, self.path.name)
        except OSError as error:
            raise storage_error(error, f"installing {self.path}") from error

    def abort(self) -> None:
        """Give up, and delete what was written. After `install` it does nothing: that is live."""
        if self._installed:
            return
        self._syncer.shutdown()
        if self._environment is not None:
            self._environment.release()
            self._environment = None
        shutil.rmtree(self.path, ignore_errors=True)

    def _open_environment(self) -> Environment:
        if self._environment is None:
            raise ValueError("the snapshot writer is finished or aborted")
        return self._environment


def snapshot_items(chunk: bytes) -> list[_Group[memoryview]]:
    """Return a chunk's (keyspace, [(key, stored), …]) in order. Raises ValueError."""
    try:
        return _by_keyspace(_decoder.decode(chunk))
    except msgspec.MsgspecError as error:
        raise ValueError(f"a chunk is damaged: {error}") from error


def _by_keyspace(items: Iterable[tuple[int, bytes, _Stored]]) -> list[_Group[_Stored]]:
    return [
        (keyspace, [(key, stored) for _, key, stored in group])
        for keyspace, group in groupby(items, key=itemgetter(0))
    ]
