"""The raft directory: lock, members, dump and journal, opened together and kept consistent."""

from __future__ import annotations

from pathlib import Path

from election.pysyncobj_adapter.errors import RolledBackError, StorageCorruptError
from election.pysyncobj_adapter.files import REAL_DISK, DirectoryLock, Disk
from election.pysyncobj_adapter.journal import Journal
from election.pysyncobj_adapter.member_registry import MemberBook
from election.pysyncobj_adapter.peer_marks import PeerMarks
from election.pysyncobj_adapter.progress_mark import ProgressMark, is_behind
from election.pysyncobj_adapter.raft_snapshot import Dump, DumpStore
from election.pysyncobj_adapter.settings import AgreementSettings


class RaftStorage:
    """What one member remembers. Made and used on one thread."""

    def __init__(self, settings: AgreementSettings, disk: Disk = REAL_DISK) -> None:
        """Open the directory, or make it at the first start.

        Raises:
            DirectoryInUseError: another process uses it.
            StorageCorruptError: a file is damaged, or missing beside the others.
            StorageFullError: there is no room.

        """
        self._disk = disk
        self._lock = DirectoryLock(settings.directory, disk)
        try:
            self._open(settings)
        except BaseException:
            self.close()
            raise

    def _open(self, settings: AgreementSettings) -> None:
        disk = self._disk
        path = settings.directory / "journal"
        members = settings.directory / "members"
        is_new = not disk.exists(path)
        self.dumps = DumpStore(settings.directory / "dump", disk)
        if is_new and (disk.exists(members) or self.dumps.current is not None):
            raise StorageCorruptError(path, 0, "the journal is missing, but the node is not new")
        self.journal = Journal(path, reserve_bytes=settings.journal_reserve_bytes, disk=disk)
        if len(self.journal) and not disk.exists(members):
            raise StorageCorruptError(members, 0, "the file is missing, but the node is not new")
        self._align(path)
        founders = settings.members if settings.founders is None else settings.founders
        self.book = MemberBook(members, founders, disk)
        self._mark = ProgressMark(settings.directory, self.journal.directory_id, disk)
        self._check_mark(settings.directory)
        self.marks = PeerMarks(settings.directory, disk)

    def _check_mark(self, directory: Path) -> None:
        known = self._mark.known
        last_index = self.journal[-1][1] if len(self.journal) else 0
        held = (self.journal.getCurrentTerm(), last_index)
        if is_behind(held, known):
            raise RolledBackError(directory, held, known)

    def note_progress(self, term: int, applied_index: int) -> None:
        """Remember outside of the directory how far it has got; durable on return.

        Raises StorageFullError: not noted.
        """
        self._mark.note(term, applied_index)

    def compact(self, dump: Dump) -> None:
        """Store the dump, then cut the journal to where it begins.

        Raises:
            StorageFullError: there is no room; everything is as before, or only the dump is new.

        """
        self.dumps.store(dump)
        self._cut_journal(dump)

    def install(self, dump: Dump) -> None:
        """Take over the leader's dump; entries behind it stay if they fit to it."""
        self.dumps.store(dump)
        self._cut_journal(dump)

    def close(self) -> None:
        """Close the files and give the lock back. Idempotent."""
        if hasattr(self, "marks"):
            self.marks.save()
        if hasattr(self, "journal"):
            self.journal._destroy()
        self._lock.release()

    def _cut_journal(self, dump: Dump) -> None:
        index = dump.last[1]
        fits = any(entry[1:] == dump.last[1:] for entry in self.journal)
        behind = [entry for entry in self.journal if fits and entry[1] > index]
        self.journal.replace([dump.previous, dump.last, *behind])

    def _align(self, path: Path) -> None:
        """Finish what a crash between dump and journal interrupted; refuse a gap between them."""
        dump = self.dumps.current
        if dump is None:
            if len(self.journal) and self.journal[0][1] != 1:
                raise StorageCorruptError(
                    path, 0, f"it starts at entry {self.journal[0][1]}, but the dump is missing"
                )
            return
        if not len(self.journal):
            raise StorageCorruptError(path, 0, "it has no entries, though there is a dump")
        if self.journal[0][1] > dump.previous[1]:
            raise StorageCorruptError(
                path, 0, f"it starts at entry {self.journal[0][1]}, after the dump's end"
            )
        if self.journal[0] != dump.previous:
            self._cut_journal(dump)
