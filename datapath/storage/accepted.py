"""The accepted (epoch, primary): the second line of defence behind consensus (E5).

One file of two slots, each a page of its own. A state is written to both, one after the other, and
counts as done when both are on the disk: a torn write leaves the other slot whole, with the state
before (which is right, for the new one was never reported as done) or already the new one; and a
slot that rots later is made up for by the other. The file has its full size from the start, so that
a full disk never keeps a replica from accepting a new primary. Slot, little-endian:

    offset  size  field
    0       4     CRC-32C of all that follows, up to the primary's end
    4       4     format version
    8       8     sequence: the slot with the higher one counts
    16      8     epoch
    24      1     marks: 1 if the log has lost entries that may have been acknowledged (incomplete),
                  2 if its torn tail was cut, and nothing has shown that to be harmless (tail cut)
    25      1     length of the primary's id, bytes
    26      …     the primary's id, UTF-8
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import NamedTuple

import google_crc32c

from datapath.errors import DataDirectoryError, DiskFailedError, SafetyError
from datapath.storage.data_directory import replace_file, storage_error, trust_the_disk

_SLOT_SIZE_BYTES = 4096
_SLOTS = (0, _SLOT_SIZE_BYTES)
_FORMAT = 1
_CHECKSUM = struct.Struct("<I")
_FIELDS = struct.Struct("<IQQBB")
_State = tuple[int, int, int, str]  # sequence, epoch, marks, primary
_INCOMPLETE, _TAIL_CUT = 1, 2


class Marks(NamedTuple):
    """What is noted beside a log: the last accepted (epoch, primary), and the two marks."""

    epoch: int
    primary: str
    incomplete: bool
    tail_cut: bool


def read_marks(path: Path) -> Marks:
    """Read the file `path`, and change nothing.

    Raises DataDirectoryError: it is missing or damaged, or of another format.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataDirectoryError(f"{path} cannot be read: {error.strerror}") from error
    slots = _read_slots(path, content)
    if not slots:
        raise DataDirectoryError(f"{path} is damaged")
    _, epoch, marks, primary = max(slots.values())
    return Marks(epoch, primary, bool(marks & _INCOMPLETE), bool(marks & _TAIL_CUT))


class Accepted:
    """The last accepted (epoch, primary), and what the log's state has to be told; durable."""

    def __init__(self, path: Path) -> None:
        """Open the file `path`; make it first if it is not there.

        Raises:
            DataDirectoryError: both slots are damaged.
            DiskFullError, DiskFailedError: it could not be made, read or repaired.

        """
        self.path = path
        self.repair = ""
        self._failed = False
        try:
            if not path.exists():
                replace_file(path, 2 * _encode((0, 0, 0, "")))
            self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            trust_the_disk(self._descriptor)
            content = os.pread(self._descriptor, 2 * _SLOT_SIZE_BYTES, 0)
        except OSError as error:
            raise storage_error(error, f"opening {path}") from error
        slots = _read_slots(path, content)
        if not slots:
            os.close(self._descriptor)
            raise DataDirectoryError(
                f"{path} is damaged: the accepted primary of this node is lost. Move the data "
                "directory away and join as a new node"
            )
        self._newest = max(slots, key=lambda offset: slots[offset])  # the slot to be kept longest
        state = self._sequence, self._epoch, self._marks, self._primary = slots[self._newest]
        if len(slots) < len(_SLOTS):
            self.repair = f"one of the two slots of {path} is damaged; the other one is used"
        if slots.get(_SLOT_SIZE_BYTES - self._newest) != state:
            self._write(state)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def epoch(self) -> int:
        """The highest accepted epoch; 0 before the first."""
        return self._epoch

    @property
    def primary(self) -> str:
        """The primary accepted for `epoch`; "" before the first."""
        return self._primary

    @property
    def incomplete(self) -> bool:
        """Whether the log has lost entries, and nothing has made up for that yet."""
        return bool(self._marks & _INCOMPLETE)

    @property
    def tail_cut(self) -> bool:
        """Whether the log's tail was cut, and nothing has shown yet that nobody was promised it."""
        return bool(self._marks & _TAIL_CUT)

    def record(self, epoch: int, primary: str) -> None:
        """Accept `primary` for `epoch`; durable when it returns (E5).

        Raises:
            SafetyError: a higher epoch, or another primary for this one, is accepted already.
            DiskFailedError: not durable; nothing may be acknowledged in this epoch.

        """
        if (epoch, primary) == (self._epoch, self._primary):
            return
        if epoch <= self._epoch:
            raise SafetyError(
                f"primary {primary} of epoch {epoch} refused: {self._primary or 'none'} is "
                f"accepted for epoch {self._epoch}"
            )
        if not 0 < len(primary.encode()) < 256:
            raise SafetyError(f"a primary's id has 1 to 255 bytes, not {primary!r}")
        self._write((self._sequence + 1, epoch, self._marks, primary))

    def set_incomplete(self) -> None:
        """Set the incomplete mark; durable when it returns. Raises DiskFailedError."""
        self._mark(self._marks | _INCOMPLETE)

    def set_tail_cut(self) -> None:
        """Set the mark of a cut tail; durable when it returns. Raises DiskFailedError."""
        self._mark(self._marks | _TAIL_CUT)

    def clear_marks(self) -> None:
        """Nothing is missing any more; durable when it returns. Raises DiskFailedError."""
        self._mark(0)

    def _mark(self, marks: int) -> None:
        if marks != self._marks:
            self._write((self._sequence + 1, self._epoch, marks, self._primary))

    def _write(self, state: _State) -> None:
        if self._failed or self._descriptor < 0:
            raise DiskFailedError(f"{self.path} is closed, or has failed before")
        try:
            # First over the older slot: until it is whole again, the newest must stand.
            for offset in (_SLOT_SIZE_BYTES - self._newest, self._newest):
                os.pwrite(self._descriptor, _encode(state), offset)
                os.fsync(self._descriptor)
        except OSError as error:
            self._failed = True
            raise DiskFailedError(f"writing {self.path}: {error.strerror}") from error
        self._sequence, self._epoch, self._marks, self._primary = state


def _encode(state: _State) -> bytes:
    sequence, epoch, marks, primary = state
    name = primary.encode()
    body = _FIELDS.pack(_FORMAT, sequence, epoch, marks, len(name)) + name
    slot = _CHECKSUM.pack(google_crc32c.value(body)) + body
    return slot.ljust(_SLOT_SIZE_BYTES, b"\0")


def _read_slots(path: Path, content: bytes) -> dict[int, _State]:
    """Return the intact slots, by their offsets."""
    return {
        offset: state
        for offset in _SLOTS
        if (state := _decode(path, content[offset : offset + _SLOT_SIZE_BYTES]))
    }


def _decode(path: Path, slot: bytes) -> _State | None:
    if len(slot) < _SLOT_SIZE_BYTES:
        return None
    start = _CHECKSUM.size + _FIELDS.size
    version, sequence, epoch, marks, length = _FIELDS.unpack_from(slot, _CHECKSUM.size)
    body = slot[_CHECKSUM.size : start + length]
    if google_crc32c.value(body) != _CHECKSUM.unpack_from(slot)[0]:
        return None
    if version != _FORMAT:
        raise DataDirectoryError(
            f"{path} has format {version}, this version reads {_FORMAT}: use the version of "
            "onecopy that wrote it"
        )
    return sequence, epoch, marks, slot[start : start + length].decode()
