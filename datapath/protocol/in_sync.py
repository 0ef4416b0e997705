"""The in-sync set as its primary keeps it: who counts, is due out, may come in; when to give way.

Part of `Primary`, which proposes what follows from it. Pure, as all of the protocol.
"""

from __future__ import annotations

from datapath.protocol.progress import Progress
from datapath.protocol.state import CUT_TAIL_PATIENCE_GRACES, ReplicaState
from election.view import View


def required_nodes(view: View, adding: str, node_id: str) -> frozenset[str]:
    """D1: the other replicas whose durable copy a commit of `node_id` needs."""
    return frozenset({*view.in_sync, adding} - {node_id, ""})


class InSync:
    """One epoch's in-sync set, as its primary keeps it, and what it knows of the other replicas.

    `adding` counts as required from its proposal until the outcome is known (D1). A change of the
    view is not needed, needed since `_wanted_since_ms`, or could not be agreed for so long that the
    primary is `giving_way`: no heartbeats leave, so that another part of the cluster may go on.
    """

    def __init__(self, state: ReplicaState, view: View) -> None:
        self._state = state
        self.peers: dict[str, Progress] = {}  # the view's other replicas, in sync or not
        self.view = view  # the newest one of this epoch
        self.adding = ""  # a replica, or ""
        self.required = required_nodes(view, "", state.node_id)  # of `view` and `adding`
        self.giving_way = False  # never without `_wanted_since_ms`
        self._gave_way_for: frozenset[str] = frozenset()  # whose silence was the reason; then fixed
        self._wanted_since_ms: float | None = None  # None: no change is needed

    # -- who counts

    def add(self, node: str) -> None:
        """Its addition is being proposed: commits need it from here on, whatever comes of that."""
        self.adding = node
        self.required = required_nodes(self.view, node, self._state.node_id)

    def on_view(self, view: View) -> None:
        """A newer view of this epoch."""
        self.view = view
        self.add("")  # what was added is in the view now, or never will be (E3)

    # -- who is due out (D5), and who may come in (D7)

    def due_out(self) -> tuple[str, ...]:
        """Who of the in-sync set has to be removed."""
        nodes = self.view.in_sync
        if self.giving_way:  # the others are not asked any more, so their silence says nothing
            nodes = tuple(node for node in nodes if node in self._gave_way_for)
        return tuple(node for node in nodes if self.must_remove(node))

    def must_remove(self, node: str) -> bool:
        """D5: whether the cluster cannot go on with this replica in sync."""
        if node == self._state.node_id:
            return False
        state, peer = self._state, self.peers[node]
        patience_ms = state.timing.suspect_after_ms
        if state.tail_cut and peer.last_position > state.log.last_position:
            return False  # it holds what is missing here: wait for it, however long
        if state.tail_cut:
            # This log's tail was cut: a backup that is starting too may hold what was lost here.
            patience_ms = CUT_TAIL_PATIENCE_GRACES * state.timing.grace_period_ms
        return (
            state.now_ms - peer.heard_ms >= patience_ms
            # D5: it answers, but so late that each promise has run out when it comes: no read can
            # be served with it.
            or state.now_ms - peer.leased_ms >= max(patience_ms, state.timing.ack_timeout_ms)
            or (
                peer.inflight_bytes > 0
                and state.now_ms - peer.advanced_ms >= state.timing.ack_timeout_ms
            )
            or not peer.writable
            or peer.needs_snapshot
        )

    def may_join(self, peer: Progress, opening_index: int) -> bool:
        """D7: it holds everything committed, in this epoch and session, and its lease is fresh.

        `opening_index`: of this epoch's opening entry, which need not have committed: with too few
        in sync it waits for this one.
        """
        state, timing = self._state, self._state.timing
        return (
            peer.state == "replicate"
            and peer.writable
            and peer.match_index >= max(state.commit_index, opening_index)
            and peer.lease_start_ms is not None
            and state.now_ms - peer.lease_start_ms < timing.lease_duration_ms / 2
            and state.now_ms - peer.heard_ms < timing.suspect_after_ms / 2
        )

    # -- when to give way

    def check_giving_way(self, *, is_blocked: bool) -> tuple[str, ...]:
        """Give way once a change that is needed could not be agreed for too long.

        `is_blocked`: this epoch does not get on without a change, whoever is silent. Returns who is
        due out.
        """
        state, due_out = self._state, self.due_out()
        if not (is_blocked or due_out or (self.adding and self.must_remove(self.adding))):
            self.stop_giving_way()
            return ()
        if self._wanted_since_ms is None:
            self._wanted_since_ms = state.now_ms
        elif state.now_ms - self._wanted_since_ms >= state.timing.view_change_timeout_ms:
            self._gave_way_for = frozenset({*due_out, self.adding} - {""})
            self.giving_way = True
        return due_out

    def stop_giving_way(self) -> None:
        """Consensus answers, or nothing is needed of it."""
        self._wanted_since_ms = None
        if self.giving_way:
            self.giving_way = False
            self.restart_periods()  # without heartbeats nobody could answer

    def restart_periods(self) -> None:
        """Give everyone a new period to be heard: nobody could be, for a reason of this node's."""
        for peer in self.peers.values():
            peer.heard_ms = peer.advanced_ms = peer.leased_ms = self._state.now_ms

    def may_hear(self, node: str) -> bool:
        """Whether a replica may be expected to answer on its stream now.

        Giving way, it asks nobody for a promise; but those for whom it did may be back.
        """
        return not self.giving_way or node in self._gave_way_for
