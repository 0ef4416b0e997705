"""What the raft directory of a node that does not run says of the view; nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from election.pysyncobj_adapter.errors import StorageCorruptError
from election.pysyncobj_adapter.files import Disk, decode_file, load_file
from election.pysyncobj_adapter.journal import RaftEntry, scan_journal
from election.pysyncobj_adapter.member_registry import read_founders
from election.pysyncobj_adapter.members import membership_change
from election.pysyncobj_adapter.peer_marks import PEER_MARKS_MAGIC, PeerMark
from election.pysyncobj_adapter.progress_mark import ProgressMark
from election.pysyncobj_adapter.raft_snapshot import RAFT_SNAPSHOT_MAGIC, Dump
from election.pysyncobj_adapter.view_machine import REGULAR, Machine
from election.view import View


class _ReadOnlyDisk(Disk):
    """Reads files as they lie."""

    def remove(self, path: Path) -> None:
        """Leave what an interrupted replacement has left."""

    def read_from_disk(self, path: Path) -> bytes:
        """Return the content."""
        return path.read_bytes()


class ViewState(msgspec.Struct, frozen=True):
    """A view, and the voters at the same place of consensus's log."""

    view: View
    voters: frozenset[str]


class StoredViews(msgspec.Struct, frozen=True):
    """What one node knew of the view.

    `states` are in the order of the log. The first one is committed; each later one may have been
    agreed, or not. Empty: it has seen no view. `remembered` maps data ids to the (epoch, index) up
    to which their owners had told to be committed there.
    """

    states: tuple[ViewState, ...] = ()
    remembered: dict[str, tuple[int, int]] = {}


def read_views(directory: Path) -> StoredViews:
    """Read the raft directory `directory` of a node, and the files beside it.

    Raises StorageCorruptError: it is damaged, or incomplete; OSError: it cannot be read.
    """
    disk = _ReadOnlyDisk()
    journal = directory / "journal"
    if not journal.exists():
        raise StorageCorruptError(journal, 0, "the file is missing")
    content = scan_journal(journal, disk)
    mark = ProgressMark(directory, content.directory_id, disk)
    if content.entries and content.entries[-1][1] < mark.known[1]:
        raise StorageCorruptError(journal, 0, "it is an older copy")
    machine = Machine(read_founders(directory / "members", disk))
    start = 1
    dump = directory / "dump"
    if dump.exists():
        payload = decode_file(RAFT_SNAPSHOT_MAGIC, dump.read_bytes(), dump)
        found = msgspec.msgpack.decode(payload, type=Dump)
        machine.restore(found.state)
        start = found.last[1]
    entries = [entry for entry in content.entries if entry[1] > start]
    return StoredViews(tuple(_states(machine, entries, mark.known[1])), _remembered(directory))


def _states(machine: Machine, entries: list[RaftEntry], applied_index: int) -> Iterator[ViewState]:
    """Yield what is committed, and then what each later entry makes of it."""
    waiting = [entry for entry in entries if entry[1] > applied_index]
    for entry in entries[: len(entries) - len(waiting)]:
        _apply(machine, entry)
    yield from _state(machine)
    for entry in waiting:
        _apply(machine, entry)
        yield from _state(machine)


def _state(machine: Machine) -> Iterator[ViewState]:
    if machine.view is not None:
        yield ViewState(machine.view, frozenset(machine.raft_members))


def _apply(machine: Machine, entry: RaftEntry) -> None:
    command = entry[0]
    change = membership_change(command)
    if change is not None:
        machine.apply_membership(change)
    elif command[:1] == REGULAR:
        machine.apply(command[1:])


def _remembered(directory: Path) -> dict[str, tuple[int, int]]:
    path = directory.with_name(directory.name + ".peers")
    try:
        marks = load_file(path, PEER_MARKS_MAGIC, dict[str, PeerMark], _ReadOnlyDisk()) or {}
    except StorageCorruptError:
        return {}  # less is known: the node would drop it, too
    return {data_id: mark.position for data_id, mark in marks.items() if mark.index}
