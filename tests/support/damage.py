"""Damage to the log's files, as power cuts and bad disks leave it."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import NamedTuple

from datapath.records import frame_length, make_record, parse_record
from datapath.storage.segment import SEGMENT_HEADER_SIZE_BYTES, SYNC_MARK_SIZE_BYTES


def segments(directory: Path) -> list[Path]:
    """Return the log's segment files of a data directory, oldest first."""
    return sorted((directory / "log").glob("*.seg"))


def flip_byte(path: Path, offset: int) -> None:
    """Invert one byte of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 0xFF]))


class Frame(NamedTuple):
    """A record or a sync mark of a segment file."""

    path: Path
    offset: int
    size: int
    first_index: int  # 0: a sync mark
    last_index: int

    @property
    def middle(self) -> int:
        return self.offset + self.size // 2


def frames(path: Path) -> list[Frame]:
    """Return a sound segment's frames, in order."""
    data, offset, found = path.read_bytes(), SEGMENT_HEADER_SIZE_BYTES, []
    while offset + 8 <= len(data) and (size := frame_length(data[offset : offset + 8])):
        first = last = 0
        if size != SYNC_MARK_SIZE_BYTES:
            record = parse_record(data[offset : offset + size])
            first, last = record.first_index, record.last_index
        found.append(Frame(path, offset, size, first, last))
        offset += size
    return found


def end_of(path: Path) -> int:
    last = frames(path)[-1]
    return last.offset + last.size


def cut_tail(directory: Path) -> None:
    """Lose the second half of the last record, as a write that did not get through."""
    path = segments(directory)[-1]
    record = [frame for frame in frames(path) if frame.first_index][-1]
    with path.open("r+b") as file:
        file.seek(record.middle)
        file.write(bytes(record.size + SYNC_MARK_SIZE_BYTES))


def flip_tail(directory: Path) -> None:
    """Invert a byte of the last record."""
    path = segments(directory)[-1]
    flip_byte(path, [frame for frame in frames(path) if frame.first_index][-1].middle)


def append_garbage(directory: Path) -> None:
    """Put half of a plausible record and noise after the end."""
    path = segments(directory)[-1]
    known = [frame for frame in frames(path) if frame.first_index]
    record = make_record(known[-1].last_index + 1, 1, 0, [[(0, b"garbage", b"x" * 500)]])
    with path.open("r+b") as file:
        file.seek(end_of(path))
        file.write(record.data[:300] + os.urandom(200))


def append_zero_length_noise(directory: Path) -> None:
    """Put noise after the end that claims to be as long as can be."""
    path = segments(directory)[-1]
    with path.open("r+b") as file:
        file.seek(end_of(path))
        file.write(struct.pack("<I", 0xFFFF_FFFF) + os.urandom(100))
