"""Mutants of the replica: commits, leases, epochs, change of primary, joining."""

from __future__ import annotations

import math
from typing import Any
from unittest.mock import patch

import msgspec

import election.view as view_module
from datapath.protocol import effects
from datapath.protocol import in_sync as in_sync_module
from datapath.protocol import primary as primary_module
from datapath.protocol.backup import Backup
from datapath.protocol.heartbeats import Heartbeats
from datapath.protocol.in_sync import InSync
from datapath.protocol.log_index import LogIndex
from datapath.protocol.messages import Append, HeartbeatReply, Probe, ProbeReply
from datapath.protocol.primary import Primary
from datapath.protocol.progress import Progress
from datapath.protocol.replica import Replica
from datapath.protocol.state import ReplicaState
from election.view import View
from tests.scenarios import (
    test_far_backups,
    test_joining,
    test_lost_entries,
    test_promises,
    test_put_back,
    test_snapshots,
)
from tests.sim.mutant import Mutant, Patch
from tests.unit.datapath.protocol import test_replica_guards


def _property(value: object) -> property:
    return property(lambda _: value)


def _e1_anybody_takes_over() -> list[Patch]:
    def take_over(view: View, candidate: str) -> View:
        in_sync = tuple(sorted({*view.in_sync, candidate} - {view.primary} | {candidate}))
        return view_module._next(
            view, epoch=view.epoch + 1, primary=candidate, in_sync=in_sync, handed_over=False
        )

    def order(backup: Backup, view: View) -> list[str]:
        return sorted(node.id for node in view.members if node.role == "replica")

    on_tick = Backup.on_tick

    def tick(backup: Backup) -> None:
        state = backup._state
        view = state.view
        if view is not None and view.member(state.node_id) is not None:
            state.view = msgspec.structs.replace(view, in_sync=tuple(order(backup, view)))
        on_tick(backup)
        state.view = view

    may_propose = Backup.may_propose

    def propose(backup: Backup, proposal: effects.Propose) -> bool:
        state = backup._state
        view = state.view
        if view is not None and view.member(state.node_id) is not None:
            state.view = msgspec.structs.replace(view, in_sync=tuple(order(backup, view)))
        try:
            return may_propose(backup, proposal)
        finally:
            state.view = view

    return [
        patch.object(Backup, "may_propose", propose),
        patch.object(view_module, "_take_over", take_over),
        patch.object(Backup, "on_tick", tick),
    ]


def _e5_answer_before_it_is_durable() -> list[Patch]:
    always = property(lambda _: True, lambda *_: None)
    return [patch.object(ReplicaState, "accepted_is_durable", always, create=True)]


def _d1_not_all_required() -> list[Patch]:
    required = in_sync_module.required_nodes

    def all_but_one(view: View, adding: str, node_id: str) -> frozenset[str]:
        return frozenset(sorted(required(view, adding, node_id))[1:])

    return [patch.object(in_sync_module, "required_nodes", all_but_one)]


def _d1_adding_does_not_count() -> list[Patch]:
    required = in_sync_module.required_nodes

    def without_adding(view: View, _adding: str, node_id: str) -> frozenset[str]:
        return required(view, "", node_id)

    return [patch.object(in_sync_module, "required_nodes", without_adding)]


def _d1_an_addition_without_outcome_is_forgotten() -> list[Patch]:
    propose_due = Primary._propose_due

    def propose(primary: Primary, due_out: tuple[str, ...]) -> None:
        primary.in_sync.add("")
        propose_due(primary, due_out)

    return [patch.object(Primary, "_propose_due", propose)]


def _d1_min_in_sync_ignored() -> list[Patch]:
    maybe_commit = Primary._maybe_commit

    def commit(primary: Primary) -> None:
        bounds = primary._state.bounds
        primary._state.bounds = msgspec.structs.replace(bounds, min_in_sync=1)
        maybe_commit(primary)
        primary._state.bounds = bounds

    return [patch.object(Primary, "_maybe_commit", commit)]


