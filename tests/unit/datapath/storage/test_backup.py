"""A backup is one state at one revision, or an error that names the place (B1)."""

from __future__ import annotations

import io
import itertools
import random
from pathlib import Path

import msgspec
import pytest

from datapath.errors import (
    BackupDamagedError,
    BackupError,
    BackupRefusedError,
    DataDirectoryError,
)
from datapath.keyspaces import KEYSPACES, KV
from datapath.new_cluster import MAX_FIRST_REVISION, REVISION_MARGIN, Position, begin_after
from datapath.storage.backup_format import (
    BACKUP_MAGIC,
    BackupEnd,
    BackupHeader,
    BackupReader,
    BackupWriter,
)
from datapath.storage.data_directory import RESTORING, DataDirectory
from datapath.storage.restored_directory import (
    RestoredDirectory,
    load_backup,
    verify_backup,
)
from datapath.storage.snapshot import SnapshotReader
from datapath.storage.store import Store

CHUNK_BYTES = 2000
POSITION = Position(400, 3)


def make_store(path: Path) -> Store:
    store = Store.open(path, cluster_id="c1")
    chance = random.Random(1)
    store.apply(
        [
            [(number % KEYSPACES, b"%d" % chance.randrange(10**6), chance.randbytes(20))]
            for number in range(POSITION.revision)
        ],
        *POSITION,
    )
    store.flush()
    return store


def back_up(store: Store, **changes: object) -> bytes:
    """Return a backup of a store; `changes` are of its header."""
    reader = SnapshotReader(store.acquire_environment(), chunk_size_bytes=CHUNK_BYTES)
    header = BackupHeader(
        revision=reader.index,
        epoch=reader.epoch,
        cluster="demo",
        cluster_id="c1",
        node="n1",
        created_s=1000,
    )
    writer = BackupWriter()
    pieces = [writer.begin(msgspec.structs.replace(header, **changes))]
    number = 0
    while (chunk := reader.read_chunk(number)) is not None:
        pieces.append(writer.chunk(chunk))
        number += 1
    pieces.append(writer.end(BackupEnd(items=reader.count, digest=reader.checksum)))
    reader.close()
    return b"".join(pieces)


def open_backup(content: bytes) -> BackupReader:
    return BackupReader(io.BytesIO(content), "x.backup")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "source")


def test_a_restored_directory_has_the_state_of_the_backup_and_begins_above_it(
    store: Store, tmp_path: Path
) -> None:
    reader = open_backup(back_up(store))
    with RestoredDirectory.open(tmp_path / "n1", "n1") as restored:
        digest = load_backup(reader, restored.store_path)
        founded = restored.found(age_s=60, digest=digest)
    assert digest == founded.digest == store.digest()[1]
    assert founded.state == POSITION
    assert founded.begins_after == begin_after(POSITION, 60) > POSITION
    assert not (tmp_path / "n1" / RESTORING).exists()
    directory = DataDirectory.open(tmp_path / "n1", node_id="n1")
    assert directory.cluster_id == founded.cluster_id != "c1"
    assert directory.first_epoch == founded.begins_after.epoch + 1
    with pytest.raises(ValueError, match="restored"):
        directory.discard()  # as an empty one of a node that is not let in
    directory.close()
    again = Store.open(tmp_path / "n1" / "store", cluster_id=founded.cluster_id)
    assert again.digest() == (founded.begins_after.revision, digest)
    assert (again.durable_index, again.durable_epoch) == founded.begins_after
    again.close()


def test_revisions_go_on_above_all_that_may_have_been_given_out() -> None:
    state = Position(7, 2)
    before = begin_after(state, -5)
    assert before.revision >= 7 + REVISION_MARGIN
    # Two clusters from one backup: the second begins above all that the first has given out.
    for age_s in (0, 1, 3600):
        given_out = begin_after(state, age_s).revision + 500_000
        assert begin_after(state, age_s + 1).revision > given_out
        assert begin_after(state, age_s + 1).epoch > begin_after(state, age_s).epoch
    with pytest.raises(ValueError, match="clock"):
        begin_after(Position(MAX_FIRST_REVISION - 10, 1), 0)


def test_a_backup_that_is_cut_at_any_byte_is_none(store: Store) -> None:
    content = back_up(store)
    assert verify_backup(open_backup(content)).items == POSITION.revision
    for length in range(len(content)):
        with pytest.raises(BackupDamagedError, match=r"cut off at byte|is empty|not a backup"):
            verify_backup(open_backup(content[:length]))


