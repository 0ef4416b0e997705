"""PySyncObj's Raft with its gaps closed: the one file that reaches into its private parts.

A method named `_SyncObj__x` replaces PySyncObj's private `__x`, in the version of `library` only.
"""

# ruff: noqa: N802, N803 - names that replace PySyncObj's are PySyncObj's

from __future__ import annotations

import contextlib
import logging
from collections.abc import Set as AbstractSet
from typing import Protocol

from pysyncobj import SyncObjConf
from pysyncobj.node import Node

from election.pysyncobj_adapter import wire
from election.pysyncobj_adapter.clock import monotonic
from election.pysyncobj_adapter.errors import (
    RaftStorageFullError,
    RolledBackError,
    SafetyViolationError,
)
from election.pysyncobj_adapter.library import check_version, injected
from election.pysyncobj_adapter.members import RaftMembers, membership_change
from election.pysyncobj_adapter.network import Network
from election.pysyncobj_adapter.peer_marks import PeerMark
from election.pysyncobj_adapter.poller import READ, OnEvent
from election.pysyncobj_adapter.pre_vote import Ballot
from election.pysyncobj_adapter.progress_mark import goes_on_at, is_behind
from election.pysyncobj_adapter.raft_snapshot import Dump
from election.pysyncobj_adapter.settings import AgreementSettings
from election.pysyncobj_adapter.storage import RaftStorage
from election.pysyncobj_adapter.transport import RaftTransport
from election.pysyncobj_adapter.view_machine import REGULAR, Machine, ViewReply

_STALL_S = 0.05
_MAX_WAIT_S = 0.05
_COMPACTION_RETRY_S = 5.0
_LOST_S = 1.0
"""Who has heard no leader for so long may have missed who the members are."""

logger = logging.getLogger(__name__)


class CoreListener(Protocol):
    """Who is told what the log says. Called on the Raft thread; must not raise."""

    def on_applied(self, answer: ViewReply) -> None:
        """A request was applied."""

    def on_restored(self) -> None:
        """The state was replaced by a dump: requests may have been applied unseen."""

    def on_remembered(self, epoch: int, index: int) -> None:
        """Another member remembers that this node's data was committed up to there."""