def _d1_removal_before_it_is_agreed() -> list[Patch]:
    def without_silent(in_sync: InSync) -> frozenset[str]:
        nodes = in_sync_module.required_nodes(in_sync.view, in_sync.adding, in_sync._state.node_id)
        return frozenset(node for node in nodes if not in_sync.must_remove(node))

    required = property(without_silent, lambda *_: None)
    return [patch.object(InSync, "required", required, create=True)]


def _d3_no_fence() -> list[Patch]:
    return [patch.object(Backup, "_fence", lambda *_: False)]


def _d4_lease_from_the_answer() -> list[Patch]:
    def on_reply(heartbeats: Heartbeats, peer: Progress, message: HeartbeatReply) -> None:
        peer.lease_start_ms = heartbeats._state.now_ms
        peer.writable = message.writable

    return [patch.object(Heartbeats, "on_reply", on_reply)]


def _d4_no_lease() -> list[Patch]:
    return [patch.object(Primary, "lease_until_ms", lambda _: float("inf"))]


def _d4_lease_without_the_added() -> list[Patch]:
    def lease(primary: Primary) -> float:
        backups = set(primary.in_sync.view.in_sync) - {primary._state.node_id}
        starts = [primary.peers[node].lease_start_ms for node in backups]
        lasts_ms = primary._state.timing.lease_duration_ms
        return min((-math.inf if s is None else s + lasts_ms for s in starts), default=math.inf)

    return [patch.object(Primary, "lease_until_ms", lease)]


def _d4_no_grace() -> list[Patch]:
    def may_claim(backup: Backup, view: View) -> float:
        if view.primary == backup._state.node_id:
            return backup._self_claim_ms
        return backup.contact_ms + backup._state.timing.suspect_after_ms

    return [patch.object(Backup, "_may_claim_ms", may_claim)]


def _d4_restart_forgets_promises() -> list[Patch]:
    start = Backup.__init__

    def forget(backup: Backup, state: ReplicaState) -> None:
        start(backup, state)
        backup.contact_ms = state.promised_ms = state.now_ms - 1000

    on_view = Backup.on_view

    def view(backup: Backup, view: View, *, new_epoch: bool) -> None:
        contact = backup.contact_ms
        on_view(backup, view, new_epoch=new_epoch)
        backup.contact_ms = contact

    return [patch.object(Backup, "__init__", forget), patch.object(Backup, "on_view", view)]


def _d5_late_promises() -> list[Patch]:
    always = property(lambda _: math.inf, lambda *_: None)
    return [patch.object(Progress, "leased_ms", always, create=True)]


def _d5_late_removal() -> list[Patch]:
    must_remove = InSync.must_remove

    def late(in_sync: InSync, node: str) -> bool:
        peer = in_sync.peers.get(node)
        age = in_sync._state.now_ms - peer.heard_ms if peer else 0.0
        return age > 60_000 and must_remove(in_sync, node)

    return [patch.object(InSync, "must_remove", late)]


def _d6_serve_before_the_opening_commits() -> list[Patch]:
    return [patch.object(Primary, "is_open", property(lambda self: self.stage == "open"))]


def _d6_no_matching() -> list[Patch]:
    on_append = Backup.on_append

    def believe(backup: Backup, peer: str, message: Append) -> None:
        held = backup._state.log.epoch_at(message.prev_index)
        if held is not None:
            message = msgspec.structs.replace(message, prev_epoch=held)
        on_append(backup, peer, message)

    return [
        patch.object(LogIndex, "match", lambda self, last, *_: min(last, self.last_index)),
        patch.object(Backup, "on_append", believe),
    ]


def _d6_old_matches_count() -> list[Patch]:
    def accept(backup: Backup, epoch: int, primary: str) -> None:
        backup._state.accept(epoch, primary)

    return [patch.object(Backup, "accept", accept)]


def _d6_cut_what_is_committed() -> list[Patch]:
    def truncate(state: ReplicaState, from_index: int) -> None:
        state.log.truncate(from_index)
        state.durable_index = min(state.durable_index, from_index - 1)
        state.emit(effects.TruncateLog(state.ticket(), from_index))

    return [patch.object(ReplicaState, "truncate", truncate)]


