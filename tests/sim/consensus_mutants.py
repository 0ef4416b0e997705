"""Mutants of the rules about consensus: whom to trust (E2), what unknown means (E3), and what the
adapter adds to PySyncObj (E4).
"""

from __future__ import annotations

import pickle
from importlib import import_module
from typing import Any
from unittest.mock import patch

import msgspec
from pysyncobj.node import Node

from datapath.protocol import effects
from datapath.protocol.backup import Backup
from datapath.protocol.primary import Primary
from datapath.protocol.replica import Replica
from election.pysyncobj_adapter import journal as journal_module
from election.pysyncobj_adapter import raft_core as core_module
from election.pysyncobj_adapter import wire
from election.pysyncobj_adapter.journal import Journal
from election.pysyncobj_adapter.link import RaftLink
from election.pysyncobj_adapter.peer_marks import PeerMark
from election.pysyncobj_adapter.raft_core import RaftCore
from election.pysyncobj_adapter.transport import RaftTransport
from election.view import View
from tests.scenarios import test_handover, test_joining
from tests.sim.mutant import Mutant, Patch

UNIT = "tests/unit/election/pysyncobj_adapter/"
MARKS = f"{UNIT}test_peer_marks.py::"


def _e2_authority_without_a_view() -> list[Patch]:
    """As if consensus' own leader took itself for the primary, whatever the view says."""
    on_view = Replica.on_view

    def lead(replica: Replica, view: View) -> list[effects.Effect]:
        if replica.state.node_id == max(view.in_sync):
            view = msgspec.structs.replace(view, primary=replica.state.node_id)
        return on_view(replica, view)

    return [patch.object(Replica, "on_view", lead)]


def _e3_an_unknown_take_over_has_failed() -> list[Patch]:
    done = Backup.on_proposal_done

    def forget(backup: Backup) -> None:
        backup._takeover_version = 0
        done(backup)

    return [patch.object(Backup, "on_proposal_done", forget)]


def _nobody_is_heard_first() -> list[Patch]:
    """As before decision 6: who sends and does not hear would have all others removed."""
    return [patch("datapath.node.proposal.must_hear_first", lambda _: False)]


def _what_is_not_wanted_any_more_leaves() -> list[Patch]:
    def may_propose(replica: Replica, proposal: effects.Propose, now_ms: float) -> bool:
        del now_ms
        return proposal is replica.state.proposal

    return [patch.object(Replica, "may_propose", may_propose)]


def _e3_an_unknown_joining_has_failed() -> list[Patch]:
    done = Primary.on_proposal_done

    def forget(primary: Primary, *, answered: bool) -> None:
        done(primary, answered=answered)
        if not answered:
            primary.in_sync.add("")

    return [patch.object(Primary, "on_proposal_done", forget)]


def _e3_an_unknown_handover_has_failed() -> list[Patch]:
    done = Primary.on_proposal_done

    def forget(primary: Primary, *, answered: bool) -> None:
        done(primary, answered=answered)
        if not answered:
            primary.handovers.phase = "none"

    return [patch.object(Primary, "on_proposal_done", forget)]


def _e4_no_fsync() -> list[Patch]:
    def append(journal: Journal, record: bytes) -> None:
        journal.sync()
        end = journal._end_bytes + len(record)
        if end > journal._size_bytes:
            journal._reserve(end)
        journal._disk.write_all(journal._fd, record, journal._end_bytes)
        journal._end_bytes = end

    return [patch.object(Journal, "_append", append)]


def _e4_no_checksum() -> list[Patch]:
    return [patch.object(journal_module, "crc32c", lambda _: 0)]


def _e4_votes_in_memory() -> list[Patch]:
    def set_term(journal: Journal, term: int, voted_for: str | None) -> None:
        journal._term, journal._voted_for = term, voted_for

    return [patch.object(Journal, "setCurrentTerm", set_term)]


def _e4_no_term_filter() -> list[Patch]:
    def on_ack(core: RaftCore, node: Node, message: wire.FollowerReply) -> None:
        core._pass_on(node, message)

    return [patch.object(RaftCore, "_on_ack", on_ack)]


