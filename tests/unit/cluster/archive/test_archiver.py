"""What archivers write: with two at once, across gaps, with a store that fails."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.archive.archiver import Archiver
from cluster.archive.errors import ArchiveConflictError, ArchiveUnavailableError
from cluster.archive.object_store import open_store
from cluster.archive.reading import Archive, Replay
from cluster.archive.restoring import load_base
from datapath.keyspaces import KV
from datapath.records import Entry, Record, make_record
from datapath.storage.backup_format import (
    BackupEnd,
    BackupHeader,
    BackupWriter,
    make_compressor,
)
from datapath.storage.snapshot import SnapshotReader
from datapath.storage.store import Store
from tests.support.cluster import wait_until
from tests.support.made_archives import CLUSTER_ID

MAP_SIZE_BYTES = 1 << 26


def content(store: Store) -> list[tuple[bytes, bytes]]:
    return store.range(KV, b"", None, 1000)


class History:
    """A log that grows, and the keys at each revision."""

    def __init__(self, path: Path, seed: int = 1) -> None:
        self.records: list[Record] = []
        self.store = Store.open(path, map_size_bytes=MAP_SIZE_BYTES)
        self.contents = {0: content(self.store)}
        self.epoch = 1
        self.first_index = 1
        self._chosen = random.Random(seed)

    def grow(self, records: int) -> None:
        for _ in range(records):
            index = self.store.applied_index
            entries: list[Entry] = [
                [(KV, b"k%d" % self._chosen.randrange(5), self._chosen.randbytes(9))]
                for _ in range(self._chosen.randrange(1, 4))
            ]
            record = make_record(index + 1, self.epoch, 0, entries)
            for number, entry in enumerate(entries, index + 1):
                self.store.apply([entry], number, self.epoch)
                self.contents[number] = content(self.store)
            self.records.append(record)

    def drop_before(self, index: int) -> None:
        self.first_index = index


class Node:
    """One replica's part of the history, and a primary as far as it knows."""

    def __init__(self, history: History, name: str = "n1") -> None:
        self.history = history
        self.node_id = name
        self.is_primary = True
        self.views = SimpleNamespace(cluster_id=CLUSTER_ID)
        self.archived = 0
        self.lags_by = 0  # records that it has not heard to have committed
        self.takes = 100
        self.reported: list[str] = []

    @property
    def epoch(self) -> int:
        return self.history.epoch

    def share_archived(self, index: int) -> None:
        self.archived = index

    @property
    def _committed(self) -> list[Record]:
        records = self.history.records
        return records[: len(records) - self.lags_by]

    @property
    def commit_index(self) -> int:
        return self._committed[-1].last_index if self._committed else 0

    def epoch_at(self, index: int) -> int | None:
        for record in self.history.records:
            if record.first_index <= index <= record.last_index:
                return record.epoch
        return None

    def is_held(self, index: int) -> bool:
        return index >= self.history.first_index

    async def read(self, after: int, max_bytes: int) -> list[Record] | None:
        assert max_bytes
        if after + 1 < self.history.first_index:
            return None
        return [record for record in self._committed if record.last_index > after][: self.takes]

    def make_room(self) -> None:
        pass

    async def state(self, cluster: str, cluster_id: str) -> State:
        return State(self, cluster, cluster_id)


class State:
    """The state at a node's commit index, as a backup."""

    def __init__(self, node: Node, cluster: str, cluster_id: str) -> None:
        path = node.history.store.directory.parent / f"state-{random.randbytes(8).hex()}"
        self._store = Store.open(path, map_size_bytes=MAP_SIZE_BYTES)
        for record in node.history.records:
            if record.last_index <= node.commit_index:
                self._store.apply(record.entries(), record.last_index, record.epoch)
        self._store.flush()
        self.revision, self.epoch = self._store.applied_index, self._store.durable_epoch
        self.is_whole = False
        self._header = BackupHeader(
            revision=self.revision,
            epoch=self.epoch,
            cluster=cluster,
            cluster_id=cluster_id,
            node=node.node_id,
            created_s=0,
        )

    async def pieces(self) -> AsyncIterator[bytes]:
        reader, writer = SnapshotReader(self._store.acquire_environment()), BackupWriter()
        yield writer.begin(self._header)
        number = 0
        while (chunk := reader.read_chunk(number)) is not None:
            yield writer.compressed(make_compressor().compress(chunk))
            number += 1
        yield writer.end(BackupEnd(items=reader.count, digest=reader.checksum))
        reader.close()
        self.is_whole = True

    async def close(self) -> None:
        self._store.close()


