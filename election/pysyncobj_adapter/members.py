"""The Raft members follow the members of the view, one change at a time.

PySyncObj's own guard against two changes at once never fires, its leader cannot remove itself, and
after a restart it forgets changes until they are applied again. Here the leader alone makes the
changes, each when the one before has been applied, and the members are always computed from the
log.
"""

# ruff: noqa: N802 - names that replace PySyncObj's are PySyncObj's

from __future__ import annotations

import msgspec
from pysyncobj.node import Node

from election.pysyncobj_adapter.codec import UNDECODABLE
from election.pysyncobj_adapter.elections import Elections
from election.pysyncobj_adapter.journal import Entry, Journal
from election.pysyncobj_adapter.machine import Machine, SetMembership, changed_members

MEMBERSHIP = b"\x02"  # PySyncObj's type of command
_CHECK_INTERVAL_S = 0.05


class Members(Elections):
    """The part of the core that changes the Raft members. `RaftCore` sets what it declares."""

    machine: Machine
    _journal: Journal
    _membership_checked_at: float

    def _drive_membership(self, now: float) -> None:
        """As the leader, take the next step from the Raft members to those that the view wants.

        Removals go first. A step waits until the members that answer now are a majority of the
        group after it: otherwise it would stop the group, which an appended change does at once.
        """
        if (
            not self._isLeader()
            or now - self._membership_checked_at < _CHECK_INTERVAL_S
            or self.raftLastApplied < self._SyncObj__noopIDx
        ):
            return
        self._membership_checked_at = now
        wanted, members = self.machine.wanted_members, self.machine.raft_members
        if wanted.keys() == members.keys() or self._has_change_under_way():
            return
        step = _next_step(members, wanted)
        if step.node_id == self._settings.node_id and not step.adding:
            self.transferLeadership()  # The next leader removes this one.
            return
        after = changed_members(members, step).keys()
        # All that answered the last heartbeats, on links that still stand.
        since = now - 3 * self._settings.heartbeat_interval_ms / 1000
        answering = {
            str(node.id)
            for node, at in self._SyncObj__lastResponseTime.items()
            if at > since and node.id in self._links.connected()
        } | {self._settings.node_id}
        if 2 * len(after & answering & members.keys()) > len(after):
            self._applyCommand(MEMBERSHIP + msgspec.msgpack.encode(step), None)

    def _has_change_under_way(self) -> bool:
        entries = self._SyncObj__getEntries(self.raftLastApplied + 1)
        return any(membership_change(entry[0]) is not None for entry in entries)

    def _logged_members(self, log: list[Entry], applied_index: int) -> dict[str, str]:
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
        self._SyncObj__updateClusterConfiguration([Node(name) for name in members if name != me])

    def _SyncObj__parseChangeClusterRequest(self, command: bytes) -> list[str] | None:
        change = membership_change(command)
        if change is None:
            return None
        return ["add" if change.adding else "rem", change.node_id]

    def _SyncObj__doChangeCluster(self, request: list[str], reverse: bool = False) -> bool:
        # A removed entry is not undone here: the members are computed anew from what is left.
        return not reverse and bool(super()._SyncObj__doChangeCluster(request))


def membership_change(command: bytes) -> SetMembership | None:
    """Return the change of the Raft members that a log entry holds, if it holds one."""
    if command[:1] != MEMBERSHIP:
        return None
    try:
        return msgspec.msgpack.decode(command[1:], type=SetMembership)
    except UNDECODABLE:
        return None


def _next_step(members: dict[str, str], wanted: dict[str, str]) -> SetMembership:
    gone = sorted(members.keys() - wanted.keys())
    if gone:
        return SetMembership(adding=False, node_id=gone[0], address="")
    new = min(wanted.keys() - members.keys())
    return SetMembership(adding=True, node_id=new, address=wanted[new])