def _e5_second_primary() -> list[Patch]:
    on_probe = Backup.on_probe

    def forget(backup: Backup, peer: str, message: Probe) -> None:
        backup._state.accepted_primary = peer
        on_probe(backup, peer, message)

    return [patch.object(Backup, "on_probe", forget)]


def _d7_join_at_once() -> list[Patch]:
    def may_join(_in_sync: InSync, peer: Progress, _opening_index: int) -> bool:
        return peer.state == "replicate"

    return [patch.object(InSync, "may_join", may_join)]


def _d7_join_without_the_opening() -> list[Patch]:
    may_join = InSync.may_join

    def join(in_sync: InSync, peer: Progress, _opening_index: int) -> bool:
        return may_join(in_sync, peer, 0)

    return [patch.object(InSync, "may_join", join)]


def _d9_ack_before_it_is_durable() -> list[Patch]:
    advance = Backup._advance

    def early(backup: Backup) -> None:
        state = backup._state
        durable, state.durable_index = state.durable_index, state.log.last_index
        advance(backup)
        state.durable_index = durable

    return [patch.object(Backup, "_advance", early)]


def _a_serve_despite_own_promise() -> list[Patch]:
    return [patch.object(Primary, "is_free_of_promises", lambda _: True)]


def _a_the_second_epoch_is_the_first() -> list[Patch]:
    return [patch.object(primary_module, "is_first_epoch", lambda view: view.epoch <= 2)]


def _a_yield_despite_own_promise() -> list[Patch]:
    maybe_open = Primary._maybe_open

    def yield_first(primary: Primary) -> None:
        may_yield = primary.stage == "matching" and primary._state.tail_cut
        if may_yield and not primary._is_longest():
            return
        maybe_open(primary)

    return [patch.object(Primary, "_maybe_open", yield_first)]


def _b_promise_during_own_take_over() -> list[Patch]:
    on_heartbeat = Backup.on_heartbeat

    def promise(backup: Backup, peer: str, message: Any) -> None:
        version, backup._takeover_version = backup._takeover_version, 0
        on_heartbeat(backup, peer, message)
        backup._takeover_version = version

    return [patch.object(Backup, "on_heartbeat", promise)]


def _b_leaves_though_the_primary_was_heard() -> list[Patch]:
    def may_propose(backup: Backup, proposal: effects.Propose) -> bool:
        backup._takeover_version = proposal.expected_version
        return True

    return [patch.object(Backup, "may_propose", may_propose)]


def _b_wishing_counts_as_proposing() -> list[Patch]:
    claim = Backup._claim

    def wish(backup: Backup, view: View) -> None:
        backup._takeover_version = view.version
        claim(backup, view)

    return [patch.object(Backup, "_claim", wish)]


def _b_nobody_is_let_back() -> list[Patch]:
    check = InSync.check_giving_way

    def forget(in_sync: InSync, *, is_blocked: bool) -> tuple[str, ...]:
        due_out = check(in_sync, is_blocked=is_blocked)
        if in_sync.giving_way:
            in_sync._gave_way_for = frozenset(in_sync.view.in_sync)
        return due_out

    return [patch.object(InSync, "check_giving_way", forget)]


def _c_speak_before_it_is_durable() -> list[Patch]:
    start = Primary.__init__

    def early(primary: Primary, state: ReplicaState, view: View, links: dict[str, int]) -> None:
        start(primary, state, view, links)
        primary.stage = "matching"
        for node in primary.peers:
            primary.on_link(node)

    return [patch.object(Primary, "__init__", early)]


def _d_serve_in_the_old_epoch() -> list[Patch]:
    on_view = Replica.on_view

    def resume(replica: Replica, view: View) -> list[effects.Effect]:
        state = replica.state
        if state.view is None and (view.epoch, view.primary) == (
            state.accepted_epoch,
            state.node_id,
        ):
            state.accepted_epoch -= 1
        return on_view(replica, view)

    return [patch.object(Replica, "on_view", resume)]