def _e4_refusals_raise() -> list[Patch]:
    return [patch.object(core_module, "goes_on_at", lambda told, _known: told)]


def _e4_appends_as_they_come() -> list[Patch]:
    def on_append(core: RaftCore, node: Node, message: wire.AppendEntries) -> None:
        core._pass_on(node, message)

    return [patch.object(RaftCore, "_on_append", on_append)]


def _e4_send_before_the_sync() -> list[Patch]:
    def send(links: RaftTransport, node_id: str, message: wire.RaftMessage) -> bool:
        batch, links._journal._batch = links._journal._batch, None
        try:
            return sends(links, node_id, message)
        finally:
            links._journal._batch = batch

    sends = RaftTransport.send_wire
    return [patch.object(RaftTransport, "send_wire", send)]


def _e4_committed_entries_are_replaced() -> list[Patch]:
    def delete(core: Any, from_index: int) -> None:
        super(RaftCore, core)._SyncObj__deleteEntriesFrom(from_index)

    return [patch.object(RaftCore, "_SyncObj__deleteEntriesFrom", delete)]


def _e4_unpickles() -> list[Patch]:
    return [patch.object(import_module("pysyncobj.syncobj"), "pickle", pickle)]


def _e4_changes_wait_in_the_queue() -> list[Patch]:
    """As PySyncObj does it: judged when it is queued, appended whenever its turn comes."""

    def change(core: Any, request: list[str]) -> bool:
        return bool(core._SyncObj__doChangeCluster(request))

    return [patch.object(RaftCore, "_SyncObj__changeCluster", change)]


def _e4_changes_before_the_terms_first_entry() -> list[Patch]:
    def may(core: RaftCore) -> bool:
        return not core._has_change_under_way()

    return [patch.object(RaftCore, "_may_append_change", may)]


def _e4_strangers_stand() -> list[Patch]:
    def ask(core: RaftCore, now: float) -> None:
        core._votes = True
        asks(core, now)

    asks = RaftCore._ask_before_standing
    return [patch.object(RaftCore, "_ask_before_standing", ask)]


def _e4_steps_nobody_may_outlive() -> list[Patch]:
    return [patch.object(RaftCore, "_outlives", lambda *_: True)]


def _e4_an_old_copy_votes() -> list[Patch]:
    return [patch.object(core_module, "is_behind", lambda *_: False)]


def _e4_heard_before_it_is_introduced() -> list[Patch]:
    """As if a link began with any message: votes could come before what is remembered."""

    def introduce(links: RaftTransport, link: RaftLink, message: wire.RaftMessage) -> None:
        link.is_introduced = True
        if isinstance(message, wire.Remembered):
            links._receiver.on_remembered(links._node(link.peer), message.mark)

    return [patch.object(RaftTransport, "_introduce", introduce)]


def _e4_a_memory_that_goes_back() -> list[Patch]:
    return [patch.object(PeerMark, "joined", lambda _, other: other)]


def _e4_told_before_it_was_compared() -> list[Patch]:
    """What an old copy tells must not hide what was remembered of its newer self."""
    return [patch.object(RaftTransport, "_may_tell", lambda *_: True)]


