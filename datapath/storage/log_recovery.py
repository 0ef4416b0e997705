"""Opening a log: is a place that cannot be read what a crash left, or is it damage?

A sync mark says "all before me was durable". So a bad frame without a sync mark after it belongs to
the last group, which nobody was promised: a torn tail, cut off. With one, something that was
durable is damaged (LogCorruptError), unless the store holds all that it took; a salvage keeps what
stands before it. Only the last segment may end in a torn tail, and nothing may be torn in a header
(see `datapath.storage.log`).
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from datapath.errors import DiskFullError
from datapath.records import Record
from datapath.storage.data_directory import FILE_MODE, storage_error, sync_directory
from datapath.storage.log_files import Files
from datapath.storage.log_held import HeldLog
from datapath.storage.segment import Damage, Segment, remove_segments, segment_of

_READ_BYTES = 4 * 1024 * 1024
_SEGMENT_NAME = re.compile(r"\d{20}\.seg")


class TailCut(NamedTuple):
    """What was cut off as torn: `size_bytes` from `offset` of the file `path`."""

    path: str
    offset: int
    size_bytes: int


class RecoveredLog(NamedTuple):
    """The segments of an opened log, what was repaired, and what was cut off as torn."""

    segments: list[Segment]
    repairs: list[str]
    cut: TailCut | None


class ExaminedLog(HeldLog):
    """What an opening with `salvage` would keep of a log, to be read; `close` it.

    `damage` names the place after which it cannot be read, "" for none; `torn` is what would be cut
    off as torn.
    """

    def __init__(
        self, base: tuple[int, int], segments: list[Segment], damage: str, torn: TailCut | None
    ) -> None:
        super().__init__(*base)
        self._segments = segments
        self.damage = damage
        self.torn = torn
        for segment in segments:
            segment.written_s = os.fstat(segment.descriptor).st_mtime

    def records_after(self, index: int) -> Iterator[Record]:
        """Yield the records from the one on that holds the entry after `index`."""
        while index < self.last_index:
            for record in self.read(index + 1, _READ_BYTES):
                yield record
                index = record.last_index

    def close(self) -> None:
        """Close the files. Closing twice is harmless."""
        _close(self._segments)


def inspect_log(directory: Path, base: tuple[int, int]) -> ExaminedLog:
    """Read the segments of a log beside a store at `base`, and change nothing.

    Raises DiskFailedError.
    """
    recovery = _Recovery(directory, 0, base, Files(), salvage=True, readonly=True)
    try:
        return recovery.inspect_log()
    except OSError as error:
        raise storage_error(error, f"reading the log {directory}") from error


def recover(
    directory: Path,
    segment_size_bytes: int,
    base: tuple[int, int],
    files: Files,
    *,
    salvage: bool,
    before_cut: Callable[[TailCut], None] | None,
) -> RecoveredLog:
    """Open the segments of a log beside a store at `base`; see `Log.open`. Raises OSError too."""
    recovery = _Recovery(directory, segment_size_bytes, base, files, salvage=salvage)
    return recovery.run(before_cut)


class _Recovery:
    """Opens the segments in order, and decides about every place that cannot be read.

    Nothing on the disk changes before all is decided (`_finish`).
    """

    def __init__(
        self,
        directory: Path,
        segment_size_bytes: int,
        base: tuple[int, int],
        files: Files,
        *,
        salvage: bool,
        readonly: bool = False,
    ) -> None:
        self._directory = directory
        self._segment_size_bytes = segment_size_bytes
        self._base_index, self._base_epoch = base
        self._files = files
        self._salvage = salvage
        self._readonly = readonly
        self._repairs: list[str] = []
        self._paths: list[Path] = []
        self._chain: list[Segment] = []
        self._obsolete: list[Segment] = []  # sound, but before damage that was forgiven
        self._aside: list[Path] = []  # damaged, wholly before what is kept
        self._damage: Damage | None = None  # where reading stopped, and has not gone on
        self._torn: TailCut | None = None

    def run(self, before_cut: Callable[[TailCut], None] | None) -> RecoveredLog:
        if not self._directory.is_dir():
            self._directory.mkdir(mode=0o700, parents=True)
            sync_directory(self._directory.parent)
        (self._directory / "spare").unlink(missing_ok=True)
        try:
            self._read()
            cut = self._finish(before_cut)
        except BaseException:
            _close(self._chain)
            raise
        finally:
            _close(self._obsolete)
        return RecoveredLog(self._chain, self._repairs, cut)

    def inspect_log(self) -> ExaminedLog:
        try:
            if self._directory.is_dir():
                self._read()
            falls_short = self._falls_short()
        except BaseException:
            _close(self._chain)
            raise
        finally:
            _close(self._obsolete)
        if falls_short:
            _close(self._chain)
        base = (self._base_index, self._base_epoch)
        damage = str(self._damage.error()) if self._damage else ""
        kept = [] if falls_short else self._chain
        return ExaminedLog(base, kept, damage, self._torn if kept else None)

    def _read(self) -> None:
        names = (path for path in self._directory.iterdir() if _SEGMENT_NAME.fullmatch(path.name))
        self._paths = sorted(names)
        for path in self._paths:
            self._take(path, last=path == self._paths[-1])
        self._match_base()

    def _take(self, path: Path, *, last: bool) -> None:
        segment = Segment.open(path, readonly=self._readonly)
        if isinstance(segment, str):
            self._stop(path, 0, segment)
            return
        before = self._chain[-1] if self._chain else None
        if before and not self._damage:
            ends = (before.last_index, before.last_epoch)
            starts = (segment.first_index - 1, segment.prev_epoch)
            if ends != starts:
                reason = f"its last entry is {ends}, but {path.name} follows {starts}"
                self._stop(before.path, before.end, f"{reason} (index, epoch)")
        if self._damage and not self._resume(segment.first_index, inside=False):
            segment.close()
            return
        self._chain.append(segment)
        if last:
            # D9: after a failed fsync the page cache may hold what the disk does not.
            self._files.sync(segment.descriptor)
            os.posix_fadvise(segment.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        self._scan(segment, path.read_bytes(), last=last)

    def _scan(self, segment: Segment, data: bytes, *, last: bool) -> None:
        while problem := segment.scan(data):
            mark = segment.find_mark(data, segment.end)
            if mark is None and last:
                size = len(data.rstrip(b"\0")) - segment.end
                self._torn = TailCut(str(segment.path), segment.end, size)
                return
            self._stop(segment.path, segment.end, problem)
            if mark is None or not self._resume(mark.next_index, inside=True):
                return
            segment.restart(mark)

    def _stop(self, path: Path, offset: int, reason: str) -> None:
        if self._damage is None:
            last_good = self._chain[-1].last_index if self._chain else int(path.stem) - 1
            self._damage = Damage(path, offset, last_good, reason)

    def _resume(self, next_index: int, *, inside: bool) -> bool:
        """Go on after damage, if all that it took is in the store already.

        `inside`: in the damaged segment itself, not in the one after it.
        """
        if self._damage is None or next_index - 1 > self._base_index:
            return False
        self._repairs.append(
            f"{self._damage.error()}; the store holds all entries up to {self._base_index}, so "
            f"the log now starts at {next_index}"
        )
        kept = self._chain[-1:] if inside else []
        self._obsolete += self._chain[: len(self._chain) - len(kept)]
        if not inside:
            self._aside.append(self._damage.path)
        self._chain = kept
        self._damage = None
        return True

    def _match_base(self) -> None:
        """Compare what was read with what the store holds, which is committed."""
        chain = self._chain
        if chain and not self._damage and chain[0].first_index > self._base_index + 1:
            reason = f"the log starts at {chain[0].first_index}: entries are missing"
            self._damage = Damage(chain[0].path, 0, self._base_index, reason)
            _close(chain)
            chain.clear()
        if self._damage and not self._salvage:
            raise self._damage.error()

    def _finish(self, before_cut: Callable[[TailCut], None] | None) -> TailCut | None:
        """Do what was decided; return what was cut off as torn."""
        for segment in self._obsolete:
            # Oldest first: a crash must not leave a gap.
            if segment.path not in self._aside:
                remove_segments([segment], self._files)
        for path in self._aside:
            self._move_aside(path)
        if self._damage:
            self._keep_prefix(self._damage)
        cut = self._torn if self._chain else None
        if cut:
            if before_cut is not None:
                before_cut(cut)
            self._chain[-1].shorten(self._files)
        self._empty_unless_it_reaches_the_base()
        if self._chain:
            self._fill_up(self._chain[-1])
        return cut

    def _keep_prefix(self, damage: Damage) -> None:
        """Salvage: at every crash in between, the damage is still seen by the next opening."""
        last = self._chain[-1] if self._chain else None
        kept = [segment.path for segment in self._chain]
        if (
            last
            and last.path == damage.path
            and last.end < len(last.path.read_bytes().rstrip(b"\0"))
        ):
            place = self._aside_directory()
            (place / last.path.name).touch(FILE_MODE)
            shutil.copyfile(last.path, place / last.path.name)
            with (place / last.path.name).open("rb") as copy:
                os.fsync(copy.fileno())
            last.shorten(self._files)
        for path in reversed(self._paths):
            if path not in kept and path.exists():
                self._move_aside(path)
        self._repairs.append(f"{damage.error()}; everything after it was moved aside")

    def _aside_directory(self) -> Path:
        place = self._directory / f"damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        place.mkdir(mode=0o700, exist_ok=True)
        sync_directory(self._directory)
        return place

    def _move_aside(self, path: Path) -> None:
        if path.exists():
            place = self._aside_directory()
            self._files.rename(path, place / path.name)

    def _falls_short(self) -> str:
        """Return why the log does not go on from what the store holds; "": it does."""
        chain, index, epoch = self._chain, self._base_index, self._base_epoch
        if not chain:
            return ""
        found = segment_of(chain, index).epoch_at(index)
        if chain[-1].last_index < index:
            return f"it ends with entry {chain[-1].last_index}"
        if index >= chain[0].first_index - 1 and found != epoch:
            return f"its entry {index} is of epoch {found}"
        return ""

    def _empty_unless_it_reaches_the_base(self) -> None:
        chain, index, epoch = self._chain, self._base_index, self._base_epoch
        if not (reason := self._falls_short()):
            return
        self._repairs.append(
            f"the log {self._directory} was emptied: {reason}, but the store holds all entries "
            f"up to {index} of epoch {epoch}"
        )
        remove_segments(reversed(chain), self._files)
        chain.clear()

    def _fill_up(self, segment: Segment) -> None:
        """Take the room back that a crash while cutting, or a full disk, left out."""
        if segment.size < self._segment_size_bytes:
            try:
                self._files.allocate(segment.descriptor, self._segment_size_bytes)
            except OSError as error:
                if not isinstance(storage_error(error, ""), DiskFullError):
                    raise
            segment.size = os.fstat(segment.descriptor).st_size


def _close(segments: Sequence[Segment]) -> None:
    for segment in segments:
        segment.close()
