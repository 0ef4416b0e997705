"""A simulated cluster: production replicas on simulated machines, judged after every event."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from cluster.node.addresses import AddressStep
from cluster.services.access_guard import TokenGuard
from datapath.settings import Bounds, ClientTableBounds, Timing
from election.identity import Addresses
from election.registry import addresses_of
from election.view import AddMember, View
from tests.sim.agreement import Agreement
from tests.sim.clockwork import Clockwork
from tests.sim.members import addresses_at, make_member, make_witness
from tests.sim.network import Network
from tests.sim.node import Node
from tests.sim.oracle import Oracle

FORGETFUL = ClientTableBounds(retention_ms=300, max_bytes=1200)


class World:
    """All nodes, up from the first event on.

    The first view names "a" alone (bootstrap), or, with `all_in_sync`, all members: their logs are
    empty, so each holds all that was acknowledged.
    """

    node_type: type[Node] = Node
    network_type: type[Network] = Network

    def __init__(
        self,
        seed: int,
        n_nodes: int,
        *,
        min_in_sync: int = 1,
        n_members: int | None = None,
        trace: bool = False,
        timing: Timing | None = None,
        all_in_sync: bool = False,
        n_witnesses: int = 1,
        has_service: bool = False,
        clocks_stop: bool = False,
        guard: TokenGuard | None = None,
        is_registered: bool = True,
        max_inflight_records: int = Bounds().max_inflight_records,
        archive_log_bytes: int = 0,
    ) -> None:
        self.guard = guard  # who judges callers (tests.sim.callers); None: nobody does
        self.clockwork = Clockwork(seed, trace=trace)
        self.is_registered = is_registered  # whether all know whose disk is whose
        self.archive_log_bytes = archive_log_bytes  # of the log, held for an archive
        self.has_service = has_service  # whether nodes serve clients (tests.sim.clients)
        self.clocks_stop = clocks_stop  # whether clocks may stand still: no read rests on leases
        self.timing = timing or Timing()
        self.bounds = Bounds(
            min_in_sync=min_in_sync,
            confirm_reads=clocks_stop,
            max_inflight_records=max_inflight_records,
            recent_records_bytes=3000 if has_service else 600,
            recent_changes_bytes=1000 if has_service else 200,
            max_append_bytes=2000 if has_service else 400,
            max_peer_inflight_bytes=6000 if has_service else 1200,
            # A third of the schedules: keys are soon forgotten, and few may wait.
            client_table=FORGETFUL if seed % 3 == 0 else ClientTableBounds(),
            max_waiting_operations=2 if seed % 3 == 0 else 20_000,
        )
        self.takeover_order: dict[str, int] = {}
        self.snapshot_failure_rate = 0.0
        self.snapshot_ms = 150.0
        self.oracle = Oracle(self.clockwork, min_in_sync)
        self.oracle.clocks_hold = not clocks_stop
        self.network = self.network_type(self.clockwork)
        names = "abcdefgh"[:n_nodes]
        members = [make_member(name) for name in names[: n_members or n_nodes]]
        if not is_registered:  # nodes have yet to say which disk is theirs
            members = [msgspec.structs.replace(member, data_id="") for member in members]
        first = View(
            cluster_id="sim",
            epoch=1,
            version=1,
            primary="a",
            in_sync=tuple(member.id for member in members) if all_in_sync else ("a",),
            members=(*members, *(make_witness(f"w{n}") for n in range(n_witnesses))),
        )
        self.left_behind: Node | None = None  # a primary that some clients know alone, for a while
        self.is_troubled = True  # no fault begins any more once it is not
        self.agreement = self.make_agreement(first)
        self.oracle.agreement = self.agreement
        self.on_crash: Callable[[Node], None] = lambda _: None
        self.on_entry: Callable[[Node, AddressStep], None] = lambda *_: None
        """Told what a node has to do about its own entry in a new view (`Movers`)."""
        self.names = names
        self.nodes: dict[str, Node] = {}
        self.network.nodes = self.agreement.nodes = self.oracle.nodes = self.nodes
        for name in names:
            self.nodes[name] = self.node_type(self, name)
        self.ids_are_used_once = False  # whether who was removed stays away (`Operators`)
        for node in self.nodes.values():
            node.start()

    def add_node(self) -> Node:
        """Start a node that is no member yet."""
        name = "abcdefgh"[len(self.nodes)]
        self.names += name
        node = self.nodes[name] = self.node_type(self, name)
        node.start()
        return node

    def configuration(self, node_id: str) -> dict[str, Addresses]:
        """Return what the file of a new node says: itself, and the nodes as they are reached."""
        known = {name: node.identity.own for name, node in self.nodes.items()}
        names = [name for name in (*self.names, node_id) if name not in known]
        return {**{name: self.first_addresses(name) for name in names}, **known}

    def first_addresses(self, node_id: str) -> Addresses:
        """Return where a new node listens."""
        return addresses_at(node_id)

    def make_agreement(self, first: View) -> Agreement:
        """Return the consensus under the replicas, with its first view."""
        return Agreement(self.clockwork, self.oracle, first)

    # -- what tests and faults ask for

    @property
    def view(self) -> View:
        """The true view."""
        return self.agreement.view

    def run_for(self, duration_ms: float) -> None:
        """Let time pass."""
        self.clockwork.run_until(self.clockwork.now + duration_ms)

    def primary(self) -> Node | None:
        """The node that serves now, if there is one."""
        for node in self.nodes.values():
            if node.is_up and not node.paused and node.replica.may_serve(node.clock()):
                return node
        return None

    def live_members(self) -> list[Node]:
        """The running replicas that belong to the cluster."""
        members = {member.id for member in self.view.members}
        return [node for node in self.nodes.values() if node.is_up and node.id in members]

    def heal(self) -> None:
        """End all faults: everyone runs and reaches everyone, and disks are fast."""
        clockwork, agreement = self.clockwork, self.agreement
        if clockwork.tracing:
            clockwork.note("ALL FAULTS HEAL")
        self.oracle.check_recovery()
        self.network.heal_all()
        self.network.delay_ms = (0.1, 1.5)
        self.network.extra_ms.clear()
        agreement.unknown_rate, agreement.laggards = 0.0, 0.0
        agreement.delay_ms = (2.0, 15.0)
        self.snapshot_failure_rate = 0.0
        agreement.witnesses_down.clear()
        for node in self.nodes.values():
            node.disk.fails_next = False
            node.disk.latency_ms = (0.1, 1.5)
            if node.disk.stalled_since is not None:
                node.disk.resume()
            agreement.reconnect(node.id)
            if node.clock_rate == 0.0:
                node.set_clock_rate(1.0)
            if not node.is_up:
                node.start()
            node.resume()
            node.replica.state.writable = True
            if self.view.member(node.id) is None and not (
                self.ids_are_used_once and node.id in self.view.removed
            ):
                agreement.commit(AddMember(node.identity.member()), self.view.version)
        self.replace_the_removed()

    def replace_the_removed(self) -> None:
        """Replicas that were not in sync may be removed until writes can never be acknowledged."""
        while sum(m.role == "replica" for m in self.view.members) < self.bounds.min_in_sync:
            node = self.add_node()
            self.agreement.commit(AddMember(node.identity.member()), self.view.version)

    def whole_problem(self) -> str:
        """Why the cluster is not whole: "" once all replicas are in sync, equal, and served."""
        primary, view = self.primary(), self.view
        if primary is None:
            return "nobody serves"
        live = self.live_members()
        if {node.id for node in live} != set(view.in_sync):
            return f"in sync are {view.in_sync}, and {[node.id for node in live]} are up"
        if self.agreement.voters != {member.id for member in view.members}:
            return f"in consensus votes {sorted(self.agreement.voters)}"
        first = live[0].replica.state
        for node in live:
            state = node.replica.state
            if state.view is None or state.view.version != view.version:
                return f"{node.id} does not know view {view.version}"
            place = (state.log.last_index, state.log.last_epoch, state.commit_index)
            if place != (first.log.last_index, first.log.last_epoch, first.log.last_index):
                return f"{node.id} stands at {place}, {live[0].id} ends at {first.log.last_index}"
            if state.incomplete or state.tail_cut:
                return f"{node.id} is still marked (cut tail or incomplete)"
            member = view.member(node.id)
            if member is None or addresses_of(member) != node.identity.own:
                return f"{node.id} runs at {node.identity.own.peer}, agreed on is {member}"
        if len(self.oracle.committed) - 1 != first.log.last_index:
            return f"{len(self.oracle.committed) - 1} entries were acknowledged"
        return ""
