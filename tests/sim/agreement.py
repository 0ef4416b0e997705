"""Simulated consensus: one true sequence of views, proposals that get lost or come late."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datapath.node.proposer import EXCLUDING
from datapath.protocol import effects as fx
from election.view import (
    AddToInSync,
    Change,
    Refusal,
    RemoveFromInSync,
    TakeOver,
    View,
    apply_change,
)
from tests.sim.clockwork import Clockwork
from tests.sim.oracle import Oracle

if TYPE_CHECKING:
    from tests.sim.node import Node

PROPOSAL_TIMEOUT_MS = 1000.0
TELL_GAP_MS = 50.0
"""How far a node is, it tells at most so often (a second in production, where time is longer)."""


class Agreement:
    """The true views, who is cut off from them, and how proposals fare."""

    def __init__(self, clockwork: Clockwork, oracle: Oracle, first: View) -> None:
        self._clockwork = clockwork
        self._oracle = oracle
        self.views = [first]
        self.nodes: dict[str, Node] = {}
        self.cut_off: set[str] = set()
        self.cut_off_for_good: set[str] = set()
        self.unknown_rate = 0.0
        self.delay_ms = (2.0, 15.0)
        self.laggards = 0.0  # share of view notices that come late
        # A majority of the members decides, witnesses among them; None: nobody counts.
        self.witnesses_up: int | None = None
        self.in_flight: dict[str, int] = {}
        self.holding: set[str] = set()  # proposals of these nodes wait in `held`
        self.held: list[tuple[str, Change, int]] = []
        # What the others remember of each node (decision 18): (epoch, index), and when it told it.
        self.remembers = False
        self.marks: dict[str, tuple[int, int]] = {}
        self._told_at: dict[str, float] = {}
        self._reminded: dict[str, int] = {}  # node: the life whose link with consensus is open
        oracle.on_true_view(None, first)

    @property
    def view(self) -> View:
        """The newest committed view."""
        return self.views[-1]

    def commit(self, change: Change, version: int) -> bool:
        """Apply one change to the true view; everybody learns of it sooner or later."""
        clockwork = self._clockwork
        old = self.view
        new = apply_change(old, change, version)
        if isinstance(new, Refusal):
            clockwork.seen["proposal refused"] += 1
            if clockwork.tracing:
                clockwork.note(f"consensus refuses {change}: {new.reason}")
            return False
        self.views.append(new)
        if clockwork.tracing:
            clockwork.note(
                f"VIEW {new.version}: epoch {new.epoch} primary {new.primary} in sync {new.in_sync}"
                f"{' handed over' if new.handed_over else ''}   ({type(change).__name__})"
            )
        if isinstance(change, TakeOver):
            own = change.candidate == old.primary
            clockwork.seen["take-over by the primary itself" if own else "take-over"] += 1
        elif isinstance(change, RemoveFromInSync):
            clockwork.seen["shrink"] += 1
        elif isinstance(change, AddToInSync):
            clockwork.seen["grow"] += 1
        else:
            clockwork.seen[type(change).__name__.lower()] += 1
        clockwork.seen["view change"] += 1
        self._oracle.on_true_view(old, new)
        for node in self.nodes.values():
            if node.id not in self.cut_off:
                self.inform(node)
        return True

    def inform(self, node: Node) -> None:
        """Let a node learn of the newest view, after a while."""
        clockwork = self._clockwork
        delay = clockwork.between(1, 15)
        if self.laggards and clockwork.chance(self.laggards):
            delay = clockwork.between(15, 1200)
        clockwork.after(delay, self._learn, node, node.life, self.view)

    def _learn(self, node: Node, life: int, view: View) -> None:
        if node.id not in self.cut_off:
            node.post(life, self._tell_view, node, view)

    def _tell_view(self, node: Node, view: View) -> None:
        self._remind(node)
        node.on_view(view)

    def _remind(self, node: Node) -> None:
        """What is remembered of a node is the first that it hears on a link (decision 18)."""
        if self._reminded.get(node.id) != node.life:
            self._reminded[node.id] = node.life
            if self.remembers and node.id in self.marks:
                node.on_reminder(*self.marks[node.id])
            node.replica.on_consensus_heard()

    def tell(self, node: Node) -> None:
        """A node tells how far it is, once its link with consensus is open."""
        now = self._clockwork.now
        if (
            self.remembers
            and node.id not in self.cut_off
            and self._reminded.get(node.id) == node.life
            and now - self._told_at.get(node.id, -TELL_GAP_MS) >= TELL_GAP_MS
        ):
            self._told_at[node.id] = now
            position = node.replica.core.committed_position
            self.marks[node.id] = max(position, self.marks.get(node.id, (0, 0)))

    def reconnect(self, node_id: str) -> None:
        """A node that was cut off reaches consensus again."""
        if node_id in self.cut_off and node_id not in self.cut_off_for_good:
            self.cut_off.discard(node_id)
            self._reminded.pop(node_id, None)
            self.inform(self.nodes[node_id])

    def has_majority(self) -> bool:
        """Whether enough members run to decide anything."""
        if self.witnesses_up is None:
            return True
        members = self.view.members
        voters = self.witnesses_up
        for member in members:
            node = self.nodes.get(member.id)
            voters += node is not None and node.is_up and not node.paused
        return 2 * voters > len(members)

    def start_witness(self) -> None:
        """One of those that are down comes back."""
        if self.witnesses_up is not None:
            n_witnesses = sum(member.role == "witness" for member in self.view.members)
            self.witnesses_up = min(self.witnesses_up + 1, n_witnesses)

    # -- proposals

    def propose(self, node: Node, effect: fx.Propose) -> None:
        """Take a node's proposal. One that excludes replicas leaves only once consensus is heard.

        As `Proposer.propose` has it: docs/decisions/0006 and 0015.
        """
        clockwork = self._clockwork
        if not isinstance(effect.change, EXCLUDING):
            self._leave(node, effect)
        elif node.id in self.cut_off or not self.has_majority():
            clockwork.seen["consensus not heard"] += 1
            clockwork.after(PROPOSAL_TIMEOUT_MS, self._not_heard, node, node.life)
        else:
            delay = clockwork.between(*self.delay_ms)
            clockwork.after(delay, node.post, node.life, self._heard, node, effect, self.view)

    def _not_heard(self, node: Node, life: int) -> None:
        node.post(life, node.on_answer, None, answered=False)

    def _heard(self, node: Node, effect: fx.Propose, view: View) -> None:
        self._tell_view(node, view)
        if node.may_propose(effect):
            self._leave(node, effect)
        else:
            node.on_answer(None, answered=True)

    def _leave(self, node: Node, effect: fx.Propose) -> None:
        """What becomes of a proposal is drawn here."""
        clockwork, change, version = self._clockwork, effect.change, effect.expected_version
        delay = clockwork.between(*self.delay_ms)
        self.in_flight[node.id] = self.in_flight.get(node.id, 0) + 1
        if node.id in self.holding:
            self.held.append((node.id, change, version))
            return
        if node.id in self.cut_off:
            clockwork.after(PROPOSAL_TIMEOUT_MS, self._unknown, node, node.life)
            clockwork.seen["unknown: never takes effect"] += 1
            self._settled(node.id)
            return
        if not clockwork.chance(self.unknown_rate):
            clockwork.after(delay, self._decide, node, node.life, change, version)
            return
        report = clockwork.between(1, PROPOSAL_TIMEOUT_MS)
        clockwork.after(report, self._unknown, node, node.life)
        kind = clockwork.random.randint(0, 2)
        if kind == 0:
            clockwork.seen["unknown: never takes effect"] += 1
            self._settled(node.id)
            return
        effect_ms = delay if kind == 1 else report + clockwork.between(1, 1500)
        clockwork.after(effect_ms, self._take_effect, node.id, change, version, effect_ms > report)

    def _settled(self, node_id: str) -> None:
        self.in_flight[node_id] -= 1

    def _take_effect(self, node_id: str, change: Change, version: int, late: bool) -> None:
        self._settled(node_id)
        if not self.has_majority():
            self._clockwork.seen["no majority"] += 1
        elif self.commit(change, version):
            self._clockwork.seen[
                "unknown: takes effect later" if late else "unknown: takes effect at once"
            ] += 1

    def _decide(self, node: Node, life: int, change: Change, version: int) -> None:
        self._settled(node.id)
        if not self.has_majority():
            self._clockwork.seen["no majority"] += 1
            self._clockwork.after(PROPOSAL_TIMEOUT_MS / 2, self._unknown, node, life)
            return
        if node.id in self.cut_off:
            # It did not get there, or its answer does not come back.
            if self._clockwork.chance(0.5):
                self.commit(change, version)
            self._clockwork.after(PROPOSAL_TIMEOUT_MS / 2, self._unknown, node, life)
            return
        self.commit(change, version)
        self._clockwork.after(self._clockwork.between(0.5, 8), self._answer, node, life, self.view)

    def _answer(self, node: Node, life: int, view: View) -> None:
        if node.id in self.cut_off:
            self._clockwork.after(PROPOSAL_TIMEOUT_MS / 2, self._unknown, node, life)
        else:
            node.post(life, self._tell_answer, node, view)

    def _tell_answer(self, node: Node, view: View) -> None:
        self._remind(node)
        node.on_answer(view, answered=True)

    def _unknown(self, node: Node, life: int) -> None:
        """The outcome is unknown: the node reads the view back if it can (E3)."""
        if node.id in self.cut_off or not self.has_majority():
            node.post(life, node.on_answer, None, answered=False)
        else:
            self._clockwork.after(
                self._clockwork.between(1, 20), self._answer, node, life, self.view
            )
