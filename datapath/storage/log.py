"""The log: append-only segments of records, each record verbatim as the primary made it.

A directory holds `<first index, 20 digits>.seg` files (see `datapath.storage.segment`) and perhaps
one `spare`, the next segment's room, taken ahead of time. A new segment gets its name only when its
header is durable, and all before it is: so only the last segment may end in a torn tail, and
nothing may be torn in a header (see `datapath.storage.log_recovery`).
"""

from __future__ import annotations

import errno
import os
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path

from datapath.errors import DiskFailedError, DiskFullError, SafetyError
from datapath.records import Record
from datapath.storage.data_directory import storage_error
from datapath.storage.log_files import Files, write_all
from datapath.storage.log_held import HeldLog
from datapath.storage.log_recovery import TailCut, recover
from datapath.storage.segment import (
    SEGMENT_HEADER_SIZE_BYTES,
    SYNC_MARK_SIZE_BYTES,
    Segment,
    follows,
    remove_segments,
    segment_of,
)

DEFAULT_SEGMENT_SIZE_BYTES = 64 * 1024 * 1024
MAX_SEGMENT_SIZE_BYTES = 1 << 28

_FULL_PAUSE_S = 0.2  # how long a full disk is believed to be full: asking it is dear


class Log(HeldLog):
    """A replica's log. `Log.open` makes one.

    One thread at a time may change it (`append` to `close`); `read`, `reserve`, `drop_before` and
    the properties may be used from any thread meanwhile. After DiskFailedError it refuses all
    change (D9).
    """

    def __init__(
        self, directory: Path, segment_size_bytes: int, base: tuple[int, int], files: Files
    ) -> None:
        if not 4096 <= segment_size_bytes <= MAX_SEGMENT_SIZE_BYTES:
            raise ValueError(f"a segment has 4096 to {MAX_SEGMENT_SIZE_BYTES} bytes")
        super().__init__(*base)
        self.directory = directory
        self.repairs: list[str] = []
        self.cut: TailCut | None = None
        self._segment_size_bytes = segment_size_bytes
        self._files = files
        self._spare_size_bytes = 0
        self._full_until = 0.0  # monotonic clock, seconds
        self._dirty = False
        self._broken = ""
        self._space = threading.Lock()  # held to make or use the spare

    @classmethod
    def open(
        cls,
        directory: str | Path,
        *,
        segment_size_bytes: int = DEFAULT_SEGMENT_SIZE_BYTES,
        base_index: int = 0,
        base_epoch: int = 0,
        salvage: bool = False,
        before_cut: Callable[[TailCut], None] | None = None,
        files: Files | None = None,
    ) -> Log:
        """Open the log of a store that holds everything up to (`base_index`, `base_epoch`).

        All checksums are verified. What is found is durable when it returns.

        `salvage` keeps what stands before the damage, and moves the rest to `damaged-<time>/`:
        the replica has then lost entries it may have acknowledged, so note that durably first
        (`Accepted.set_incomplete`). `before_cut` is called before a torn tail is cut off, to note
        that as durably: afterwards nothing on the disk tells of it.

        Raises:
            LogCorruptError: entries after `base_index` are damaged or missing.
            DiskFullError, DiskFailedError: it could not be read or repaired.

        """
        base = (base_index, base_epoch)
        log = cls(Path(directory), segment_size_bytes, base, files or Files())
        try:
            found = recover(
                log.directory,
                segment_size_bytes,
                base,
                log._files,
                salvage=salvage,
                before_cut=before_cut,
            )
        except OSError as error:
            raise storage_error(error, f"opening the log {directory}") from error
        log._segments, log.repairs, log.cut = found
        for segment in log._segments:
            segment.written_s = os.fstat(segment.descriptor).st_mtime
        return log

    @property
    def tail_cut(self) -> bool:
        """Whether opening cut off a torn tail; `cut` says what."""
        return self.cut is not None

    # Room

    @property
    def room_bytes(self) -> int:
        """How much can be appended for sure; each group costs SYNC_MARK_SIZE_BYTES on top."""
        segments = self._segments
        current = segments[-1].size - segments[-1].end if segments else 0
        # Whatever does not fit into the current segment goes to the spare, whole.
        return max(current, self._spare_size_bytes - SEGMENT_HEADER_SIZE_BYTES, 0)

    def reserve(self, n_bytes: int) -> bool:
        """Make sure that `n_bytes` more can be appended without more disk space; False if not.

        Counted from what has been appended: whoever queues records adds them up himself.
        """
        n_bytes += SYNC_MARK_SIZE_BYTES
        return n_bytes <= self.room_bytes or self._make_spare(n_bytes + SEGMENT_HEADER_SIZE_BYTES)

    def prepare_next_segment(self) -> bool:
        """Take the room for the next segment, unless it is there; False if the disk is full."""
        return self._make_spare(self._segment_size_bytes)

    @property
    def wants_preparing(self) -> bool:
        """Whether the current segment is over half full and there is no spare."""
        if self._spare_size_bytes or self._broken:
            return False
        segments = self._segments
        return not segments or segments[-1].end * 2 > segments[-1].size

    def takes_at_once(self, n_bytes: int) -> bool:
        """Whether `n_bytes` can be appended to the current segment, and no room is to be taken."""
        segments = self._segments
        return (
            bool(segments)
            and segments[-1].end + SYNC_MARK_SIZE_BYTES + n_bytes <= segments[-1].size
            and not self.wants_preparing
        )

    def _make_spare(self, size_bytes: int) -> bool:
        with self._space:
            if self._broken:
                return False
            size_bytes = max(size_bytes, self._segment_size_bytes)
            if size_bytes <= self._spare_size_bytes:
                return True
            if time.monotonic() < self._full_until:
                return False
            spare = self.directory / "spare"
            try:
                descriptor = os.open(spare, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    self._files.allocate(descriptor, size_bytes)
                finally:
                    os.close(descriptor)
            except OSError as error:
                # A partial allocation would keep the last bytes of a full disk from everybody.
                spare.unlink(missing_ok=True)
                self._spare_size_bytes = 0
                failure = storage_error(error, f"preallocating {spare}")
                if isinstance(failure, DiskFullError):
                    self._full_until = time.monotonic() + _FULL_PAUSE_S
                    return False
                raise failure from error
            self._spare_size_bytes = size_bytes
            return True

    # Change

    def append(self, records: Sequence[Record], *, durable: bool = False) -> None:
        """Append records; they are durable only after `sync`, or at once if `durable`.

        `durable` writes and syncs in one system call where the system can: beside a busy event
        loop each call more costs a wait for the interpreter's lock.

        Raises:
            SafetyError: they do not follow what is held.
            DiskFullError: no room; nothing of them is held.
            DiskFailedError: the disk failed; the log refuses further change (D9).

        """
        self._check_usable()
        before, last_epoch = self.last_index, self.last_epoch
        last_index = before
        for record in records:
            problem = follows(record, last_index, last_epoch)
            if problem:
                raise SafetyError(f"append to {self.directory}: {problem}")
            last_index, last_epoch = record.last_index, record.epoch
        try:
            self._append(records, durable=durable)
        except OSError as error:
            failure = storage_error(error, f"appending to {self.directory}")
            if isinstance(failure, DiskFullError):
                self._take_back(before)
            else:
                self._broken = str(failure)
            raise failure from error

    def _append(self, records: Sequence[Record], *, durable: bool) -> None:
        group: list[Record] = []
        size = SYNC_MARK_SIZE_BYTES
        for record in records:
            length = len(record.data)
            segment = self._segments[-1] if self._segments else None
            if segment is None or segment.end + size + length > segment.size:
                self._write(group, 0)
                self._roll(length)
                group, size = [], 0
            group.append(record)
            size += length
        # Writing through makes only this write durable, so nothing older may be waiting.
        if durable and not self._dirty and self._files.write_through:
            try:
                self._write(group, self._files.write_through)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
                self._files.write_through = 0  # not on this file system
            else:
                return
        self._write(group, 0)
        if durable:
            self._sync()

    def _write(self, group: list[Record], flags: int) -> None:
        if not group:
            return
        segment = self._segments[-1]
        buffers = [record.data for record in group]
        offset = segment.end
        if not self._dirty and offset > segment.start:
            buffers.insert(0, segment.mark())
            offset += SYNC_MARK_SIZE_BYTES
        self._dirty = not flags
        write_all(self._files, segment.descriptor, buffers, segment.end, flags)
        for record in group:
            segment.note(record, offset)
            offset = segment.end
        segment.written_s = time.time()

    def _roll(self, record_size_bytes: int) -> None:
        """Seal the current segment and start the next, with room for the record to come."""
        self._sync()
        first_index = self.last_index + 1
        needed = record_size_bytes + SEGMENT_HEADER_SIZE_BYTES
        if not self._make_spare(needed):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with self._space:
            path = self.directory / f"{first_index:020}.seg"
            try:
                segment = Segment.create(
                    self.directory / "spare", path, first_index, self.last_epoch, self._files
                )
            except OSError as error:
                raise self._break(error, f"starting {path}") from error
            self._spare_size_bytes = 0
            with self._shape:
                kept = self._segments
                if kept and kept[-1].last_index < kept[-1].first_index:
                    # A cut had emptied it: the new one has its name, and has taken its place.
                    kept[-1].close()
                    kept = kept[:-1]
                self._segments = [*kept, segment]

    def sync(self) -> None:
        """Make all that was appended durable. Raises DiskFailedError; never tried again (D9)."""
        self._check_usable()
        self._sync()

    def _sync(self) -> None:
        if self._dirty:
            try:
                self._files.sync(self._segments[-1].descriptor)
            except OSError as error:
                raise self._break(error, f"syncing {self.directory}") from error
            self._dirty = False

    def _break(self, error: OSError, doing: str) -> DiskFailedError:
        """Refuse all further change (D9): whatever the reason, what was written is suspect."""
        self._broken = f"{doing}: {error.strerror or error}"
        return DiskFailedError(self._broken)

    def truncate(self, from_index: int) -> None:
        """Remove that entry and all later ones; durable when it returns.

        A crash leaves a prefix of the old log that holds at least what was to be kept.

        Raises:
            SafetyError: `from_index` is not the start of a record, or no longer held.
            DiskFailedError: the disk failed; the log refuses further change (D9).

        """
        self._check_usable()
        if from_index > self.last_index:
            return
        if from_index < self.first_index:
            raise SafetyError(f"cannot cut at {from_index}: the log starts at {self.first_index}")
        segment = segment_of(self._segments, from_index)
        offset, first, _ = next(iter(segment.walk(from_index, segment.end)))
        if first != from_index:
            raise SafetyError(f"cannot cut at {from_index}: its record starts at {first}")
        try:
            self._cut(segment, from_index, offset)
        except OSError as error:
            raise self._break(error, f"truncating {self.directory}") from error

    def _cut(self, segment: Segment, from_index: int, offset: int) -> None:
        with self._shape:
            keep = self._segments.index(segment) + 1
            gone = self._segments[keep:]
            self._segments = self._segments[:keep]
            segment.forget(from_index, offset)
        remove_segments(reversed(gone), self._files)
        segment.shorten(self._files)
        self._dirty = False

    def _take_back(self, last_index: int) -> None:
        """After ENOSPC: leave nothing of a half-written append."""
        try:
            if self.last_index > last_index:
                self.truncate(last_index + 1)
            elif self._segments:
                self._segments[-1].shorten(self._files)
        except OSError as error:
            raise self._break(error, f"undoing an append to {self.directory}") from error

    def reset(self, index: int, epoch: int) -> None:
        """Forget everything: the next entry is `index` + 1, after (`index`, `epoch`).

        A crash leaves a prefix of the old log or nothing; opening it beside a store at
        (`index`, `epoch`) finishes the job. Raises DiskFailedError.
        """
        self._check_usable()
        try:
            self._reset(index, epoch)
        except OSError as error:
            raise self._break(error, f"resetting {self.directory}") from error

    def _reset(self, index: int, epoch: int) -> None:
        with self._shape:
            gone, self._segments = self._segments, []
            self._base_index, self._base_epoch = index, epoch
        remove_segments(reversed(gone), self._files)
        self._dirty = False

    def drop_before(self, index: int) -> None:
        """Delete the segments all of whose entries are before `index`, but never the last one."""
        self._check_usable()
        with self._shape:
            keep = bisect_right(self._segments, index, key=lambda segment: segment.first_index)
            gone, self._segments = (
                self._segments[: max(keep - 1, 0)],
                self._segments[max(keep - 1, 0) :],
            )
        try:
            # Oldest first: a crash must not leave a gap.
            remove_segments(gone, self._files)
        except OSError as error:
            raise storage_error(error, f"deleting old segments in {self.directory}") from error

    def close(self) -> None:
        """Sync, note that all is durable (a sync mark, for the next opening), and close.

        Raises DiskFailedError if the last sync fails. Closing twice is harmless.
        """
        try:
            if self._segments and not self._broken:
                self.sync()
                self._write_last_mark()
        finally:
            self._release()

    def _write_last_mark(self) -> None:
        segment = self._segments[-1]
        if segment.last_index >= segment.first_index and segment.end + SYNC_MARK_SIZE_BYTES <= (
            segment.size
        ):
            try:
                write_all(self._files, segment.descriptor, [segment.mark()], segment.end, 0)
                self._files.sync(segment.descriptor)
            except OSError as error:
                raise storage_error(error, f"closing {segment.path}") from error

    def _release(self) -> None:
        self._broken = self._broken or f"the log {self.directory} is closed"
        with self._shape:
            gone, self._segments = self._segments, []
        for segment in gone:
            segment.close()

    def _check_usable(self) -> None:
        if self._broken:
            raise DiskFailedError(f"the log accepts no further changes: {self._broken}")
