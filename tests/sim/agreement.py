"""Simulated consensus: one true sequence of views, proposals that get lost or come late."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from datapath.node.proposal import Proposal
from datapath.node.survivors import NodeMemory
from election.agreement import Committed, Outcome, Refused, Unknown
from election.view import (
    AddMember,
    AddToInSync,
    RemoveFromInSync,
    RemoveMember,
    TakeOver,
    View,
    ViewChange,
    ViewRefusal,
    apply_change,
)
from tests.sim.clockwork import Clockwork
from tests.sim.journals import Journals
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
        self.deaf: set[str] = set()  # of those cut off: their proposals get there all the same
        self.unknown_rate = 0.0
        self.delay_ms = (2.0, 15.0)
        self.laggards = 0.0  # share of view notices that come late
        self.counts_votes = False  # whether nothing is decided without a majority of the voters
        self.voters = frozenset(member.id for member in first.members)
        self.journals = Journals(clockwork.seed, first, self.voters)
        self.voters_at = {first.version: self.voters}  # version: the voters when it was agreed
        self.follow_ms: tuple[float, float] | None = None  # how late voters follow; None: at once
        self.is_lost = False  # whether nothing is decided any more, although all run
        self.witnesses_down: dict[str, float] = {}  # and since when
        self.in_flight: dict[str, int] = {}
        self.holding: set[str] = set()  # proposals of these nodes wait in `held`
        self.held: list[tuple[str, ViewChange, int]] = []
        self.proposals: dict[str, Proposal] = {}  # node: the one that it waits for
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

    def commit(self, change: ViewChange, version: int, asked: object = None) -> Outcome:
        """Apply one change to the true view; everybody learns of it sooner or later.

        `asked` is who wanted it, where that is an operator: the oracle is told.
        """
        clockwork = self._clockwork
        old = self.view
        new = apply_change(old, change, version)
        if isinstance(new, ViewRefusal):
            clockwork.seen["proposal refused"] += 1
            if clockwork.tracing:
                clockwork.note(f"consensus refuses {change}: {new.reason}")
            return Refused(old, new.reason)
        self.views.append(new)
        self.voters_at[new.version] = self.voters
        self._note_entry()
        self._note_view(change, old, new, asked)
        for node in self.nodes.values():
            if node.id not in self.cut_off:
                self.inform(node)
        return Committed(new)

    def _note_entry(self) -> None:
        """The newest view, or a step of the voters after it, is agreed."""
        running = frozenset(filter(self.is_voting, self.voters))
        self.journals.agreed(self.view, self.voters, running)

    def memories(self, replicas: Iterable[str]) -> list[NodeMemory]:
        """Return what a recovery finds of these nodes, and of some witnesses."""
        if not self.journals.are_read():
            return []
        marks = self.marks if self.remembers else {}
        witnesses = [name for name in self.voters - self.nodes.keys() if self.journals.is_left()]
        return [self.journals.memory(name, marks) for name in (*replicas, *sorted(witnesses))]

    def _note_view(self, change: ViewChange, old: View, new: View, asked: object) -> None:
        """A change is committed: count it, and let the oracle judge it."""
        clockwork = self._clockwork
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
        if isinstance(change, AddMember | RemoveMember):
            self._oracle.on_members_changed(change, old, new, asked)
            self._follow()

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
        self.journals.heard(node.id, view)
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
            position = node.replica.state.committed_position
            self.marks[node.id] = max(position, self.marks.get(node.id, (0, 0)))

    def keep_away(self, node_id: str) -> None:
        """A node does not reach consensus until `cut_off_for_good` names it no longer."""
        self.cut_off_for_good.add(node_id)
        self.cut_off.add(node_id)

    def reconnect(self, node_id: str) -> None:
        """A node that was cut off reaches consensus again."""
        if node_id in self.cut_off and node_id not in self.cut_off_for_good:
            self.cut_off.discard(node_id)
            self._reminded.pop(node_id, None)
            self.inform(self.nodes[node_id])

    # -- votes

    def is_voting(self, name: str) -> bool:
        """Whether a voter runs; a witness or a replica."""
        node = self.nodes.get(name)
        if node is None:
            return name not in self.witnesses_down
        return node.is_up and not node.paused

    def has_majority(self, voters: frozenset[str] | None = None) -> bool:
        """Whether enough voters (those of now) run to decide anything."""
        if self.is_lost:
            return False
        voters = self.voters if voters is None else voters
        return not self.counts_votes or 2 * sum(map(self.is_voting, voters)) > len(voters)

    def was_up(self, name: str, since_ms: float) -> bool:
        """Whether a voter or replica was running at some time since then, paused or not."""
        node = self.nodes.get(name)
        if node is None:
            return self.witnesses_down.get(name, since_ms) >= since_ms
        return node.is_up or node.down_ms >= since_ms

    def known_voters(self, view: View) -> frozenset[str]:
        """Return the voters as a node knows them that has applied `view`, and perhaps more."""
        return self.voters if self._clockwork.chance(0.7) else self.voters_at[view.version]

    def _follow(self) -> None:
        """The voters become the view's members, one by one (decision 11)."""
        members = frozenset(member.id for member in self.view.members)
        if self.follow_ms is None:
            self.voters = members
            self._note_entry()
        elif self.voters != members:
            self._clockwork.after(self._clockwork.between(*self.follow_ms), self._step)

    def _step(self) -> None:
        members = frozenset(member.id for member in self.view.members)
        if self.voters == members:
            return
        one = min(self.voters ^ members)
        after = self.voters ^ {one}
        # A step is made by those who vote now, and only if those who vote afterwards run, too.
        if self.has_majority() and self.has_majority(after):
            self.voters = after
            self._note_entry()
            if self._clockwork.tracing:
                self._clockwork.note(f"VOTERS {' '.join(sorted(after))}")
        self._follow()

    def witnesses(self) -> list[str]:
        """The witnesses that are members."""
        return [member.id for member in self.view.members if member.role == "witness"]

    def stop_witness(self) -> bool:
        """One witness is down; it votes no more."""
        for name in self.witnesses():
            if name not in self.witnesses_down:
                self.witnesses_down[name] = self._clockwork.now
                return True
        return False

    def start_witness(self) -> None:
        """One of those that are down comes back."""
        if self.witnesses_down:
            self.witnesses_down.pop(min(self.witnesses_down))

    # -- a replica's proposals

    def propose(self, node: Node, proposal: Proposal) -> None:
        """Take a node's proposal: do what it says, step by step."""
        self.proposals[node.id] = proposal
        self._go_on(node, node.life, proposal)

    def _go_on(self, node: Node, life: int, proposal: Proposal) -> None:
        """Do the next step of a proposal; called on its node."""
        clockwork = self._clockwork
        is_cut = node.id in self.cut_off or not self.has_majority()
        match proposal.step:
            case "hear" if is_cut:
                clockwork.seen["consensus not heard"] += 1
                clockwork.after(
                    PROPOSAL_TIMEOUT_MS, node.post, life, self._unheard, node, life, proposal
                )
            case "read_back" if is_cut:
                self._unheard(node, life, proposal)
            case "hear":
                delay = clockwork.between(*self.delay_ms)
                clockwork.after(
                    delay, node.post, life, self._heard, node, life, proposal, self.view
                )
            case "read_back":
                clockwork.after(
                    clockwork.between(1, 20), self._read_back, node, life, proposal, self.view
                )
            case "propose":
                effect = proposal.effect
                node.on_leaving(effect)

                def done(outcome: Outcome) -> None:
                    self._remind_unless_unknown(node, outcome)
                    proposal.proposed(outcome)
                    self._go_on(node, life, proposal)

                self.decide(node, effect.change, effect.expected_version, done)
            case "end":
                if self.proposals.get(node.id) is proposal:
                    del self.proposals[node.id]
                    node.on_proposal_done(answered=proposal.answered)

    def _unheard(self, node: Node, life: int, proposal: Proposal) -> None:
        proposal.unheard()
        self._go_on(node, life, proposal)

    def _heard(self, node: Node, life: int, proposal: Proposal, view: View) -> None:
        self._remind(node)
        is_first = proposal.step == "hear"
        proposal.heard(view, node.clock())
        if is_first and proposal.step == "end":
            self._clockwork.seen["not proposed after all"] += 1
        self._go_on(node, life, proposal)

    def _read_back(self, node: Node, life: int, proposal: Proposal, view: View) -> None:
        """What was read comes back, or the link is lost meanwhile."""
        if node.id in self.cut_off:
            self._clockwork.after(
                PROPOSAL_TIMEOUT_MS / 2, node.post, life, self._go_on, node, life, proposal
            )
        else:
            node.post(life, self._heard, node, life, proposal, view)

    def _remind_unless_unknown(self, node: Node, outcome: Outcome) -> None:
        if not isinstance(outcome, Unknown):
            self._remind(node)

    # -- what becomes of a proposal, a replica's or an operator's

    def decide(
        self,
        node: Node,
        change: ViewChange,
        version: int,
        done: Callable[[Outcome], None],
        asked: object = None,
    ) -> None:
        """Draw what becomes of a change that `node` proposes; `done` is called there, if it lives.

        It may be lost, late or unknown to its node, and take effect all the same.
        """
        clockwork, life = self._clockwork, node.life
        delay = clockwork.between(*self.delay_ms)
        unknown = Unknown("no answer in time")
        self.in_flight[node.id] = self.in_flight.get(node.id, 0) + 1
        if node.id in self.holding:
            self.held.append((node.id, change, version))
            return
        if node.id in self.cut_off - self.deaf:
            clockwork.after(PROPOSAL_TIMEOUT_MS, node.post, life, done, unknown)
            clockwork.seen["unknown: never takes effect"] += 1
            self._settled(node.id)
            return
        if not clockwork.chance(self.unknown_rate):
            clockwork.after(delay, self._decide, node, life, change, version, done, asked)
            return
        report = clockwork.between(1, PROPOSAL_TIMEOUT_MS)
        clockwork.after(report, node.post, life, done, unknown)
        kind = clockwork.random.randint(0, 2)
        if kind == 0:
            clockwork.seen["unknown: never takes effect"] += 1
            self._settled(node.id)
            return
        effect_ms = delay if kind == 1 else report + clockwork.between(1, 1500)
        late = effect_ms > report
        clockwork.after(effect_ms, self._take_effect, node.id, change, version, late, asked)

    def is_settled(self) -> bool:
        """Whether no proposal that is on its way may yet change the view."""
        return not any(self.in_flight.values())

    def _settled(self, node_id: str) -> None:
        self.in_flight[node_id] -= 1

    def _take_effect(
        self, node_id: str, change: ViewChange, version: int, late: bool, asked: object
    ) -> None:
        self._settled(node_id)
        if not self.has_majority():
            self._clockwork.seen["no majority"] += 1
        elif isinstance(self.commit(change, version, asked), Committed):
            self._clockwork.seen[
                "unknown: takes effect later" if late else "unknown: takes effect at once"
            ] += 1

    def _decide(
        self,
        node: Node,
        life: int,
        change: ViewChange,
        version: int,
        done: Callable[[Outcome], None],
        asked: object,
    ) -> None:
        clockwork = self._clockwork
        self._settled(node.id)
        unknown = Unknown("no answer in time")
        if not self.has_majority():
            clockwork.seen["no majority"] += 1
            clockwork.after(PROPOSAL_TIMEOUT_MS / 2, node.post, life, done, unknown)
            return
        if node.id in self.cut_off:
            # It did not get there, or its answer does not come back.
            if node.id in self.deaf or clockwork.chance(0.5):
                self.commit(change, version, asked)
            clockwork.after(PROPOSAL_TIMEOUT_MS / 2, node.post, life, done, unknown)
            return
        outcome = self.commit(change, version, asked)
        clockwork.after(clockwork.between(0.5, 8), self._answer, node, life, done, outcome)

    def _answer(
        self, node: Node, life: int, done: Callable[[Outcome], None], outcome: Outcome
    ) -> None:
        if node.id in self.cut_off:
            unknown = Unknown("no answer in time")
            self._clockwork.after(PROPOSAL_TIMEOUT_MS / 2, node.post, life, done, unknown)
        else:
            node.post(life, done, outcome)