def _e_cut_tail_does_not_yield() -> list[Patch]:
    start = ReplicaState.__init__

    def trusting(state: ReplicaState, *args: Any, **kwargs: Any) -> None:
        start(state, *args, **kwargs)
        state.tail_cut = False

    return [patch.object(ReplicaState, "__init__", trusting)]


def _e_damaged_takes_over() -> list[Patch]:
    start = ReplicaState.__init__

    def trusting(state: ReplicaState, *args: Any, **kwargs: Any) -> None:
        start(state, *args, **kwargs)
        state.incomplete = False

    return [patch.object(ReplicaState, "__init__", trusting)]


def _e_told_of_a_loss_and_forgets_it() -> list[Patch]:
    def mark(state: ReplicaState) -> None:
        state.incomplete = True

    return [patch.object(ReplicaState, "mark_incomplete", mark)]


def _e_acts_before_its_loss_is_durable() -> list[Patch]:
    return [patch.object(ReplicaState, "marks_are_durable", _property(value=True))]


def _e_no_loss_without_a_cut_tail() -> list[Patch]:
    on_probe = Backup.on_probe

    def probe(backup: Backup, peer: str, message: Probe) -> None:
        on_probe(backup, peer, msgspec.structs.replace(message, required=False))

    return [patch.object(Backup, "on_probe", probe)]


def _e_cut_tail_cuts_longer_logs() -> list[Patch]:
    on_probe_reply = Primary._on_probe_reply

    def feed(primary: Primary, peer: Progress, message: ProbeReply) -> None:
        suspect, primary._state.tail_cut = primary._state.tail_cut, False
        try:
            on_probe_reply(primary, peer, message)
        finally:
            primary._state.tail_cut = suspect

    return [patch.object(Primary, "_on_probe_reply", feed)]


def _e_who_yields_is_not_damaged() -> list[Patch]:
    is_longest = Primary._is_longest

    def forget(primary: Primary) -> bool:
        with patch.object(ReplicaState, "mark_incomplete", lambda _: None):
            return is_longest(primary)

    return [patch.object(Primary, "_is_longest", forget)]


def _e_who_is_told_is_not_damaged() -> list[Patch]:
    on_probe = Backup.on_probe

    def forget(backup: Backup, peer: str, message: Probe) -> None:
        with patch.object(ReplicaState, "mark_incomplete", lambda _: None):
            on_probe(backup, peer, message)

    return [patch.object(Backup, "on_probe", forget)]


def _e_reminders_are_ignored() -> list[Patch]:
    return [patch.object(Replica, "_has_gone_back", lambda *_: False)]


def _e_opens_an_epoch_before_consensus_was_heard() -> list[Patch]:
    start = Replica.__init__

    def heard(replica: Replica, *args: Any, **kwargs: Any) -> None:
        start(replica, *args, **kwargs)
        replica.on_consensus_heard()

    return [patch.object(Replica, "__init__", heard)]


def _e_a_reminded_primary_goes_on() -> list[Patch]:
    return [patch.object(Primary, "on_gone_back", lambda *_: None)]


def _e_tells_what_may_be_cut() -> list[Patch]:
    last = property(lambda state: state.log.last_position)
    return [patch.object(ReplicaState, "committed_position", last)]


def _e_misses_what_was_given_up() -> list[Patch]:
    def has_gone_back(replica: Replica, epoch: int, index: int) -> bool:
        return not replica.state.holds_committed(epoch, index)

    return [patch.object(Replica, "_has_gone_back", has_gone_back)]


def _install_over_a_longer_log() -> list[Patch]:
    def start_install(replica: Replica, index: int, _epoch: int) -> str:
        state = replica.state
        if replica.primary or state.installing or index <= state.commit_index:
            return "no"
        state.installing = True
        replica.backup.on_install_started()
        return ""

    return [patch.object(Replica, "start_install", start_install)]


def _install_over_acknowledged_entries() -> list[Patch]:
    def start_install(replica: Replica, index: int, epoch: int) -> str:
        if replica.primary or index < replica.state.commit_index:
            return "no"
        replica.state.installing = True
        return ""

    return [patch.object(Replica, "start_install", start_install)]