class Objects:
    """A directory that fails on demand, and notices what would be replaced."""

    def __init__(self, root: Path) -> None:
        root.mkdir(exist_ok=True)
        self._inner = open_store(root.as_uri())
        self.url = self._inner.url
        self.fails_for = ""

    def put(self, name: str, parts: Iterable[bytes]) -> bool:
        if self.fails_for and self.fails_for in name:
            raise ArchiveUnavailableError(f"{name}: away")
        return self._inner.put(name, parts)

    def read(self, name: str) -> Iterator[bytes]:
        return self._inner.read(name)

    def names(self) -> Iterator[str]:
        return self._inner.names()


def make_archiver(node: Node, objects: Objects, *, base_interval_s: float = 1e9) -> Archiver:
    return Archiver(
        node,
        node,
        objects,
        cluster="shop",
        piece_interval_s=0.01,
        base_interval_s=base_interval_s,
        report=node.reported.append,
    )


async def turn(archiver: Archiver) -> None:
    """Archive all that there is, the base state included."""
    await archiver._round()
    if archiver._base is not None:
        await asyncio.wait([archiver._base])
        await archiver._round()


def check_every_revision(history: History, objects: Objects, scratch: Path) -> int:
    """Compare each revision that the archive reaches, from each base; return the last one."""
    archive = Archive(objects)
    for base in archive.catalog.bases:
        path = scratch / f"check-{random.randbytes(8).hex()}"
        load_base(archive, base, path, "", map_size_bytes=MAP_SIZE_BYTES)
        store = Store.open(path, map_size_bytes=MAP_SIZE_BYTES)
        chain = archive.catalog.chain(base.revision)
        replay = Replay(archive.records(chain), store)
        for revision in range(base.revision, chain[-1].last + 1 if chain else base.revision):
            replay.to(revision)
            assert content(store) == history.contents[revision]
        store.close()
    return archive.catalog.spans()[-1].last


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    history = History(tmp_path / "history")
    yield history
    history.store.close()


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(tmp_path / "archive")


@pytest.mark.parametrize("seed", range(4))
async def test_two_nodes_that_both_archive_write_one_archive(
    history: History, objects: Objects, tmp_path: Path, seed: int
) -> None:
    """They cut pieces at other places, know of other commit indices, and begin again at times."""
    chosen = random.Random(seed)
    nodes = [Node(history, "n1"), Node(history, "n2")]
    archivers = [make_archiver(node, objects, base_interval_s=0.2) for node in nodes]
    for _ in range(15):
        history.grow(chosen.randrange(1, 6))
        if chosen.random() < 0.2:
            history.epoch += 1
        which = chosen.randrange(2)
        nodes[which].lags_by = chosen.randrange(3)
        nodes[which].takes = chosen.randrange(1, 5)
        if chosen.random() < 0.2:
            archivers[which] = make_archiver(nodes[which], objects)
        await turn(archivers[which])
    nodes[0].lags_by = 0
    history.epoch += 1
    await turn(archivers[0])
    assert check_every_revision(history, objects, tmp_path) == history.store.applied_index
    assert not any(node.reported for node in nodes)


async def test_a_gap_is_reported_and_the_archive_begins_anew(
    history: History, objects: Objects, tmp_path: Path
) -> None:
    node = Node(history)
    archiver = make_archiver(node, objects)
    history.grow(5)
    await turn(archiver)
    before = history.store.applied_index
    history.grow(20)
    history.drop_before(history.records[10].first_index)
    await turn(archiver)
    at = history.store.applied_index
    text = (
        f"n1: the archive lacks revisions {before + 1} to {at - 1}: the log that was held up to "
        "archive.max_log_bytes does not go back so far. Nothing can be restored at them"
    )
    assert node.reported == [text]
    history.grow(5)
    await turn(archiver)
    assert check_every_revision(history, objects, tmp_path) == history.store.applied_index
    assert archiver.counters()["archive_gaps_total"] == 1


async def test_no_revision_is_told_before_the_state_that_it_follows_is_there(
    history: History, objects: Objects, tmp_path: Path
) -> None:
    node = Node(history)
    archiver = make_archiver(node, objects)
    history.grow(3)
    objects.fails_for = "/bases/"
    await archiver._round()
    history.grow(3)
    with pytest.raises(ArchiveUnavailableError, match="away"):
        await turn(archiver)
    state = archiver.state()
    assert state is not None
    assert (state.revision, node.archived) == (None, 0)
    assert any("/pieces/" in name for name in objects.names())
    objects.fails_for = ""
    await turn(archiver)
    state = archiver.state()
    assert state is not None
    assert state.revision == node.archived == history.store.applied_index
    assert check_every_revision(history, objects, tmp_path) == history.store.applied_index