class RaftCore(RaftMembers):
    """One member. Built, ticked and closed on one thread."""

    _SyncObj__lastSerializedTime: float

    def __init__(
        self,
        settings: AgreementSettings,
        storage: RaftStorage,
        listener: CoreListener,
        network: Network | None = None,
    ) -> None:
        """Bind the port and take up the stored state.

        Raises:
            AgreementFailedError: the version of PySyncObj is not the one read, or the port cannot
                be bound.

        """
        check_version()
        self.machine = Machine(storage.book.founders)
        self.position = (0, 0)  # (epoch, index) of the data here, to be told to the others
        self._settings = settings
        self._storage = storage
        self._journal = storage.journal
        self._listener = listener
        self._network = network or Network()
        self._poller_in_use = self._network.poller()
        self._ballot = Ballot()
        self._voters: tuple[int, set[str]] = (0, set())
        self._heard_leader_at = float("-inf")
        self._started_at = monotonic()
        self._tick_due_at: float | None = None
        self._membership_checked_at = float("-inf")
        self._compaction_retry_at = float("-inf")
        self._compaction_is_due = False
        dump = storage.dumps.current
        if dump is not None:
            self.machine.restore(dump.state)
        members = self._logged_members(list(self._journal), 1 if dump is None else dump.last[1])
        self._votes = settings.node_id in members
        with injected(self._journal, self._poller_in_use):
            super().__init__(
                Node(settings.node_id),
                [Node(node_id) for node_id in members if node_id != settings.node_id],
                self._configuration(),
                nodeClass=Node,
                transportClass=self._make_transport,
            )
        self._SyncObj__serializer = storage.dumps
        self._SyncObj__needLoadDumpFile = False
        if dump is not None:
            self._SyncObj__raftLastApplied = self._SyncObj__raftCommitIndex = dump.last[1]

    def _configuration(self) -> SyncObjConf:
        settings = self._settings
        return SyncObjConf(
            autoTick=False,
            appendEntriesUseBatch=False,
            appendEntriesPeriod=settings.heartbeat_interval_ms / 1000,
            raftMinTimeout=settings.election_min_ms / 1000,
            raftMaxTimeout=settings.election_max_ms / 1000,
            leaderFallbackTimeout=settings.leader_fallback_ms / 1000,
            connectionTimeout=settings.connection_timeout_ms / 1000,
            connectionRetryTime=settings.dial_interval_ms / 1000,
            dynamicMembershipChange=True,
            commandsWaitLeader=True,
        )

    def _make_transport(self, _core: object, me: Node, others: set[Node]) -> RaftTransport:
        self._links = RaftTransport(
            self,
            me,
            others,
            settings=self._settings,
            network=self._network,
            poller=self._poller_in_use,
            journal=self._journal,
            book=self._storage.book,
            marks=self._storage.marks,
            own_mark=self._own_mark,
            dial_addresses=self._dial_addresses,
            welcome=self._welcome,
            lets_in=self._lets_in,
            reaches_for=self._reaches_for,
        )
        return self._links

    def _welcome(self) -> AbstractSet[str]:
        """Return who may have a link without a vote.

        A member of the view that is about to become one here is heard before it counts. Who does
        not vote itself cannot know who does: it links with whom it was told of.
        """
        return self.machine.wanted_members.keys() | (
            set() if self._votes else self._settings.members.keys()
        )

    def _lets_in(self, node_id: str) -> bool:
        """Whether one that is no member here may have a link all the same.

        This member may be the one that does not know better: it has been away, or has joined with
        the members of then. So who hears no leader lets in whoever has proved the secret, and the
        leader that it finds that way stays. Votes of others than voters do not count.
        """
        if self._isLeader():
            return False
        if monotonic() - max(self._heard_leader_at, self._started_at) > _LOST_S:
            return True  # whoever led: one without a vote never stands, and so never forgets it
        return bool(Node(node_id) == self._SyncObj__raftLeader)

    def _reaches_for(self, node_id: str) -> bool:
        """Whether this member leads, and that one has acknowledged nothing to it."""
        return bool(self._isLeader() and not self._SyncObj__raftMatchIndex.get(Node(node_id)))

    def _dial_addresses(self, node_id: str) -> list[str]:
        """Return where to dial a member: by this process's route, else wherever it may be.

        First the agreed address, then the one in this node's configuration: after all nodes have
        moved at once, nobody can agree on anything before they have met at the new ones. Who
        answers there has to prove who it is.
        """
        settings, machine = self._settings, self.machine
        if node_id in settings.routes:
            return [settings.routes[node_id]]
        found = [machine.wanted_members.get(node_id) or machine.raft_members.get(node_id)]
        if settings.registry is not None:
            found += settings.registry.dial_addresses(node_id, "raft")
        found.append(settings.members.get(node_id))
        return list(dict.fromkeys(address for address in found if address))

    # The face.

    @property
    def leader_in_term(self) -> tuple[str, int] | None:
        """The leader to send commands to and its term; a hint, and never an authority (E2)."""
        leader = self._SyncObj__raftLeader
        return None if leader is None else (str(leader.id), int(self.raftCurrentTerm))

    @property
    def member_ids(self) -> list[str]:
        """The members of the configuration that counts, sorted."""
        others = (str(node.id) for node in self._SyncObj__otherNodes)
        return sorted([self._settings.node_id, *others])

    def connected_ids(self) -> list[str]:
        """Return the members with an open link."""
        return self._links.connected()

    @property
    def founders(self) -> dict[str, str]:
        """The members with which the group's log began: ids and raft addresses."""
        return self._storage.book.founders

    @property
    def log_entries(self) -> int:
        """How many entries the journal holds."""
        return len(self._journal)

    def status_facts(self) -> tuple[object, ...]:
        """Return what everything follows from that a status shows: it is as before, if this is.

        The members follow from the log, and the log from its first entry and its last one.
        """
        log = self._journal
        return (
            self._SyncObj__raftLeader,
            self._SyncObj__raftCurrentTerm,
            self._SyncObj__raftLastApplied,
            len(log),
            log[-1][1:],
            *self._links.connected(),
        )

    def watch(self, descr: int, callback: OnEvent) -> None:
        """Let `tick` also wait for this descriptor to become readable."""
        self._poller_in_use.subscribe(descr, callback, READ)

    def submit(self, command: bytes) -> None:
        """Hand one command to the leader, without any promise: it may be lost, or arrive twice."""
        self._applyCommand(REGULAR + command, None)

    def tick(self) -> None:
        """Do what is due, then wait for events, or until something is due.

        Raises:
            AgreementFailedError, OSError: this member is broken and must stop.

        """
        now = monotonic()
        if self._tick_due_at is not None and now - self._tick_due_at > _STALL_S:
            self._forgive(now - self._tick_due_at)
        self._links.on_tick(now)
        self._ask_before_standing(now)
        self._drive_membership(now)
        wait_s = self._wait_s(now)
        self._tick_due_at = now + wait_s
        term_before = self.raftCurrentTerm
        self._onTick(wait_s)
        if self.raftCurrentTerm != term_before:
            self._on_new_term()
            self.note_progress()

    def note_progress(self) -> None:
        """Remember outside of the raft directory how far it has got (decision 16)."""
        try:
            self._storage.note_progress(self.raftCurrentTerm, self.raftLastApplied)
        except RaftStorageFullError as error:
            logger.warning("the progress of consensus could not be saved: %s", error)

    def _own_mark(self) -> PeerMark:
        return PeerMark(self.raftCurrentTerm, self.raftLastApplied, *self.position)

    def on_remembered(self, node: Node, mark: PeerMark) -> None:
        """Compare what another member remembers of this one with what is held here (decision 18).

        Raises:
            RolledBackError: votes or entries that this member gave are gone.

        """
        held = (self.raftCurrentTerm, self._SyncObj__getCurrentLogIndex())
        if is_behind(held, mark.consensus):
            # Refused from now on, also while nobody is there who remembers it.
            with contextlib.suppress(RaftStorageFullError):
                self._storage.note_progress(*mark.consensus)
            raise RolledBackError(self._settings.directory, held, mark.consensus, str(node.id))
        if mark.index:
            self._listener.on_remembered(mark.epoch, mark.index)

    def close(self) -> None:
        """Free the port, the connections and the files."""
        self._doDestroy()

    # Time.

    def _wait_s(self, now: float) -> float:
        if self._isLeader():
            due = self._SyncObj__newAppendEntriesTime
        else:
            due = self._SyncObj__raftElectionDeadline
        return float(min(max(due - now, 0.0005), _MAX_WAIT_S))

    def _forgive(self, gap_s: float) -> None:
        """Move deadlines on by the time that this process stood still: it accuses nobody."""
        self._SyncObj__raftElectionDeadline += gap_s
        self._heard_leader_at += gap_s
        responses = self._SyncObj__lastResponseTime
        for node in responses:
            responses[node] += gap_s
        self._links.forgive(gap_s)

    # Messages.

    def on_message(self, node: Node, message: wire.RaftMessage) -> None:
        """Take one message from a member."""
        match message:
            case wire.AppendEntries():
                self._on_append(node, message)
            case wire.Snapshot():
                self._on_snapshot(node, message)
            case wire.FollowerReply():
                self._on_ack(node, message)
            case wire.PreVote():
                self._on_pre_vote(node, message)
            case wire.PreVoteAnswer():
                self._on_pre_vote_answer(node, message)
            case wire.Vote():
                if message.term != self._voters[0]:
                    self._voters = (message.term, set())
                # One member is one vote, and who is none has none.
                if node.id not in self._voters[1] and node in self._SyncObj__otherNodes:
                    self._voters[1].add(node.id)
                    self._pass_on(node, message)
            case wire.Forward(command):
                # Not passed on by a member that does not lead: two could pass it to and fro.
                if self._isLeader() and command[:1] == REGULAR:
                    self._applyCommand(command, None)
            case wire.RequestVote():
                self._pass_on(node, message)
            case wire.TimeoutNow():
                if self._votes:
                    self._pass_on(node, message)
            case wire.Ping() | wire.Remembered() | wire.Told():
                pass  # the transport's

    def _pass_on(
        self,
        node: Node,
        message: wire.AppendEntries
        | wire.FollowerReply
        | wire.RequestVote
        | wire.Vote
        | wire.TimeoutNow,
    ) -> None:
        self._SyncObj__onMessageReceived(node, wire.to_pysyncobj(message))

    def _on_append(self, node: Node, message: wire.AppendEntries) -> None:
        """Append what is new, and remove only what contradicts it.

        PySyncObj removes everything behind `prev_index` at every message, so that a late one
        erases entries that were acknowledged, and advances its commit index over entries that the
        message does not vouch for.
        """
        if not self._leads_now(node, message.term):
            return
        previous, entries = message.prev_index, message.entries
        held_term = None if previous is None else self._term_at(previous)
        if previous is None or held_term is None or held_term != message.prev_term:
            self._pass_on(node, message)  # PySyncObj tells the leader where to go on.
            return
        if [entry[1] for entry in entries] != list(
            range(previous + 1, previous + 1 + len(entries))
        ):
            raise SafetyViolationError(f"{node.id} sent entries that are not consecutive")
        matched = previous
        while entries and self._term_at(entries[0][1]) == entries[0][2]:
            matched, entries = entries[0][1], entries[1:]
        if not entries:
            self._note_leader(node, message.term, min(message.commit_index, matched))
            self._SyncObj__leaderCommitIndex = message.commit_index
            self._SyncObj__sendNextNodeIdx(node, nextNodeIdx=matched + 1, success=True)
            return
        news = wire.AppendEntries(
            message.term, message.commit_index, matched, self._term_at(matched), entries
        )
        with self._journal.one_sync():
            self._pass_on(node, news)

    def _leads_now(self, node: Node, term: int) -> bool:
        """Note that a leader is heard; if its term is old, tell it so, and return False."""
        if term < self.raftCurrentTerm:
            self._SyncObj__sendNextNodeIdx(node)
            return False
        if term == self.raftCurrentTerm and self._isLeader():
            raise SafetyViolationError(f"{node.id} and this member both lead in term {term}")
        self._heard_leader_at = monotonic()
        self._ballot.won = False
        return True

    def _note_leader(self, node: Node, term: int, commit_index: int) -> None:
        """Let PySyncObj see a heartbeat that touches no entry."""
        heartbeat = {"type": "append_entries", "term": term, "commit_index": commit_index}
        self._SyncObj__onMessageReceived(node, heartbeat)

    def _on_ack(self, node: Node, message: wire.FollowerReply) -> None:
        """Count an acknowledgement of this term only; PySyncObj's carries none."""
        if message.term > self.raftCurrentTerm:
            self._step_down(message.term)
        elif (
            message.term == self.raftCurrentTerm
            and node in self._SyncObj__otherNodes
            and 1 < message.next_index <= self._SyncObj__getCurrentLogIndex() + 1
        ):
            known, at = self._SyncObj__raftNextIndex.get(node), message.next_index
            at = goes_on_at(at, known or at) if message.reset else at
            told = wire.FollowerReply(message.term, at, message.reset, message.success)
            self._pass_on(node, told)

    def _SyncObj__sendNextNodeIdx(
        self,
        node: Node,
        reset: bool = False,
        nextNodeIdx: int | None = None,
        success: bool = False,
    ) -> None:
        end = self._SyncObj__getCurrentLogIndex() + 1
        ack = wire.FollowerReply(
            self.raftCurrentTerm, end if nextNodeIdx is None else nextNodeIdx, reset, success
        )
        self._links.send_wire(str(node.id), ack)

    # The log.

    def _term_at(self, index: int) -> int | None:
        entries = self._SyncObj__getEntries(index, 1)
        return entries[0][2] if entries else None

    def _SyncObj__deleteEntriesFrom(self, fromIDx: int) -> None:
        if fromIDx <= self.raftCommitIndex:
            raise SafetyViolationError(
                f"the leader contradicts entry {fromIDx}, but {self.raftCommitIndex} is committed"
            )
        super()._SyncObj__deleteEntriesFrom(fromIDx)
        self._use_logged_members()

    def _SyncObj__doApplyCommand(self, command: bytes) -> None:
        if command[:1] == REGULAR:
            answer = self.machine.apply(command[1:])
            if answer is not None:
                self._listener.on_applied(answer)
            return
        change = membership_change(command)
        if change is not None:
            self.machine.apply_membership(change)
            if change.adding:
                # The newcomer gets a dump, and with it the members; its own list is a hint.
                self._compaction_is_due = True
            else:
                self._storage.book.forget(change.node_id)

    def _SyncObj__tryLogCompaction(self) -> None:
        """Store a dump, and only then cut the journal; on a full disk, try again later."""
        now = monotonic()
        settings = self._settings
        if now < self._compaction_retry_at or (
            not self._compaction_is_due
            and len(self._journal) <= settings.compaction_entries
            and now - self._SyncObj__lastSerializedTime < settings.compaction_interval_ms / 1000
        ):
            return
        self._SyncObj__lastSerializedTime = now
        pair = self._SyncObj__getEntries(self.raftLastApplied - 1, 2)
        if len(pair) < 2 or pair[0] == self._journal[0]:
            self._compaction_retry_at = now + settings.heartbeat_interval_ms / 1000
            return
        try:
            self._storage.compact(Dump(self.machine.state(), pair[0], pair[1]))
            self._compaction_is_due = False
        except RaftStorageFullError as error:
            self._compaction_retry_at = now + _COMPACTION_RETRY_S
            logger.warning("the journal could not be compacted: %s", error)

    def _on_snapshot(self, node: Node, message: wire.Snapshot) -> None:
        if not self._leads_now(node, message.term):
            return
        # The commit index stays: PySyncObj would move it over entries not compared yet.
        self._note_leader(node, message.term, self.raftCommitIndex)
        self._SyncObj__leaderCommitIndex = message.commit_index
        dump = self._storage.dumps.receive(message.chunk)
        if dump is None or dump.last[1] <= self.raftLastApplied:
            return
        index = dump.last[1]
        if index <= self.raftCommitIndex and self._term_at(index) != dump.last[2]:
            raise SafetyViolationError(f"{node.id} sent a dump that contradicts entry {index}")
        self._storage.install(dump)
        self.machine.restore(dump.state)
        self._SyncObj__raftLastApplied = index
        self._SyncObj__raftCommitIndex = max(self.raftCommitIndex, index)
        self._use_logged_members()
        self._SyncObj__sendNextNodeIdx(node, nextNodeIdx=index + 1, success=True)
        self._listener.on_restored()
