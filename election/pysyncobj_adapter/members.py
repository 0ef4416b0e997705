"""The Raft members follow the members of the view, one change at a time.

PySyncObj's own guard against two changes at once never fires, its leader cannot remove itself, and
after a restart it forgets changes until they are applied again. Here the leader alone makes the
changes, each when the one before has been applied, and the members are always computed from the
log. A change waits in PySyncObj's queue before it is appended, so it is judged again there
(docs/decisions/0011-one-change-of-voters.md).
"""

# ruff: noqa: N802 - names that replace PySyncObj's are PySyncObj's

from __future__ import annotations

import msgspec
from pysyncobj.node import Node

from election.pysyncobj_adapter.clock import monotonic
from election.pysyncobj_adapter.codec import UNDECODABLE
from election.pysyncobj_adapter.elections import Elections
from election.pysyncobj_adapter.journal import Journal, RaftEntry
from election.pysyncobj_adapter.view_machine import Machine, SetMembership, changed_members

MEMBERSHIP = b"\x02"  # PySyncObj's type of command
_CHECK_INTERVAL_S = 0.05
_NEWCOMER_SILENCE_S = 0.3
"""A newcomer counts as running while its link was heard within so long: three pings."""


class RaftMembers(Elections):
    """The part of the core that changes the Raft members. `RaftCore` sets what it declares."""

    machine: Machine
    _journal: Journal
    _membership_checked_at: float

    def _drive_membership(self, now: float) -> None:
        """As the leader, take the next step from the Raft members to those that the view wants.

        Removals go first. A step waits until the members that answer now are a majority of the
        group after it: otherwise it would stop the group, which an appended change does at once.
        """
        if not self._isLeader() or now - self._membership_checked_at < _CHECK_INTERVAL_S:
            return
        self._membership_checked_at = now
        if not self._may_append_change():
            return
        for step in _steps(self.machine.raft_members, self.machine.wanted_members):
            if not self._outlives(step, now):
                continue
            if step.node_id == self._settings.node_id:
                self.transferLeadership()  # The next leader removes this one.
            else:
                self._applyCommand(MEMBERSHIP + msgspec.msgpack.encode(step), None)
            return

    def _may_append_change(self) -> bool:
        """Raft's rule for a change of one member: the one before is committed, in this term.

        "This term": an entry of this leader's own term is committed, its no-op, so that no other
        leader can have a change of its own that this one has not seen. Applied is more than
        committed, and what the members are is read from what is applied.
        """
        return bool(
            self.raftLastApplied >= self._SyncObj__noopIDx and not self._has_change_under_way()
        )

    def _outlives(self, step: SetMembership, now: float) -> bool:
        """Whether the members that answer now are a majority of the group after the step.

        A newcomer is not counted on: it has proved nothing yet. Only the step from one member to
        two cannot do without it: the newcomer must at least be running and linked.
        """
        members = self.machine.raft_members
        after = changed_members(members, step).keys()
        # All that answered the last heartbeats, on links that still stand.
        since = now - 3 * self._settings.heartbeat_interval_ms / 1000
        answering = {
            str(node.id)
            for node, at in self._SyncObj__lastResponseTime.items()
            if at > since and node.id in self._links.connected()
        } | {self._settings.node_id}
        counted = after & answering & members.keys()
        if step.adding and len(members) == 1:
            if not self._links.is_heard(step.node_id, now - _NEWCOMER_SILENCE_S):
                return False
            counted |= {step.node_id}
        return 2 * len(counted) > len(after)

    def _SyncObj__changeCluster(self, request: list[str]) -> bool:
        """Judge a change anew when it is about to be appended, and let it count from then on.

        It has come through PySyncObj's queue: meanwhile another may have been appended, or this
        member been deposed and elected again (docs/decisions/0011-one-change-of-voters.md).
        """
        if not self._may_append_change():
            return False
        adding, node_id = request[0] == "add", request[1]
        for step in _steps(self.machine.raft_members, self.machine.wanted_members):
            if (step.adding, step.node_id) == (adding, node_id):
                return self._outlives(step, monotonic()) and bool(
                    self._SyncObj__doChangeCluster(request)
                )
        return False  # It has been made, or is not wanted any more.

    def _has_change_under_way(self) -> bool:
        entries = self._SyncObj__getEntries(self.raftLastApplied + 1)
        return any(membership_change(entry[0]) is not None for entry in entries)

    def _logged_members(self, log: list[RaftEntry], applied_index: int) -> dict[str, str]:
        """Return the members after every change in the log, committed or not: Raft's rule."""
        members = self.machine.raft_members
        for command, index, _ in log:
            change = membership_change(command) if index > applied_index else None
            if change is not None:
                members = changed_members(members, change)
        return members

    def _use_logged_members(self) -> None:
        members = self._logged_members(list(self._journal), self.raftLastApplied)
        me = self._settings.node_id
        self._votes = me in members
        self._SyncObj__updateClusterConfiguration([Node(name) for name in members if name != me])

    def _SyncObj__parseChangeClusterRequest(self, command: bytes) -> list[str] | None:
        change = membership_change(command)
        if change is None:
            return None
        return ["add" if change.adding else "rem", change.node_id]

    def _SyncObj__doChangeCluster(self, request: list[str], reverse: bool = False) -> bool:
        # A removed entry is not undone here: the members are computed anew from what is left.
        if reverse:
            return False
        if request[1] == self._settings.node_id:
            self._votes = request[0] == "add"
        return bool(super()._SyncObj__doChangeCluster(request))


def membership_change(command: bytes) -> SetMembership | None:
    """Return the change of the Raft members that a log entry holds, if it holds one."""
    if command[:1] != MEMBERSHIP:
        return None
    try:
        return msgspec.msgpack.decode(command[1:], type=SetMembership)
    except UNDECODABLE:
        return None


def _steps(members: dict[str, str], wanted: dict[str, str]) -> list[SetMembership]:
    """Return the steps that are left, in the order in which they are tried: removals first.

    Not only the first one: while one must wait for a dead member, another may get the group on.
    """
    gone, new = sorted(members.keys() - wanted.keys()), sorted(wanted.keys() - members.keys())
    return [
        *(SetMembership(adding=False, node_id=node, address="") for node in gone),
        *(SetMembership(adding=True, node_id=node, address=wanted[node]) for node in new),
    ]
