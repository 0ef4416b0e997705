"""A cluster to write scenarios with: no faults but those that the test asks for."""

from __future__ import annotations

from collections.abc import Callable

from datapath.errors import OperationError
from datapath.operations import Operation, Query, QueryResult, Result
from datapath.settings import Timing
from election.view import View, ViewChange
from tests.sim.node import Node
from tests.sim.world import World


class Said:
    """What a client was told: the completion of an operation."""

    def __init__(self) -> None:
        self.result: Result | None = None
        self.problem: OperationError | None = None

    def done(self) -> bool:
        """Whether there is an answer."""
        return self.result is not None or self.problem is not None

    def set_result(self, result: Result, /) -> None:
        """Take the answer."""
        self.result = result

    def set_exception(self, exception: OperationError, /) -> None:
        """Take the reason why there is none."""
        self.problem = exception


class Cluster:
    """Replicas "a", "b", …, all in sync, with "a" the primary; time passes when told to."""

    def __init__(
        self,
        n_nodes: int = 3,
        *,
        min_in_sync: int = 1,
        seed: int = 1,
        timing: Timing | None = None,
        has_service: bool = False,
        remembers: bool = False,
        clocks_stop: bool = False,
    ) -> None:
        self.world = World(
            seed,
            n_nodes,
            min_in_sync=min_in_sync,
            trace=True,
            timing=timing,
            has_service=has_service,
            clocks_stop=clocks_stop,
        )
        self.timing = self.world.timing
        self.world.agreement.remembers = remembers
        for node in self.world.nodes.values():
            node.clock_rate = 1.0
            node.tick_ms = 15.0
        self.until(lambda: self.world.whole_problem() == "")

    def __getitem__(self, name: str) -> Node:
        return self.world.nodes[name]

    # -- time

    def run(self, duration_ms: float) -> None:
        """Let time pass."""
        self.world.run_for(duration_ms)

    def until(self, condition: Callable[[], object], within_ms: float = 5000) -> None:
        """Let time pass until something holds; fail with a transcript if it takes too long."""
        deadline = self.world.clockwork.now + within_ms
        while not condition():
            if self.world.clockwork.now >= deadline:
                lines = "\n".join(self.world.clockwork.transcript)
                raise AssertionError(f"still not so after {within_ms} ms:\n{lines}")
            self.run(1)

    # -- what there is to see

    @property
    def view(self) -> View:
        """The true view."""
        return self.world.view

    @property
    def seen(self) -> dict[str, int]:
        """How often what happened."""
        return self.world.clockwork.seen

    def serving(self) -> str:
        """Who serves, or ""."""
        primary = self.world.primary()
        return primary.id if primary else ""

    def in_sync(self) -> str:
        """The true in-sync set, as one word."""
        return "".join(self.view.in_sync)

    def is_whole(self) -> bool:
        """Whether all live replicas are in sync and equal, and one serves."""
        return self.world.whole_problem() == ""

    def write(self, n_records: int = 1) -> None:
        """Let the primary execute something, and give it time to commit."""
        for _ in range(n_records):
            primary = self.world.primary()
            assert primary is not None, "nobody serves"
            assert primary.append(1)
            self.run(8)

    def commits(self) -> bool:
        """Write something, and say whether it is committed soon."""
        primary = self.world.primary()
        if primary is None or not primary.append(1):
            return False
        index = primary.replica.state.log.last_index
        self.run(20)
        return primary.replica.state.commit_index >= index

    # -- clients, where there is a service

    def ask(self, node: str, operation: Operation, timeout_ms: float = 10_000) -> Said:
        """Ask a node to execute; the answer comes with time, or never."""
        said = Said()
        self[node].service.ask(operation, timeout_ms, said)
        return said

    def told(self, node: str, operation: Operation) -> Said:
        """Ask, and let time pass until the answer comes."""
        said = self.ask(node, operation)
        self.until(said.done)
        return said

    def read(self, node: str, query: Query) -> QueryResult:
        """Read at once. Raises NotPrimaryError if the node does not serve."""
        return self[node].service.answer(query)

    # -- troubles

    def cut(self, source: str, target: str) -> None:
        """Nothing gets from one node to the other."""
        self.world.network.cut(source, target)

    def isolate(self, node: str, *, but_for: str = "") -> None:
        """Nothing gets to or from a node; consensus does."""
        for other in self.world.nodes:
            if other not in (node, but_for):
                self.cut(node, other)
                self.cut(other, node)

    def move_away(self, node: str, distance_ms: float) -> None:
        """Messages to and from a node come to take that much longer, by and by."""
        for _ in range(round(distance_ms / 10)):
            for other in self.world.nodes:
                self.world.network.extra_ms[node, other] += 10
                self.world.network.extra_ms[other, node] += 10
            self.run(100)

    def rejoin(self) -> None:
        """All cuts heal."""
        self.world.network.heal_all()

    def cut_consensus(self, node: str) -> None:
        """A node reaches consensus no more: it learns nothing, and its proposals get lost."""
        self.world.agreement.cut_off.add(node)

    def mend_consensus(self, node: str) -> None:
        """A node reaches consensus again."""
        self.world.agreement.reconnect(node)

    def hold_proposals(self, *nodes: str) -> None:
        """From now on proposals (of these nodes, or of all) are neither decided nor answered."""
        self.world.agreement.holding = set(nodes or self.world.nodes)

    def held(self, kind: type[ViewChange]) -> bool:
        """Whether a proposal of that kind is being held."""
        return any(isinstance(change, kind) for _, change, _ in self.world.agreement.held)

    def let_proposals_through(self, *, held: bool = False) -> None:
        """Decide proposals again; those that were held take effect now, or never."""
        agreement = self.world.agreement
        proposals, agreement.held = agreement.held, []
        agreement.holding = set()
        for _, change, version in proposals if held else []:
            agreement.commit(change, version)

    def report_unknown(self, node: str) -> None:
        """Tell a node that the outcome of its proposal is unknown, and consensus silent (E3)."""
        target = self[node]
        self.world.agreement.proposals.pop(node, None)
        target.post(target.life, target.on_proposal_done, answered=False)