async def test_a_base_that_was_there_before_its_pieces_leaves_no_gap(
    history: History, objects: Objects, tmp_path: Path
) -> None:
    """Its node ended, or a piece failed: whoever archives next puts what lies before that base."""
    node = Node(history)
    archiver = make_archiver(node, objects, base_interval_s=0.0)
    history.grow(3)
    await turn(archiver)
    history.grow(5)
    objects.fails_for = "/pieces/"
    with pytest.raises(ArchiveUnavailableError, match="away"):
        await archiver._round()
    assert archiver._base is not None
    await asyncio.wait([archiver._base])
    objects.fails_for = ""
    assert len(Archive(objects).catalog.spans()) == 2
    await turn(make_archiver(Node(history, "n2"), objects))
    assert len(Archive(objects).catalog.spans()) == 1
    assert check_every_revision(history, objects, tmp_path) == history.store.applied_index


async def test_a_gap_that_cannot_be_filled_is_told_by_whoever_finds_it(
    history: History, objects: Objects, tmp_path: Path
) -> None:
    node = Node(history)
    archiver = make_archiver(node, objects, base_interval_s=0.0)
    history.grow(3)
    await turn(archiver)
    before = history.store.applied_index
    history.grow(5)
    objects.fails_for = "/pieces/"
    with pytest.raises(ArchiveUnavailableError, match="away"):
        await archiver._round()
    assert archiver._base is not None
    await asyncio.wait([archiver._base])
    at = history.store.applied_index
    objects.fails_for = ""
    history.drop_before(at)
    other = Node(history, "n2")
    for _ in range(2):
        history.epoch += 1
        history.grow(3)
        await turn(archiver := make_archiver(other, objects))
    assert other.reported
    assert f"n2: the archive lacks revisions {before + 1} to {at - 1}:" in other.reported[0]
    assert check_every_revision(history, objects, tmp_path) == history.store.applied_index


async def test_a_round_ends_while_writes_go_on(history: History, objects: Objects) -> None:
    """Else a busy cluster would put a piece for each few writes, and not one an interval."""
    node = Node(history)
    archiver = make_archiver(node, objects)
    history.grow(3)
    put = objects.put

    def put_while_writing(name: str, parts: Iterable[bytes]) -> bool:
        if "/pieces/" in name:
            history.grow(2)
        return put(name, parts)

    await turn(archiver)
    history.grow(3)
    objects.put = put_while_writing  # type: ignore[method-assign]
    await archiver._round()
    assert archiver.counters()["archive_pieces_total"] == 1


async def test_what_failed_is_written_again(
    history: History, objects: Objects, tmp_path: Path
) -> None:
    node = Node(history)
    archiver = make_archiver(node, objects)
    history.grow(3)
    await turn(archiver)
    running = asyncio.create_task(archiver.run())
    objects.fails_for = "/pieces/"
    history.grow(3)
    archiver._marks.note(node.commit_index, 1)
    await wait_until(lambda: archiver.counters()["archive_failing"] == 1, "it fails")
    state = archiver.state()
    assert state is not None
    assert "away" in state.problem
    assert state.lag_ms > 0
    objects.fails_for = ""
    at = history.store.applied_index
    await wait_until(lambda: archiver.counters()["archive_revision"] == at, "it has caught up")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert check_every_revision(history, objects, tmp_path) == history.store.applied_index
    assert archiver.counters()["archive_lag_seconds"] == 0


async def test_another_history_of_the_same_cluster_is_not_mixed_in(
    history: History, objects: Objects, tmp_path: Path
) -> None:
    history.grow(5)
    history.epoch = 4
    history.grow(5)
    await turn(make_archiver(Node(history), objects))
    held = sorted(objects.names())
    other = History(tmp_path / "other")  # an older copy of the data, which went on
    other.epoch = 3
    other.grow(30)
    with pytest.raises(ArchiveConflictError, match="data that this cluster has lost"):
        await turn(make_archiver(Node(other), objects))
    assert sorted(objects.names()) == held
    other.store.close()


async def test_another_history_with_the_same_epochs_is_not_mixed_in(
    history: History, objects: Objects, tmp_path: Path
) -> None:
    """As of a cluster all of whose disks were put back: its epochs are given out again."""
    history.grow(10)
    await turn(make_archiver(Node(history), objects))
    history.grow(10)
    await turn(make_archiver(Node(history), objects))
    held = sorted(objects.names())
    assert len(held) == 2, "a base and a piece after it"
    other = History(tmp_path / "other", seed=2)
    other.records = history.records[:15]
    for record in other.records:
        other.store.apply(record.entries(), record.last_index, record.epoch)
    node = Node(other)
    archiver = make_archiver(node, objects)
    await turn(archiver)  # the archive is ahead, as it is of a primary that has just begun
    other.grow(30)
    for dropped in (1, other.records[16].first_index):  # some of the piece is enough
        other.drop_before(dropped)
        with pytest.raises(ArchiveConflictError, match="data that this cluster has lost"):
            await turn(archiver)
        archiver = make_archiver(node, objects)
    assert sorted(objects.names()) == held
    other.store.close()
