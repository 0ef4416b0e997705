"""Mutants of what the adapter adds to PySyncObj (E4), for the simulator of consensus to notice."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Any
from unittest.mock import patch

import msgspec

from election.pysyncobj_adapter.files import Disk
from election.pysyncobj_adapter.peer_marks import PeerMark
from election.pysyncobj_adapter.raft_core import RaftCore
from election.pysyncobj_adapter.storage import RaftStorage
from election.pysyncobj_adapter.view_machine import Machine
from tests.sim import consensus_mutants as same
from tests.sim.mutant import Mutant, Patch


def _no_pre_vote() -> list[Patch]:
    def ask(core: RaftCore, now: float) -> None:
        asks(core, now)
        if core._votes:
            core._ballot.won = True

    asks = RaftCore._ask_before_standing
    return [patch.object(RaftCore, "_ask_before_standing", ask)]


def _progress_is_not_noted() -> list[Patch]:
    return [patch.object(RaftStorage, "note_progress", lambda *_: None)]


def _old_copies_are_taken_up() -> list[Patch]:
    return [patch.object(RaftStorage, "_check_mark", lambda *_: None)]


def _names_are_not_synced() -> list[Patch]:
    return [patch.object(Disk, "sync_directory", lambda *_: None)]


def _believes_the_page_cache() -> list[Patch]:
    def read(disk: Disk, path: Any) -> bytes:
        fd = disk.open(path, 0)
        try:
            return disk.read(fd, disk.size(fd), 0)
        finally:
            disk.close(fd)

    return [patch.object(Disk, "read_from_disk", read)]


def _members_only_as_applied() -> list[Patch]:
    """Changes count when they are applied, not when they are appended."""
    return [patch.object(RaftCore, "_logged_members", lambda core, *_: core.machine.raft_members)]


def _lets_no_stranger_in() -> list[Patch]:
    return [patch.object(RaftCore, "_lets_in", lambda *_: False)]


def _welcomes_voters_only() -> list[Patch]:
    """A group of one never meets its second member: it has no vote, and gets none unmet."""

    def welcome(core: RaftCore) -> AbstractSet[str]:
        return set() if core._votes else welcomes(core)

    welcomes = RaftCore._welcome
    return [patch.object(RaftCore, "_welcome", welcome)]


def _reaches_for_nobody() -> list[Patch]:
    return [patch.object(RaftCore, "_reaches_for", lambda *_: False)]


def _tells_what_is_not_stored_yet() -> list[Patch]:
    def own_mark(core: RaftCore) -> PeerMark:
        mark = tells(core)
        return msgspec.structs.replace(mark, applied_index=mark.applied_index + 1)

    tells = RaftCore._own_mark
    return [patch.object(RaftCore, "_own_mark", own_mark)]


def _repeats_are_applied() -> list[Patch]:
    def apply(machine: Machine, data: bytes) -> Any:
        machine._answers.clear()
        return applies(machine, data)

    applies = Machine.apply
    return [patch.object(Machine, "apply", apply)]


def _mutant(broken: str, patches: Callable[[], list[Patch]], seed: int = 0) -> Mutant:
    """Return one that schedules of consensus are to notice, from that seed on."""
    return Mutant("E4", f"consensus: {broken}", patches, seed=seed, consensus=True)


RAFT_MUTANTS = (
    _mutant("the raft journal is not synced", same._e4_no_fsync),
    _mutant("a vote is only in memory", same._e4_votes_in_memory),
    _mutant("an old append erases newer entries", same._e4_appends_as_they_come),
    _mutant("an acknowledgement leaves before the sync", same._e4_send_before_the_sync),
    _mutant("two voter changes wait in one queue", same._e4_changes_wait_in_the_queue, seed=90),
    _mutant(
        "voters change before the term's first commit",
        same._e4_changes_before_the_terms_first_entry,
    ),
    _mutant("members stand without asking first", _no_pre_vote),
    _mutant("how far it has got is not noted", _progress_is_not_noted),
    _mutant("an old copy of the directory is taken up", _old_copies_are_taken_up, seed=200),
    _mutant("names of files are not synced", _names_are_not_synced),
    _mutant("what an fsync lost is read from the cache", _believes_the_page_cache),
    _mutant("voters change only when it is applied", _members_only_as_applied),
    _mutant("who is lost lets nobody in", _lets_no_stranger_in, seed=200),
    _mutant("a group of one does not meet its second", _welcomes_voters_only),
    _mutant("a leader reaches for nobody", _reaches_for_nobody, seed=3000),
    _mutant("what is not stored yet is told", _tells_what_is_not_stored_yet),
    _mutant("a request that comes twice is judged twice", _repeats_are_applied, seed=170),
)