def test_a_flipped_bit_is_named_by_its_block(store: Store) -> None:
    content = back_up(store)
    blocks = _block_starts(content)
    chance = random.Random(2)
    for at in {*range(120), *chance.sample(range(len(content)), 500), len(content) - 1}:
        damaged = bytearray(content)
        damaged[at] ^= 1 << chance.randrange(8)
        with pytest.raises(BackupError) as caught:
            verify_backup(open_backup(bytes(damaged)))
        if at >= len(BACKUP_MAGIC):
            number = max(n for n, start in enumerate(blocks) if start <= at)
            assert f"damaged in block {number}, bytes {blocks[number]} to" in str(caught.value)


def _block_starts(content: bytes) -> list[int]:
    starts, at = [], len(BACKUP_MAGIC)
    while at < len(content):
        starts.append(at)
        at += 21 + int.from_bytes(content[at + 9 : at + 13], "little")
    return starts


def test_blocks_that_are_missing_swapped_or_too_many_are_noticed(store: Store) -> None:
    content = back_up(store)
    starts = [*_block_starts(content), len(content)]
    blocks = [content[a:b] for a, b in itertools.pairwise(starts)]
    for order in (
        [*blocks[:3], *blocks[4:]],
        [*blocks[:2], blocks[3], blocks[2], *blocks[4:]],
        [*blocks, blocks[-1]],
        blocks[1:],
    ):
        with pytest.raises(BackupDamagedError):
            verify_backup(open_backup(BACKUP_MAGIC + b"".join(order)))
    with pytest.raises(BackupDamagedError, match=f"goes on after its end, at byte {len(content)}"):
        verify_backup(open_backup(content + b"\n"))


def test_a_backup_whose_items_are_not_those_that_were_read_is_refused(
    store: Store, tmp_path: Path
) -> None:
    other = Store.open(tmp_path / "other")
    other.apply([[(KV, b"a", b"1")]], 1, 1)
    other.flush()
    mixed, writer = [], BackupWriter()
    header = open_backup(back_up(store)).header
    mixed.append(writer.begin(header))
    mixed += [writer.chunk(chunk) for chunk in open_backup(back_up(other)).chunks()]
    mixed.append(writer.end(BackupEnd(items=1, digest=store.digest()[1])))
    for use in (verify_backup, lambda reader: load_backup(reader, _new(tmp_path))):
        with pytest.raises(BackupDamagedError, match="digest"):
            use(open_backup(b"".join(mixed)))


def _new(tmp_path: Path) -> Path:
    path = tmp_path / "new"
    path.mkdir()
    return path


@pytest.mark.parametrize("field", ["format", "store_format"])
def test_a_backup_of_another_format_is_refused_by_name(store: Store, field: str) -> None:
    content = back_up(store, **{field: 99}, written_by="9.0")
    with pytest.raises(BackupRefusedError, match=rf"{field} 99, .*the version .*\(9\.0\)"):
        open_backup(content)


def test_a_directory_that_is_not_empty_stays_as_it_is(tmp_path: Path) -> None:
    target = tmp_path / "n1"
    target.mkdir(mode=0o755)
    (target / "notes.txt").write_text("mine")
    with pytest.raises(DataDirectoryError, match=r"not empty: it holds notes\.txt"):
        RestoredDirectory.open(target, "n1")
    assert [item.name for item in target.iterdir()] == ["notes.txt"]
    assert target.stat().st_mode & 0o777 == 0o755


def test_a_mount_point_is_empty_and_a_directory_in_use_is_not(tmp_path: Path) -> None:
    (tmp_path / "n1" / "lost+found").mkdir(parents=True)
    with RestoredDirectory.open(tmp_path / "n1", "n1"):
        with pytest.raises(DataDirectoryError, match="in use by process"):
            RestoredDirectory.open(tmp_path / "n1", "n1")
        with pytest.raises(DataDirectoryError, match="in use by process"):
            DataDirectory.open(tmp_path / "n1", node_id="n1")


def test_a_restore_that_fails_leaves_an_empty_directory(store: Store, tmp_path: Path) -> None:
    content = back_up(store)
    with (
        pytest.raises(BackupDamagedError),
        RestoredDirectory.open(tmp_path / "n1", "n1") as restored,
    ):
        load_backup(open_backup(content[:-1]), restored.store_path)
    assert [item.name for item in (tmp_path / "n1").iterdir()] == ["lock"]


def test_an_interrupted_restore_is_refused_by_a_node_and_made_anew(
    store: Store, tmp_path: Path
) -> None:
    interrupted = RestoredDirectory.open(tmp_path / "n1", "n1")
    load_backup(open_backup(back_up(store)), interrupted.store_path)
    interrupted.leave()  # as after a kill -9
    with pytest.raises(DataDirectoryError, match="a restore into it was interrupted"):
        DataDirectory.open(tmp_path / "n1", node_id="n1")
    with RestoredDirectory.open(tmp_path / "n1", "n1") as restored:
        digest = load_backup(open_backup(back_up(store)), restored.store_path)
        restored.found(age_s=0, digest=digest)
    DataDirectory.open(tmp_path / "n1", node_id="n1").close()
