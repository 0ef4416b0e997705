"""Elections that depose nobody in vain, and start at once when the leader's link drops.

PySyncObj stands for election whenever its own timer runs out. Here a member asks first (`Ballot`),
and PySyncObj's timer is let run out only after a majority has agreed. None of this bears on
safety, which PySyncObj's votes and the journal keep.
"""

# ruff: noqa: N802 - names that replace PySyncObj's are PySyncObj's

from __future__ import annotations

import logging

import pysyncobj.syncobj as library
from pysyncobj import SyncObj
from pysyncobj.node import Node

from election.pysyncobj_adapter import wire
from election.pysyncobj_adapter.clock import monotonic
from election.pysyncobj_adapter.pre_vote import Ballot
from election.pysyncobj_adapter.settings import AgreementSettings
from election.pysyncobj_adapter.transport import RaftTransport

logger = logging.getLogger(__name__)


class Elections(SyncObj):  # type: ignore[misc]
    """The part of the core that stands for election. `RaftCore` sets the fields it declares."""

    _settings: AgreementSettings
    _links: RaftTransport
    _ballot: Ballot
    _voters: tuple[int, set[str]]
    _heard_leader_at: float
    _votes: bool
    """Whether this member's own log says that it is one: only then does it stand."""
    _SyncObj__raftElectionDeadline: float
    _SyncObj__raftLeader: Node | None

    def _draw_s(self, low: float, high: float) -> float:
        """Draw a duration between these fractions of the shortest election timeout."""
        # From where PySyncObj draws its own.
        drawn: float = library.random.uniform(low, high)
        return drawn * self._settings.election_min_ms / 1000

    def _ask_before_standing(self, now: float) -> None:
        if not self._votes:
            # Who is not a member, as far as it knows, cannot know who the others are.
            self._ballot.won = False
            self._SyncObj__raftElectionDeadline = now + self._draw_s(1, 2)
            return
        if not self._links.has_links:
            self._ballot.won = False  # What was agreed before the links were lost is history.
        if (
            self._isLeader()
            or self._ballot.won
            or self._SyncObj__transferInProgress
            or not self._SyncObj__otherNodes
            or self._SyncObj__raftElectionDeadline > now + 0.001
        ):
            return
        self._SyncObj__raftElectionDeadline = now + self._draw_s(0.4, 0.8)
        question = wire.PreVote(
            self._ballot.start(),
            self.raftCurrentTerm + 1,
            self._SyncObj__getCurrentLogIndex(),
            self._SyncObj__getCurrentLogTerm(),
        )
        for node_id in self._links.connected():
            self._links.send_wire(node_id, question)

    def _on_new_term(self) -> None:
        """Ask anew before the next one; soon, if the vote is split.

        PySyncObj would wait a whole timeout. Only a new term undoes what was agreed: a candidate
        whose vote was split stays one, and must be free to stand again.
        """
        self._ballot.won = False
        if self._SyncObj__raftState == library._RAFT_STATE.CANDIDATE:
            self._SyncObj__raftElectionDeadline = monotonic() + self._draw_s(0.3, 0.8)

    def _on_pre_vote(self, node: Node, question: wire.PreVote) -> None:
        now = monotonic()
        hears_leader = self._isLeader() or (
            self._SyncObj__raftLeader is not None
            and now - self._heard_leader_at < 0.7 * self._settings.election_min_ms / 1000
        )
        mine = self._SyncObj__getCurrentLogTerm(), self._SyncObj__getCurrentLogIndex()
        granted = (
            not hears_leader
            and question.term > self.raftCurrentTerm
            and (question.last_log_term, question.last_log_index) >= mine
        )
        self._links.send_wire(
            str(node.id), wire.PreVoteAnswer(question.round, granted, self.raftCurrentTerm)
        )
        if granted:  # Let the other stand first: two candidates would split the vote.
            self._SyncObj__raftElectionDeadline = max(
                self._SyncObj__raftElectionDeadline, now + self._draw_s(0.4, 0.8)
            )
        elif hears_leader and not self._isLeader() and self._ballot.on_refused_orphan(node.id, now):
            self._stand_for_the_orphan(node)

    def _stand_for_the_orphan(self, node: Node) -> None:
        if not {str(node.id) for node in self._SyncObj__otherNodes} <= {*self._links.connected()}:
            return
        logger.info(
            "%s has lost its link to the leader; becoming a candidate, because this node reaches "
            "both",
            node.id,
        )
        self._ballot.won = True
        self._SyncObj__raftElectionDeadline = 0.0

    def _on_pre_vote_answer(self, node: Node, answer: wire.PreVoteAnswer) -> None:
        if answer.term > self.raftCurrentTerm:
            self._step_down(answer.term)
        elif (
            not self._isLeader()
            and node in self._SyncObj__otherNodes
            and self._ballot.on_answer(
                answer.round,
                str(node.id),
                granted=answer.granted,
                group_size=len(self._SyncObj__otherNodes) + 1,
            )
        ):
            self._SyncObj__raftElectionDeadline = 0.0

    def _step_down(self, term: int) -> None:
        self._SyncObj__setCurrentTerm(term, None)
        self._SyncObj__setState(library._RAFT_STATE.FOLLOWER)
        self._SyncObj__raftLeader = None

    def _SyncObj__onNodeDisconnected(self, node: Node) -> None:
        super()._SyncObj__onNodeDisconnected(node)
        if node == self._SyncObj__raftLeader:
            # Nothing is proved by it, but asking costs nothing.
            self._SyncObj__raftLeader = None
            self._SyncObj__raftElectionDeadline = min(
                self._SyncObj__raftElectionDeadline, monotonic() + self._draw_s(0, 0.4)
            )