REPLICA_MUTANTS = (
    Mutant("E1", "anybody takes over, in sync or not", _e1_anybody_takes_over),
    Mutant("E5", "answers before the epoch is durable", _e5_answer_before_it_is_durable),
    Mutant("D1", "a commit does without one in-sync replica", _d1_not_all_required),
    Mutant("D1", "a replica being added does not count", _d1_adding_does_not_count),
    Mutant(
        "D1", "another replica is added while it is unknown whether the last one was",
        _d1_an_addition_without_outcome_is_forgotten,
        unit="tests/unit/datapath/protocol/test_primary_guards.py"
        "::test_another_is_not_added_before_it_is_known_whether_the_first_one_was",
    ),
    Mutant("D1", "min_in_sync is ignored", _d1_min_in_sync_ignored),
    Mutant("D1", "a silent replica is left out at once", _d1_removal_before_it_is_agreed),
    Mutant(
        "D1", "a snapshot replaces acknowledged entries", _install_over_acknowledged_entries,
        scenario=test_snapshots.test_a_snapshot_never_replaces_entries_that_were_acknowledged,
    ),
    Mutant(
        "D1", "a snapshot replaces a log that goes further", _install_over_a_longer_log,
        scenario=test_snapshots
        .test_a_snapshot_never_replaces_a_log_that_holds_its_last_entry,
    ),
    Mutant(
        "D3", "lower epochs are not refused", _d3_no_fence,
        scenario=test_promises.test_a_deposed_primary_is_refused_and_told_of_the_higher_epoch,
    ),
    Mutant(
        "D4", "the lease counts from the answer", _d4_lease_from_the_answer,
        scenario=test_promises.test_a_lease_counts_from_the_sending_of_the_heartbeat,
    ),
    Mutant("D4", "the primary serves without leases", _d4_no_lease),
    Mutant(
        "D4", "the lease does without the replica being added", _d4_lease_without_the_added,
        scenario=test_promises.test_a_lease_needs_the_promise_of_a_replica_being_added,
    ),
    Mutant("D4", "take-over before the grace period is over", _d4_no_grace),
    Mutant("D4", "a restart forgets what was promised", _d4_restart_forgets_promises),
    Mutant(
        "D5", "silent replicas stay in the in-sync set", _d5_late_removal,
        scenario=test_promises.test_reads_do_not_stop_when_a_backup_dies,
    ),
    Mutant(
        "D5", "a backup whose promises come too late stays", _d5_late_promises,
        scenario=test_far_backups.test_a_backup_whose_promises_come_too_late_is_removed,
    ),
    Mutant("D6", "serves before its opening entry commits", _d6_serve_before_the_opening_commits),
    Mutant("D6", "logs are taken to match", _d6_no_matching),
    Mutant(
        "D6", "what matched one primary is acknowledged to the next", _d6_old_matches_count,
        scenario=test_replica_guards
        .test_what_matched_one_primary_is_not_acknowledged_to_the_next,
    ),
    Mutant(
        "D6", "committed entries are cut when told so", _d6_cut_what_is_committed,
        scenario=test_replica_guards.test_committed_entries_are_never_cut,
    ),
    Mutant(
        "E5", "a second primary for one epoch is accepted", _e5_second_primary,
        scenario=test_replica_guards.test_a_second_primary_for_one_epoch_is_refused,
    ),
    Mutant("D7", "a learner joins before it has caught up", _d7_join_at_once),
    Mutant(
        "D7", "a learner joins without the opening entry", _d7_join_without_the_opening,
        scenario=test_joining.test_a_learner_joins_no_sooner_than_it_holds_the_opening_entry,
    ),
    Mutant("D9", "acknowledged before it is durable", _d9_ack_before_it_is_durable),
    Mutant(
        "a", "serves although it has promised another", _a_serve_despite_own_promise,
        scenario=test_promises
        .test_a_take_over_of_an_earlier_lifetime_waits_for_the_promises_of_this_one,
    ),
    Mutant(
        "a", "the second epoch is the first", _a_the_second_epoch_is_the_first,
        scenario=test_promises
        .test_a_take_over_of_an_earlier_lifetime_waits_for_the_promises_of_this_one,
    ),
    Mutant(
        "a", "yields although it has promised another", _a_yield_despite_own_promise,
        scenario=test_promises
        .test_a_primary_that_lost_its_tail_yields_only_when_its_own_promises_have_run_out,
    ),
    Mutant("b", "promises while its own take-over is open", _b_promise_during_own_take_over),
    Mutant(
        "b", "a take-over leaves though the primary was heard",
        _b_leaves_though_the_primary_was_heard,
    ),
    Mutant(
        "b", "a take-over that never left is unknown", _b_wishing_counts_as_proposing,
        scenario=test_promises
        .test_reads_go_on_after_a_pause_of_the_primary_without_a_majority,
    ),
    Mutant(
        "b", "held up by those whom it does not ask", _b_nobody_is_let_back,
        scenario=test_promises
        .test_reads_come_back_after_a_pause_of_a_backup_without_a_majority,
    ),
    Mutant("c", "speaks before its epoch is durable", _c_speak_before_it_is_durable),
    Mutant("d", "a restarted primary goes on in its epoch", _d_serve_in_the_old_epoch),
    Mutant(
        "e", "a cut tail is not taken seriously", _e_cut_tail_does_not_yield,
        scenario=test_lost_entries
        .test_a_primary_that_lost_its_tail_hands_over_to_a_backup_that_has_more,
    ),
    Mutant(
        "e", "a cut log makes longer ones follow it", _e_cut_tail_cuts_longer_logs,
        scenario=test_lost_entries
        .test_a_primary_that_lost_its_tail_waits_if_a_learner_knows_of_what_it_lost,
    ),
    Mutant(
        "e", "what it was told of its loss is forgotten", _e_told_of_a_loss_and_forgets_it,
        scenario=test_lost_entries
        .test_a_replica_that_was_told_of_its_loss_remembers_it_over_a_restart,
    ),
    Mutant(
        "e", "yields before its loss is durable", _e_acts_before_its_loss_is_durable,
        scenario=test_lost_entries
        .test_a_primary_that_was_told_of_its_loss_remembers_it_over_a_restart,
    ),
    Mutant(
        "e", "an old copy of a log is not told so", _e_no_loss_without_a_cut_tail,
        scenario=test_lost_entries
        .test_a_replica_whose_directory_is_an_old_copy_is_told_and_takes_over_from_nobody,
    ),
    Mutant(
        "e", "who has yielded may take over again", _e_who_yields_is_not_damaged,
        scenario=test_lost_entries.test_a_primary_that_has_yielded_does_not_take_over_again,
    ),
    Mutant(
        "e", "who was told of its loss may take over", _e_who_is_told_is_not_damaged,
        scenario=test_lost_entries
        .test_a_backup_that_lost_its_tail_and_was_told_so_takes_over_from_nobody,
    ),
    Mutant("e", "a damaged replica takes over", _e_damaged_takes_over, seed=10),
    Mutant(
        "e", "what others remember of it is ignored", _e_reminders_are_ignored,
        scenario=test_put_back
        .test_a_backup_put_back_while_the_primary_is_away_takes_over_from_nobody,
    ),
    Mutant("e", "what others remember of it is ignored, at random", _e_reminders_are_ignored),
    Mutant(
        "e", "is made primary by a view before consensus was heard",
        _e_opens_an_epoch_before_consensus_was_heard,
        scenario=test_put_back
        .test_a_primary_put_back_to_before_its_epoch_does_not_open_it_again,
    ),
    Mutant(
        "e", "a primary that is reminded of its loss goes on", _e_a_reminded_primary_goes_on,
        unit="tests/unit/datapath/protocol/test_reminders.py::test_a_primary_notes_it_and_stops",
    ),
    Mutant("e", "tells the others of what may be cut yet", _e_tells_what_may_be_cut),
    Mutant(
        "e", "misses what the cluster has given up", _e_misses_what_was_given_up,
        unit="tests/unit/datapath/protocol/test_reminders.py"
        "::test_entries_that_the_cluster_has_given_up_are_not_missed",
    ),
)  # fmt: skip
