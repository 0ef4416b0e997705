"""Damage and crashes at every place: never a wrong record, never a silent loss."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from datapath.errors import LogCorruptError
from datapath.records import Record
from datapath.storage.log import Log
from datapath.storage.segment import SEGMENT_HEADER_SIZE_BYTES, SYNC_MARK_SIZE_BYTES
from tests.unit.datapath.storage.storage_faults import (
    SEGMENT_SIZE_BYTES,
    Crash,
    FailingFiles,
    abandon,
    held,
    record,
    records,
)


def open_log(directory: Path, **options: object) -> Log:
    return Log.open(directory, segment_size_bytes=SEGMENT_SIZE_BYTES, **options)  # type: ignore[arg-type]


def build(directory: Path, groups: list[list[Record]], *, clean: bool = False) -> list[int]:
    """Write groups, a sync after each; return the offset in the last segment after each."""
    log = open_log(directory)
    ends = []
    for group in groups:
        log.append(group, durable=True)
        ends.append(log._segments[-1].end)
    if clean:
        log.close()
    else:
        abandon(log)
    return ends


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x41]))


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.seg"))


GROUPS = [records(1, 3), records(4, 3), records(7, 3), records(10, 3)]
ALL = [item.data for group in GROUPS for item in group]


def test_a_flipped_byte_anywhere_in_the_last_group_cuts_it_off_and_nothing_else(
    tmp_path: Path,
) -> None:
    ends = build(tmp_path / "whole", GROUPS)
    for offset in range(ends[2], ends[3]):
        directory = tmp_path / "log"
        shutil.copytree(tmp_path / "whole", directory)
        path = segments(directory)[0]
        flip(path, offset)
        log = open_log(directory)
        assert log.tail_cut
        assert log.cut is not None
        found = held(log)
        assert 9 <= len(found) < 12
        assert found == ALL[: len(found)]
        assert log.cut.path == str(path)
        assert log.cut.offset <= offset < log.cut.offset + log.cut.size_bytes
        assert path.read_bytes()[log.cut.offset :].count(0) == len(
            path.read_bytes()[log.cut.offset :]
        )
        log.append([record(log.last_index + 1)], durable=True)
        abandon(log)
        log = open_log(directory)
        assert not log.tail_cut
        assert held(log)[:-1] == found
        log.close()
        shutil.rmtree(directory)


@pytest.mark.parametrize("zeros", [True, False], ids=["zeros after it", "the file ends"])
def test_a_tail_torn_at_every_byte_keeps_all_whole_records_before(
    tmp_path: Path, zeros: bool
) -> None:
    ends = build(tmp_path / "whole", GROUPS)
    sizes = [SYNC_MARK_SIZE_BYTES, *(len(item.data) for item in GROUPS[3])]
    boundaries = {ends[2] + sum(sizes[:count]) for count in range(len(sizes) + 1)}
    for offset in range(ends[2] + 1, ends[3]):
        directory = tmp_path / "log"
        shutil.copytree(tmp_path / "whole", directory)
        path = segments(directory)[0]
        original = path.read_bytes()
        content = original[:offset]
        path.write_bytes(content.ljust(SEGMENT_SIZE_BYTES, b"\0") if zeros else content)
        log = open_log(directory)
        found = held(log)
        assert found == ALL[: len(found)]
        assert len(found) >= 9
        # A tear right after a frame (or where only zeros are missing) shows nothing torn.
        whole = {original[:end].ljust(SEGMENT_SIZE_BYTES, b"\0") for end in boundaries}
        torn = offset not in boundaries
        if zeros:
            torn = content.ljust(SEGMENT_SIZE_BYTES, b"\0") not in whole
        assert log.tail_cut is torn
        abandon(log)
        shutil.rmtree(directory)


def test_a_flipped_byte_in_any_group_but_the_last_is_refused_and_named(tmp_path: Path) -> None:
    ends = build(tmp_path / "whole", GROUPS)
    for offset in range(SEGMENT_HEADER_SIZE_BYTES, ends[2]):
        directory = tmp_path / "log"
        shutil.copytree(tmp_path / "whole", directory)
        path = segments(directory)[0]
        flip(path, offset)
        before = path.read_bytes()
        with pytest.raises(LogCorruptError) as caught:
            open_log(directory)
        error = caught.value
        assert error.path == str(path)
        assert error.offset <= offset
        assert path.read_bytes() == before  # refusing changes nothing
        log = open_log(directory, salvage=True)
        assert held(log) == ALL[: error.last_good_index]
        assert log.repairs
        copies = list(directory.glob("damaged-*/*.seg"))
        assert [copy.read_bytes() for copy in copies] == [before]
        abandon(log)
        shutil.rmtree(directory)


def test_every_byte_of_a_segment_header_counts(tmp_path: Path) -> None:
    build(tmp_path / "whole", GROUPS)
    for offset in range(40):
        directory = tmp_path / "log"
        shutil.copytree(tmp_path / "whole", directory)
        flip(segments(directory)[0], offset)
        with pytest.raises(LogCorruptError) as caught:
            open_log(directory)
        assert caught.value.last_good_index == 0
        shutil.rmtree(directory)


def test_after_a_clean_close_the_last_group_is_known_to_have_been_durable(tmp_path: Path) -> None:
    ends = build(tmp_path / "log", GROUPS, clean=True)
    flip(segments(tmp_path / "log")[0], ends[3] - 1)
    with pytest.raises(LogCorruptError):
        open_log(tmp_path / "log")


def test_damage_that_the_store_has_in_full_only_makes_the_log_start_later(tmp_path: Path) -> None:
    ends = build(tmp_path / "log", GROUPS)
    flip(segments(tmp_path / "log")[0], ends[1] - 1)  # entry 6
    with pytest.raises(LogCorruptError):
        open_log(tmp_path / "log", base_index=5, base_epoch=1)
    for _ in range(2):  # and again at the next start
        log = open_log(tmp_path / "log", base_index=6, base_epoch=1)
        assert (log.first_index, log.base_epoch, log.last_index) == (7, 1, 12)
        assert held(log) == ALL[6:]
        assert len(log.repairs) == 1
        assert log.epoch_at(6) == 1
        log.close()


def many_segments(directory: Path) -> list[bytes]:
    log = open_log(directory)
    for first in range(1, 61, 3):
        log.append(records(first, 3, size=200), durable=True)
    found = held(log)
    log.close()
    assert len(segments(directory)) > 3
    return found


def test_a_missing_segment_in_the_middle_is_refused(tmp_path: Path) -> None:
    whole = many_segments(tmp_path / "log")
    gone, after = segments(tmp_path / "log")[1:3]
    gone.unlink()
    with pytest.raises(LogCorruptError) as caught:
        open_log(tmp_path / "log")
    assert caught.value.last_good_index == int(gone.stem) - 1
    log = open_log(tmp_path / "log", base_index=int(after.stem) - 1, base_epoch=1)
    assert held(log) == whole[int(after.stem) - 1 :]
    assert log.repairs
    log.close()


def test_missing_entries_between_store_and_log_are_refused(tmp_path: Path) -> None:
    many_segments(tmp_path / "log")
    first, second = segments(tmp_path / "log")[:2]
    first.unlink()
    with pytest.raises(LogCorruptError) as caught:
        open_log(tmp_path / "log", base_index=2, base_epoch=1)
    assert caught.value.last_good_index == 2
    log = open_log(tmp_path / "log", base_index=2, base_epoch=1, salvage=True)
    assert (log.first_index, log.last_index) == (3, 2)
    assert len(list((tmp_path / "log").glob(f"damaged-*/{second.name}"))) == 1
    log.close()


def test_damage_in_a_segment_that_is_not_the_last_is_never_taken_for_a_torn_tail(
    tmp_path: Path,
) -> None:
    whole = many_segments(tmp_path / "log")
    first, second = segments(tmp_path / "log")[:2]
    content = first.read_bytes().rstrip(b"\0")
    for damaged in (content[:-10], content[:-300], content[:-1] + b"x"):
        first.write_bytes(damaged.ljust(SEGMENT_SIZE_BYTES, b"\0"))
        with pytest.raises(LogCorruptError):
            open_log(tmp_path / "log")
    log = open_log(tmp_path / "log", base_index=int(second.stem) - 1, base_epoch=1)
    assert held(log) == whole[int(second.stem) - 1 :]
    log.close()


def test_a_read_never_returns_a_record_that_was_damaged_meanwhile(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log")
    log.append(GROUPS[0], durable=True)
    flip(segments(tmp_path / "log")[0], log._segments[-1].end - 1)
    assert len(log.read(1, 1)) == 1
    with pytest.raises(LogCorruptError) as caught:
        log.read(3, 1)
    assert caught.value.last_good_index == 2
    abandon(log)


def test_a_log_that_ends_before_the_store_is_emptied(tmp_path: Path) -> None:
    build(tmp_path / "log", GROUPS)
    log = open_log(tmp_path / "log", base_index=100, base_epoch=7)
    assert (log.first_index, log.last_index, log.last_epoch) == (101, 100, 7)
    log.append([record(101, epoch=7)], durable=True)
    log.close()
    log = open_log(tmp_path / "log", base_index=100, base_epoch=7)
    assert log.last_index == 101
    assert not log.repairs
    log.close()


def test_a_log_of_another_history_than_the_store_is_emptied(tmp_path: Path) -> None:
    build(tmp_path / "log", GROUPS)
    log = open_log(tmp_path / "log", base_index=5, base_epoch=2)
    assert (log.first_index, log.last_index, log.last_epoch) == (6, 5, 2)
    assert log.repairs
    log.close()


def truncate_far(log: Log) -> None:
    log.truncate(8)


def reset(log: Log) -> None:
    log.reset(500, 9)


def roll(log: Log) -> None:
    log.append(records(61, 40, size=200), durable=True)


def drop(log: Log) -> None:
    log.drop_before(50)


@pytest.mark.parametrize("change", [truncate_far, reset, roll, drop])
def test_a_crash_between_any_two_steps_leaves_a_valid_prefix(
    tmp_path: Path, change: Callable[[Log], None]
) -> None:
    whole = many_segments(tmp_path / "whole")
    everything = whole + [item.data for item in records(61, 40, size=200)]
    for step in range(1000):
        directory = tmp_path / f"log{step}"
        shutil.copytree(tmp_path / "whole", directory)
        log = open_log(directory)
        files = FailingFiles(step, Crash())
        log._files = files
        try:
            change(log)
        except Crash:
            pass
        else:
            assert step > 2, "the change took no steps that can be interrupted"
            abandon(log)
            return
        abandon(log)
        base = 50 if change is drop else 0
        log = open_log(directory, base_index=base, base_epoch=min(base, 1))
        found = held(log)
        first = log.first_index
        assert found == everything[first - 1 : first - 1 + len(found)]
        assert first == 1 or (change is drop and first <= 50)
        assert not log.repairs  # no gap in the middle
        floors: dict[Callable[[Log], None], int] = {truncate_far: 7, reset: 0, roll: 60, drop: 60}
        assert log.last_index >= floors[change]
        abandon(log)
    pytest.fail("the change never ended")


def test_a_crash_while_salvaging_still_shows_the_damage_or_the_end(tmp_path: Path) -> None:
    whole = many_segments(tmp_path / "whole")
    second = segments(tmp_path / "whole")[1]
    flip(second, 200)
    for step in range(1000):
        directory = tmp_path / f"log{step}"
        shutil.copytree(tmp_path / "whole", directory)
        try:
            log = open_log(directory, salvage=True, files=FailingFiles(step, Crash()))
        except Crash:
            pass
        else:
            assert step > 3
            assert log.last_index == int(second.stem) - 1
            abandon(log)
            return
        try:
            log = open_log(directory)
        except LogCorruptError:
            log = open_log(directory, salvage=True)
        assert log.last_index == int(second.stem) - 1
        assert held(log) == whole[: int(second.stem) - 1]
        abandon(log)
    pytest.fail("salvaging never ended")


def test_a_value_that_holds_a_copy_of_a_log_is_not_taken_for_one(tmp_path: Path) -> None:
    build(tmp_path / "other", GROUPS)
    copy = segments(tmp_path / "other")[0].read_bytes().rstrip(b"\0")
    decoy = copy[SEGMENT_HEADER_SIZE_BYTES:]
    # The copied sync marks get the very offsets that they had: only the salt tells them apart.
    log = open_log(tmp_path / "log")
    log.append([record(1, size=8)], durable=True)
    path = segments(tmp_path / "log")[0]
    end = log._segments[-1].end
    abandon(log)
    with path.open("r+b") as file:
        file.seek(end)
        file.write(b"\xff" * 8 + decoy[end - SEGMENT_HEADER_SIZE_BYTES + 8 :])
    log = open_log(tmp_path / "log")
    assert log.last_index == 1
    assert log.tail_cut
    log.close()
