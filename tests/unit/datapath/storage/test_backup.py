"""A backup is one state at one revision, or an error that names the place (B1)."""

from __future__ import annotations

import io
import itertools
import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from datapath.errors import (
    BackupDamagedError,
    BackupError,
    BackupRefusedError,
    DataDirectoryError,
    DiskFailedError,
)
from datapath.keyspaces import KEYSPACES, KV
from datapath.storage.backup import check_read_back, load_backup, verify_backup
from datapath.storage.backup_format import (
    BACKUP_MAGIC,
    BackupEnd,
    BackupHeader,
    BackupReader,
    BackupWriter,
    make_compressor,
)
from datapath.storage.data_directory import DataDirectory
from datapath.storage.founding import (
    MAX_FIRST_REVISION,
    REVISION_MARGIN,
    Founded,
    Founding,
    continue_after,
)
from datapath.storage.read_back import ReadBack, ReadBackProcess
from datapath.storage.snapshot import SnapshotReader, SnapshotWriter
from datapath.storage.store import Store

CHUNK_BYTES = 2000
POSITION = (400, 3)
MAP_BYTES = 1 << 30
MOST_OF_A_LEAF = 4096 // 16  # items: LMDB's page by the smallest one


def make_store(path: Path) -> Store:
    store = Store.open(path, cluster_id="c1")
    chance = random.Random(1)
    store.apply(
        [
            [(number % KEYSPACES, b"%d" % chance.randrange(10**6), chance.randbytes(20))]
            for number in range(POSITION[0])
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
        pieces.append(writer.compressed(make_compressor().compress(chunk)))
        number += 1
    pieces.append(writer.end(BackupEnd(items=reader.count, digest=reader.checksum)))
    reader.close()
    return b"".join(pieces)


def open_backup(content: bytes) -> BackupReader:
    return BackupReader(io.BytesIO(content), "x.backup")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "source")


def restore(content: bytes, path: Path, *, age_s: float = 0.0) -> Founded:
    founding = Founding(path, "n1")
    reader = open_backup(content)
    try:
        load_backup(reader, founding.store, founding.cluster_id)
        header = reader.header
        return founding.finish(header.revision, header.epoch, MAP_BYTES, age_s=age_s)
    finally:
        founding.abort()


def test_a__has_the_state_of_the_backup_and_begins_above_it(store: Store, tmp_path: Path) -> None:
    founded = restore(back_up(store), tmp_path / "n1", age_s=60)
    assert (founded.kept_index, founded.kept_epoch) == POSITION
    assert (founded.next_index, founded.next_epoch) == continue_after(*POSITION, 60)
    directory = DataDirectory.open(tmp_path / "n1", node_id="n1")
    assert directory.cluster_id == founded.cluster_id != "c1"
    assert directory.first_epoch == founded.next_epoch
    directory.close()
    again = Store.open(tmp_path / "n1" / "store", cluster_id=founded.cluster_id)
    assert again.digest() == (founded.next_index - 1, store.digest()[1])
    again.close()


def test_a_second_restore_of_a_backup_begins_above_all_that_the_first_has_given_out() -> None:
    for age_s in (-5.0, 0.0, 1.0, 3600.0):
        first, epoch = continue_after(7, 2, age_s)
        assert first > 7 + REVISION_MARGIN
        later = continue_after(7, 2, max(age_s, 0) + 10)
        assert later > (first + 9 * 900_000, epoch)
        assert later[1] > epoch + 5
    with pytest.raises(DataDirectoryError, match="Set the clock"):
        continue_after(MAX_FIRST_REVISION - 10, 1, 0)


def test_a_backup_that_is_cut_at_any_byte_is_none(store: Store) -> None:
    content = back_up(store)
    assert verify_backup(open_backup(content)).items == POSITION[0]
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
    compress = make_compressor().compress
    mixed += [writer.compressed(compress(c)) for c in open_backup(back_up(other)).chunks()]
    mixed.append(writer.end(BackupEnd(items=1, digest=store.digest()[1])))
    for use in (verify_backup, lambda reader: load_backup(reader, tmp_path / "new", "c2")):
        with pytest.raises(BackupDamagedError, match="digest"):
            use(open_backup(b"".join(mixed)))


@pytest.mark.parametrize("field", ["format", "store_format"])
def test_a_backup_of_another_format_is_refused_by_name(store: Store, field: str) -> None:
    content = back_up(store, **{field: 99}, written_by="9.0")
    with pytest.raises(BackupRefusedError, match=rf"{field} 99, .*the version .*\(9\.0\)"):
        open_backup(content)


def test_a_restore_that_fails_leaves_an_empty_directory(store: Store, tmp_path: Path) -> None:
    with pytest.raises(BackupDamagedError):
        restore(back_up(store)[:-1], tmp_path / "n1")
    assert not list((tmp_path / "n1").iterdir())


def test_what_the_disk_holds_is_compared_with_the_backup(store: Store) -> None:
    _, digest = store.digest()
    store.close()
    with closing(ReadBackProcess(store.file.parent, MAP_BYTES)) as back:
        items, found = back.result()
    check_read_back(items, found, BackupEnd(items=POSITION[0], digest=digest))
    for other in (BackupEnd(items=items, digest="0" * 32), BackupEnd(items=1, digest=digest)):
        with pytest.raises(BackupDamagedError, match="restored state has 400 items and the digest"):
            check_read_back(items, found, other)


def test_a_bit_that_the_disk_has_flipped_gives_another_digest(store: Store) -> None:
    _, digest = store.digest()
    (_, value), *_ = store.range(KV, b"", None, 1)
    store.close()
    content = bytearray(store.file.read_bytes())
    content[content.index(value)] ^= 1
    store.file.write_bytes(content)
    with closing(ReadBackProcess(store.file.parent, MAP_BYTES)) as back:
        assert back.result() not in {(POSITION[0], digest), (0, "")}


def test_a_store_is_read_back_while_it_is_loaded(store: Store, tmp_path: Path) -> None:
    """Whatever is durable when: each item is read once, of no page that is written again."""
    _, digest = store.digest()
    chunks = list(open_backup(back_up(store)).chunks())
    target = tmp_path / "target"
    target.mkdir()
    ends: list[int] = []
    for seed in range(20):
        chance = random.Random(seed)
        writer = SnapshotWriter(target, *POSITION)
        writer.on_durable = ends.append
        reader = ReadBack(writer._open_environment())  # no process can open one twice

        def durable(
            writer: SnapshotWriter = writer,
            reader: ReadBack = reader,
            chance: random.Random = chance,
        ) -> Iterator[int]:
            for number, chunk in enumerate(chunks):
                writer.feed(number, chunk)
                if chance.random() < 0.5:
                    yield writer.count
                    assert reader.total.count <= max(0, writer.count - MOST_OF_A_LEAF)

        reader.follow(durable())
        assert (reader.total.count, reader.total.hex()) == (POSITION[0], digest)
        writer.abort()


def test_a_process_that_reads_back_and_ends_is_a_disk_that_failed(store: Store) -> None:
    store.close()
    with closing(ReadBackProcess(store.file.parent, MAP_BYTES)) as back:
        back.close()
        with pytest.raises(DiskFailedError, match="cannot be read back: it ended"):
            back.result()
    store.file.write_bytes(b"x" * 100_000)
    with (
        closing(ReadBackProcess(store.file.parent, MAP_BYTES)) as back,
        pytest.raises(DiskFailedError, match=r"cannot be read back: store .* cannot be opened"),
    ):
        back.result()
