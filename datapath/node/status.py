"""How the cluster looks from one replica."""

from __future__ import annotations

from collections.abc import Callable

from datapath.clock import clock_ms
from datapath.operations import ClusterStatus, NodeState, NodeStateWord
from datapath.protocol.progress import Progress
from datapath.protocol.replica import Replica
from election.view import Member, View


def cluster_status(
    node_id: str, cluster: str, replica: Replica, reachable: Callable[[str], bool]
) -> ClusterStatus:
    """Return the cluster as this replica sees it; only a primary knows the others' places."""
    view = replica.view
    return ClusterStatus(
        cluster=cluster,
        cluster_id=view.cluster_id if view else "",
        epoch=replica.state.epoch,
        version=view.version if view else 0,
        primary=view.primary if view else "",
        in_sync=view.in_sync if view else (),
        nodes={
            member.id: _node_state(node_id, replica, view, member, reachable)
            for member in (view.members if view else ())
        },
    )


def replica_counters(replica: Replica) -> dict[str, float]:
    """Return numbers for metrics: where this replica is, and how far behind the others are."""
    state, primary = replica.state, replica.primary
    lags = (
        [state.log.last_index - peer.match_index for peer in primary.peers.values()]
        if primary is not None
        else []
    )
    return {
        "epoch": replica.state.epoch,
        "view_version": replica.view.version if replica.view else 0,
        "is_primary": float(replica.may_serve(clock_ms())),
        "in_sync_replicas": len(replica.view.in_sync) if replica.view else 0,
        "replicas": sum(member.role == "replica" for member in replica.view.members)
        if replica.view
        else 0,
        "last_index": state.log.last_index,
        "durable_index": state.durable_index,
        "commit_index": state.commit_index,
        "log_first_index": state.log.base_index + 1,
        "max_peer_lag": max(lags, default=0),
    }


def _node_state(
    node_id: str,
    replica: Replica,
    view: View | None,
    member: Member,
    reachable: Callable[[str], bool],
) -> NodeState:
    in_sync = view is not None and member.id in view.in_sync
    if member.id == node_id:
        return _own_state(replica, member, in_sync=in_sync)
    if member.role == "witness":
        return other_state(member, reachable=reachable(member.id))
    if replica.primary is not None and member.id in replica.primary.peers:
        return _peer_state(replica, replica.primary.peers[member.id], member, in_sync=in_sync)
    return other_state(member, reachable=reachable(member.id))


def other_state(member: Member, *, reachable: bool) -> NodeState:
    """Return what a node that is not the primary knows of another one."""
    state: NodeStateWord = "unreachable"
    if reachable:
        state = "witness" if member.role == "witness" else "unknown"
    return NodeState(role=member.role, client=member.client, state=state)


def _own_state(replica: Replica, member: Member, *, in_sync: bool) -> NodeState:
    state: NodeStateWord = "backup" if in_sync else "learner"
    if replica.primary is not None:
        state = "primary"
    return NodeState(
        role="replica",
        client=member.client,
        state=state,
        applied_index=replica.state.commit_index,
        durable_index=replica.state.durable_index,
        lag=0 if replica.primary is not None else None,
    )


def _peer_state(replica: Replica, peer: Progress, member: Member, *, in_sync: bool) -> NodeState:
    state: NodeStateWord = "unreachable"
    silent_ms = clock_ms() - peer.heard_ms
    if peer.state == "snapshot":
        state = "snapshot"
    elif peer.state == "replicate" and silent_ms < replica.state.timing.ack_timeout_ms:
        state = "backup" if in_sync else "learner"
    if state == "unreachable":
        return NodeState(role="replica", client=member.client, state=state)
    lag = None
    if state in ("backup", "learner"):
        lag = max(0, replica.state.commit_index - peer.match_index)
    return NodeState(
        role="replica",
        client=member.client,
        state=state,
        applied_index=peer.applied_index,
        durable_index=max(peer.durable_index, peer.match_index),
        lag=lag,
    )