CONSENSUS_MUTANTS = (
    Mutant("E2", "whoever leads consensus acts as primary", _e2_authority_without_a_view),
    Mutant("E3", "an unknown take-over is taken for failed", _e3_an_unknown_take_over_has_failed),
    Mutant("b", "excludes others before consensus was heard", _nobody_is_heard_first),
    Mutant("b", "what a replica has given up is proposed", _what_is_not_wanted_any_more_leaves),
    Mutant(
        "E3", "an unknown joining is taken for failed", _e3_an_unknown_joining_has_failed,
        scenario=test_joining
        .test_a_joining_whose_outcome_is_unknown_counts_until_it_is_settled,
    ),
    Mutant(
        "E3", "an unknown handover is taken for failed", _e3_an_unknown_handover_has_failed,
        scenario=test_handover
        .test_a_handover_whose_outcome_is_unknown_is_settled_before_anyone_serves,
    ),
    Mutant(
        "E4", "the raft journal is not synced", _e4_no_fsync,
        unit=UNIT + "test_journal.py::TestSafetyAndSpace"
        "::test_a_record_is_synced_before_the_call_returns",
    ),
    Mutant(
        "E4", "the raft journal's checksums are not checked", _e4_no_checksum,
        unit=UNIT + "test_journal.py::TestRefuses::test_every_flipped_bit_of_every_record",
    ),
    Mutant(
        "E4", "a vote is only in memory", _e4_votes_in_memory,
        unit=UNIT + "test_raft_core.py::TestVotes::test_one_vote_per_term_also_after_a_restart",
    ),
    Mutant(
        "E4", "acknowledgements of an old term count", _e4_no_term_filter,
        unit=UNIT + "test_raft_core.py::TestAck::test_a_stale_one_counts_for_nothing",
    ),
    Mutant(
        "E4", "a refusal raises where a leader goes on", _e4_refusals_raise,
        unit=UNIT
        + "test_raft_core.py::TestRefusals::test_one_that_lies_behind_another_does_not_raise_it",
    ),
    Mutant(
        "E4", "an old append erases newer entries", _e4_appends_as_they_come,
        unit=UNIT + "test_raft_core.py::TestAppend::test_a_redelivered_append_erases_nothing",
    ),
    Mutant(
        "E4", "an acknowledgement leaves before the sync", _e4_send_before_the_sync,
        unit=UNIT + "test_raft_core.py::TestAppend"
        "::test_they_are_on_the_disk_before_the_acknowledgement_leaves",
    ),
    Mutant(
        "E4", "committed raft entries are replaced", _e4_committed_entries_are_replaced,
        unit=UNIT + "test_raft_core.py::TestAppend"
        "::test_a_contradiction_of_a_committed_entry_stops_the_member",
    ),
    Mutant(
        "E4", "pickles are opened", _e4_unpickles,
        unit=UNIT + "test_raft_core.py::TestLibrary::test_nothing_is_ever_unpickled",
    ),
    Mutant(
        "E4", "two changes of the voters are uncommitted at once", _e4_changes_wait_in_the_queue,
        unit=UNIT + "test_raft_core.py::TestOneChangeAtATime"
        "::test_what_waits_in_the_queue_together_is_not_appended_together",
    ),
    Mutant(
        "E4", "voters change before the term's first entry is committed",
        _e4_changes_before_the_terms_first_entry,
        unit=UNIT + "test_raft_core.py::TestOneChangeAtATime"
        "::test_a_queue_left_over_from_an_earlier_term_waits_for_this_terms_first_entry",
    ),
    Mutant(
        "E4", "voters change although no majority would be left", _e4_steps_nobody_may_outlive,
        unit=UNIT + "test_raft_core.py::TestOneChangeAtATime"
        "::test_a_step_whose_majority_has_died_while_it_waited_is_not_appended",
    ),
    Mutant(
        "E4", "a node that is no voter yet stands for election", _e4_strangers_stand,
        unit=UNIT + "test_raft_core.py::TestNewcomers"
        "::test_one_that_is_no_member_yet_never_stands",
    ),
    Mutant(
        "E4", "who lacks votes that others remember votes again", _e4_an_old_copy_votes,
        unit=MARKS + "test_who_lacks_a_vote_or_an_entry_that_is_remembered_ends_before_it_votes",
    ),
    Mutant(
        "E4", "a member is heard before it said what it remembers",
        _e4_heard_before_it_is_introduced,
        unit=MARKS + "test_who_does_not_say_first_what_it_remembers_is_not_listened_to",
    ),
    Mutant(
        "E4", "a member tells how far it is before it was compared",
        _e4_told_before_it_was_compared,
        unit=MARKS + "test_nothing_is_told_on_a_link_before_the_peer_has_said_what_it_remembers",
    ),
    Mutant(
        "E4", "what was told last is remembered, though it was less",
        _e4_a_memory_that_goes_back,
        unit=MARKS + "test_who_tells_less_is_remembered_as_further",
    ),
)  # fmt: skip
