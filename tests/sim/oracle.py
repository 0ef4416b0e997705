"""What must hold after every event, judged with the knowledge that no node has.

The oracle knows the true views, the true disks, every record that was ever written and every entry
that was ever acknowledged. A broken rule raises `ViolationError`.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from operator import itemgetter
from typing import TYPE_CHECKING

from cluster.services.kv import HEAD_SIZE_BYTES
from datapath.errors import NotPrimaryError, OperationError
from datapath.keyspaces import KV
from datapath.node.survivors import Choice, DisagreementError, Survivor, choose
from datapath.operations import Operation
from datapath.protocol.log_index import LogIndex
from datapath.protocol.messages import AppendReply, HeartbeatReply, Message, ProbeReply
from datapath.records import Entry, Record
from election.registry import addresses_of
from election.view import AddMember, TakeOver, View, ViewChange
from tests.sim.clockwork import Clockwork, ViolationError
from tests.sim.identities import Impostor
from tests.sim.lease_oracle import LeaseOracle
from tests.sim.operators import Request

if TYPE_CHECKING:
    from tests.sim.agreement import Agreement
    from tests.sim.network import Connection
    from tests.sim.node import Node


class Oracle:
    """Global truth."""

    def __init__(self, clockwork: Clockwork, min_in_sync: int) -> None:
        self._clockwork = clockwork
        self._min_in_sync = min_in_sync
        self.nodes: dict[str, Node] = {}
        self.agreement: Agreement
        self.clocks_hold = True  # D4 rests on them; where they may stop, no read rests on D4
        self.view: View | None = None
        self.primaries: dict[int, str] = {}  # epoch -> primary
        self.committed: list[int] = [0]  # index -> epoch of the committed entry
        self._promised: dict[str, float] = {}  # its own clock when a node last promised
        self.acknowledged = 0  # the highest index that a primary committed
        self._acknowledged_by: list[tuple[int, int]] = []  # up to which index, in which epoch
        self._records: dict[tuple[int, int], tuple[bytes, int]] = {}  # -> bytes, epoch before
        self._puts: dict[tuple[int, int], bytes] = {}  # (index, epoch) -> what a put wrote there
        self._places: dict[bytes, list[tuple[int, int]]] = {}  # and where it was written
        self._not_applied: set[bytes] = set()  # what a client was told of, for good
        self.leases: LeaseOracle | None = None  # where clients use leases (`Holders`)
        self._openings: dict[int, tuple[str, int]] = {}  # epoch -> the (node, life) that opened it

    def fail(self, text: str) -> None:
        """A rule is broken."""
        raise ViolationError(text)

    # -- views

    def on_true_view(self, old: View | None, new: View) -> None:
        """E1, and one primary for each epoch."""
        known = self.primaries.setdefault(new.epoch, new.primary)
        if known != new.primary:
            self.fail(f"epoch {new.epoch} has two primaries: {known} and {new.primary}")
        if old is not None and new.epoch != old.epoch and new.primary not in old.in_sync:
            self.fail(f"E1: {new.primary} was not in the in-sync set {old.in_sync}")
        for node in new.in_sync:
            member = new.member(node)
            if member is None or member.role != "replica":
                self.fail(f"E1: {node} is in the in-sync set and no replica among the members")
        for node in set(new.in_sync) - set(old.in_sync) if old is not None else ():
            self._check_joined(node)
        self.view = new

    def _check_joined(self, node_id: str) -> None:
        """D7: who joins holds everything that was acknowledged, on its true disk."""
        node, index = self.nodes[node_id], self.acknowledged
        durable = node.disk.durable
        if (
            index > durable.base_index
            and durable.epoch_at(index) != self.committed[index]
            and not node.has_lost
        ):
            self.fail(f"D7: {node_id} joins the in-sync set without entry {index}")

    def on_members_changed(self, change: ViewChange, old: View, new: View, asked: object) -> None:
        """An operator's change of the members has taken effect (rule M1)."""
        if not isinstance(asked, Request):
            return
        asked.committed.append(new)
        self._check_told(asked)
        if isinstance(change, AddMember):
            if change.member.id in old.removed and old.member(change.member.id) is None:
                self.fail(f"M1: {change.member.id}, which was removed, comes in again")
        elif asked.forced:
            self._clockwork.seen["operator: removed by force"] += 1
        else:
            self._check_removal(asked, old, new)

    def _check_removal(self, asked: Request, old: View, new: View) -> None:
        """Nobody has insisted: a majority of live voters and a live copy of everything are left.

        Who ran at some time since the judgement began counts as alive: it may have died since.
        """
        node, agreement = asked.target, self.agreement
        voters = agreement.voters - {node}
        live = {name for name in voters if agreement.was_up(name, asked.looked_ms)}
        if 2 * len(live) <= len(voters):
            self.fail(f"M1: {asked} leaves {sorted(live)} alive of the voters {sorted(voters)}")
        leaving = agreement.voters - {member.id for member in old.members}
        if leaving:
            self.fail(f"M1: {asked} does not wait until {sorted(leaving)} votes no more")
        dead = [m.id for m in new.members if not agreement.was_up(m.id, asked.looked_ms)]
        # A newcomer whose vote came after what the judge had applied was not known to count.
        counts = node in asked.voters or node in old.in_sync
        if dead and node in asked.live and counts:
            self.fail(f"M1: {asked} takes a live node out while {dead} is dead")
        if node not in old.in_sync:
            return
        if len(new.in_sync) < self._min_in_sync:
            self.fail(f"M1: {asked} leaves {new.in_sync} in sync, fewer than each write needs")
        if not any(
            agreement.was_up(name, asked.looked_ms) and self._holds_all(self.nodes[name])
            for name in new.in_sync
        ):
            self.fail(f"M1: {asked} takes the last live copy of entry {self.acknowledged}")

    def _holds_all(self, node: Node) -> bool:
        durable, index = node.disk.durable, self.acknowledged
        return index <= durable.base_index or durable.epoch_at(index) == self.committed[index]

    def on_told(self, asked: Request) -> None:
        """What an operator is told is what has happened."""
        view = asked.answer
        if isinstance(view, View):
            member = view.member(asked.target)
            if member is None:
                is_right = asked.wish == "removal" or not asked.anew
            else:
                is_right = asked.wish != "removal" and asked.wanted in {None, addresses_of(member)}
            if view not in self.agreement.views or not is_right:
                self.fail(f"{asked} to {asked.wanted} is said to be done: {view}")
        self._check_told(asked)

    def _check_told(self, asked: Request) -> None:
        answer = asked.answer
        is_refused = isinstance(answer, OperationError) and answer.outcome == "not_applied"
        if asked.committed and is_refused:
            self.fail(f"{asked} took effect, and was answered: {answer}")

    # -- snapshots

    def on_snapshot_installed(self, node: Node, sender: Node, session: int, index: int) -> None:
        """What follows a snapshot is still in the log of the primary that sent it."""
        if sender.replica.primary is None or sender.begun.get(node.id) != session:
            return
        base_index = sender.disk.cache.base_index
        if base_index > index:
            self.fail(
                f"{node.id} has installed a snapshot at {index} of {sender.id}, whose log begins "
                f"after {base_index}: another one is needed"
            )

    # -- a recovery

    def check_recovery(self) -> None:
        """R1: whatever disks are left now, all that was acknowledged and is on any of them is kept.

        What was acknowledged in epochs of which a disk has an entry, that is: others are as lost as
        all that were in sync then. Not where a disk has lost entries that it had promised: then
        logs may contradict each other.
        """
        if any(node.has_lost for node in self.nodes.values()):
            return
        found = [_survivor(node) for node in self.nodes.values()]
        for size in range(1, len(found) + 1):
            for group in itertools.combinations(found, size):
                memories = self.agreement.memories(survivor.node for survivor in group)
                try:
                    choice = choose(group, memories)
                except DisagreementError as error:
                    self.fail(f"R1: nothing is recovered of {[s.name for s in group]}: {error}")
                best = choice.best
                self._check_told_loss(choice, [memory.name for memory in memories])
                for other in group:
                    top = self._last_acknowledged(other.log, best.log.last_epoch)
                    if top > best.log.base_index and best.log.epoch_at(top) != self.committed[top]:
                        self.fail(f"R1: {other.name} holds entry {top}, recovered is {best.name}")

    def _check_told_loss(self, choice: Choice, left: list[str]) -> None:
        """R2: "nothing is missing" is said only where it is so, and a loss only where there is."""
        best, top = choice.best, len(self.committed) - 1
        is_whole = top <= best.log.base_index or best.log.epoch_at(top) == self.committed[top]
        if choice.is_complete:
            self._clockwork.seen["recovery: complete"] += 1
        elif left and not is_whole:
            self._clockwork.seen["recovery: a loss is told or feared"] += 1
        if choice.is_complete and not is_whole:
            self.fail(
                f"R2: of {left} {best.name} is said to be complete, and lacks entry {top} of epoch "
                f"{self.committed[top]}: its log ends at {best.position}"
            )
        if choice.losses and is_whole:
            self.fail(f"R2: of {left} {best.name} lacks nothing, and is said to: {choice.losses}")

    def _last_acknowledged(self, log: LogIndex, until_epoch: int) -> int:
        """Return the last entry of a log that was acknowledged, in an epoch up to that one."""
        by = bisect_right(self._acknowledged_by, until_epoch, key=itemgetter(1))
        index = min(self._acknowledged_by[by - 1][0] if by else 0, log.last_index)
        while index > log.base_index and log.epoch_at(index) != self.committed[index]:
            index -= 1
        return index

    # -- addresses

    def on_dialled(self, node: Node, peer: str, address: str) -> None:
        """A node dials what its newest view says, or its own file (decision 14)."""
        if address not in node.identity.places(peer):
            self.fail(f"{node.id} dials {peer} at {address}, which neither view nor file says")

    def on_connected(self, connection: Connection) -> None:
        """A link is open: both ends are who the other takes them for (decision 13)."""
        for side in (0, 1):
            node, other = connection.ends[side], connection.ends[1 - side]
            if isinstance(node, Impostor):
                continue
            view = node.identity.newest
            if view is not None and view.member(other.id) is None:
                self.fail(f"I3: {node.id} has a link with {other.id}, which it knows is no member")
            if isinstance(other, Impostor):
                self.on_believed(node, other)
            if node.identity.registry.accusation().code:
                self.fail(f"I5: {node.id} takes itself for a copy")

    def on_believed(self, node: Node, impostor: Impostor) -> None:
        """An impostor has a link: only where the node cannot know better.

        A copy is the same as its original before that moved, where the move is not known, or no
        agreed address at all. A directory that was met while the cluster was founded is the right
        one for a node that has not heard of its cluster yet. And another disk is refused once it is
        known which one is right; an empty one, by a node that belongs to a cluster, always.
        """
        known, has_cluster = node.identity.places(impostor.id), node.identity.claim.cluster_id != ""
        disk = node.identity.registry.known(impostor.id).data_id
        if impostor.kind == "clone" and (impostor.own.peer in known or not known[1]):
            self._clockwork.seen["clone believed where the move is not known"] += 1
        elif impostor.kind == "namesake" and not has_cluster:
            self._clockwork.seen["namesake believed before the cluster is known"] += 1
        elif not disk and impostor.kind in ("other data", "" if has_cluster else "emptied"):
            self._clockwork.seen["another disk believed where none is known"] += 1
        else:
            self.fail(
                f"{node.id} has a link with the {impostor.kind} of {impostor.id} at "
                f"{impostor.own.peer}; it knows {impostor.id} at {known}"
            )

    # -- logs

    def on_start(self, node: Node, applied_index: int) -> None:
        """What its store has applied was committed, and is still so after a restart."""
        if node.commit_index < applied_index and not node.has_lost:
            self.fail(
                f"{node.id} had applied entry {applied_index}, and starts at {node.commit_index}"
            )

    def check_holds_committed(self, node: Node) -> None:
        """Every replica in sync has every acknowledged entry on its true disk (D1, E1).

        Equal (index, epoch) means equal logs up to there, so the last entry says it of all.
        """
        index, durable, view = self.acknowledged, node.disk.durable, self.view
        assert view is not None
        if node.id not in view.in_sync or node.has_lost:
            return
        if index > durable.base_index and durable.epoch_at(index) != self.committed[index]:
            self.fail(
                f"{node.id} is in sync, its disk ends at {durable.last_index}, and entry {index} "
                f"of epoch {self.committed[index]}, which was acknowledged, is not there"
            )
        node.held = (index, durable.cuts)

    def on_write(self, node: Node, record: Record, previous_epoch: int | None) -> None:
        """Equal (index, epoch) means equal bytes, and equal histories."""
        if previous_epoch is None:
            self.fail(f"{node.id} writes record {record.first_index} after a gap")
            return
        key = (record.first_index, record.epoch)
        is_new = key not in self._records
        known = self._records.setdefault(key, (record.data, previous_epoch))
        if is_new and node.world.has_service:
            self._note_puts(record, entries := record.entries())
            if self.leases is not None:
                self.leases.on_write(node, record.first_index, record.epoch, entries)
        if known != (record.data, previous_epoch):
            self.fail(f"{node.id} writes another record at {key} than was written there before")

    def _note_puts(self, record: Record, entries: list[Entry]) -> None:
        for index, entry in enumerate(entries, record.first_index):
            for space, _, value in entry:
                if space == KV and value is not None:
                    self._puts[index, record.epoch] = value[HEAD_SIZE_BYTES:]
                    self._places.setdefault(value[HEAD_SIZE_BYTES:], []).append(
                        (index, record.epoch)
                    )

    def on_commit(self, node: Node, old: int, index: int) -> None:
        """A node has committed: D1, and never anything else than anyone before."""
        log, committed = node.replica.state.log, self.committed
        if index <= old:
            self.fail(f"the commit index of {node.id} goes from {old} to {index}")
        primary = node.replica.primary
        for position in range(max(old, log.base_index) + 1, index + 1):
            epoch = log.epoch_at(position)
            if epoch is None:
                self.fail(f"{node.id} commits entry {position}, which it does not hold")
                return
            if position >= len(committed):
                if primary is None:
                    self.fail(f"{node.id} commits {position}, which no primary has committed")
                committed.append(epoch)
                if self._puts.get((position, epoch)) in self._not_applied:
                    self.fail(
                        f"D1: {self._puts[position, epoch]!r} commits at {position}, and its "
                        "client was told that it never will"
                    )
                if self.leases is not None:
                    self.leases.on_commit(position, epoch)
            elif committed[position] != epoch:
                self.fail(
                    f"entry {position} was committed with epoch {committed[position]}, and "
                    f"{node.id} commits it with epoch {epoch}"
                )
        if primary is None or index <= self.acknowledged:
            return
        self.acknowledged = index
        self._acknowledged_by.append((index, primary.epoch))
        self._check_copies(node, index)
        for other in self.nodes.values():
            if other.is_up and other.replica.primary is not None:
                self.check_holds_all(other)

    def _check_copies(self, node: Node, index: int) -> None:
        """D1: it is on every true disk of the in-sync set."""
        view, epoch, copies = self.view, self.committed[index], 0
        assert view is not None
        assert node.replica.primary is not None
        in_sync = {*view.in_sync, *node.replica.primary.in_sync.view.in_sync}
        for node_id, other in self.nodes.items():
            durable = other.disk.durable
            if durable.epoch_at(index) == epoch or index <= durable.base_index or other.has_lost:
                copies += 1
            elif node_id in in_sync:
                self.fail(
                    f"D1: {node.id} commits entry {index} of epoch {epoch}, and the disk of "
                    f"{node_id}, which is in sync, ends at {durable.last_index}"
                )
        if copies < self._min_in_sync:
            self.fail(f"D1: {node.id} commits entry {index} on {copies} copies")

    def check_holds_all(self, node: Node) -> None:
        """A primary that opens an epoch, or has, holds everything that was ever acknowledged."""
        primary = node.replica.primary
        last = len(self.committed) - 1
        if primary is None or primary.stage != "open" or not last:
            return
        if primary.epoch < self.committed[last]:
            return
        log = node.replica.state.log
        if last > log.base_index and log.epoch_at(last) != self.committed[last]:
            self.fail(
                f"{node.id}, primary of epoch {primary.epoch}, lacks entry {last} of epoch "
                f"{self.committed[last]}, which was acknowledged; its log ends at {log.last_index}"
            )

    def on_start_epoch(self, node: Node, epoch: int) -> None:
        """A primary opens its epoch: once, and with everything (D6); never in an old one (d)."""
        if self.primaries.get(epoch) != node.id:
            self.fail(f"{node.id} opens epoch {epoch} of {self.primaries.get(epoch)}")
        known = self._openings.setdefault(epoch, (node.id, node.life))
        if known != (node.id, node.life):
            self.fail(f"rule d: epoch {epoch}, opened by {known}, is opened again by {node.id}")
        if node.replica.state.incomplete:
            self.fail(f"rule e: {node.id} opens epoch {epoch} with a damaged log")
        self.check_holds_all(node)

    # -- what clients are told

    def on_refused(self, node: Node, operation: Operation, problem: OperationError) -> None:
        """A primary refuses: nothing under that key was executed here before (D8).

        A1 comes first: who has lost the right is told nothing of an earlier attempt.
        """
        if (
            problem.outcome != "not_applied"
            or problem.code in {"forbidden", "unauthenticated"}
            or isinstance(problem, NotPrimaryError)
            or not operation.idempotency_key
            or operation.method != "put"
        ):
            return
        self._clockwork.seen[f"client: a keyed write is refused: {problem.code}"] += 1
        cache = node.disk.cache
        for index, epoch in self._places.get(operation.args[1], ()):
            if cache.epoch_at(index) == epoch:
                self.fail(
                    f"D8: {node.id} refuses {operation.args} as not applied ({problem.code}), and "
                    f"holds it at {index}"
                )

    def on_told_not_applied(self, value: str) -> None:
        """A client was told that its put was not applied, and never will be (D1)."""
        wrote = value.encode()
        self._not_applied.add(wrote)
        for index, epoch in self._places.get(wrote, ()):
            if index < len(self.committed) and self.committed[index] == epoch:
                self.fail(f"D1: {value!r} is said to be not applied, and is committed at {index}")

    # -- messages

    def on_sent_as_primary(self, node: Node, message: Message) -> None:
        """Rule c: nothing in an epoch leaves before the epoch is durable."""
        epoch = message.epoch
        if node.disk.accepted != (epoch, node.id):
            self.fail(
                f"rule c: {node.id} speaks in epoch {epoch} and has accepted "
                f"{node.disk.accepted} on disk"
            )
        if self.primaries.get(epoch) != node.id:
            self.fail(f"{node.id} speaks as the primary of epoch {epoch}")

    def on_replied(self, node: Node, peer: str, message: Message) -> None:
        """E5, D9, and rule b."""
        if not isinstance(message, ProbeReply | AppendReply | HeartbeatReply):
            return
        if node.disk.accepted != (message.epoch, peer):
            self.fail(
                f"E5: {node.id} acknowledges epoch {message.epoch} to {peer} and has accepted "
                f"{node.disk.accepted} on disk"
            )
        if isinstance(message, AppendReply):
            if message.match_index > node.disk.durable.last_index:
                self.fail(
                    f"D9: {node.id} acknowledges up to {message.match_index}, and its disk ends at "
                    f"{node.disk.durable.last_index}"
                )
        elif isinstance(message, HeartbeatReply):
            self._promised[node.id] = node.clock()
            view = node.replica.view
            if view is not None and view.version in node.takeovers:
                self.fail(f"rule b: {node.id} promises while its own take-over may commit yet")

    def on_proposed(self, node: Node, change: object) -> None:
        """D4: promises are kept for a grace period; e: who has lost entries claims nothing."""
        if not isinstance(change, TakeOver):
            return
        if node.replica.state.incomplete:
            self.fail(f"rule e: {node.id} is damaged and proposes itself")
        view = node.replica.view
        age_ms = node.clock() - self._promised.get(node.id, -math.inf)
        if (
            view is not None
            and view.primary != node.id
            and age_ms < node.world.timing.grace_period_ms
        ):
            self.fail(f"D4: {node.id} proposes itself {age_ms:.0f} ms after its last promise")

    def on_confirmed(self, node: Node, acknowledged: int, index: int) -> None:
        """A confirmed read: all that was acknowledged before it began is committed here."""
        if index < acknowledged:
            self.fail(
                f"confirmed read: {node.id} may answer at commit index {index}, and {acknowledged} "
                "was acknowledged before it was asked"
            )

    # -- after every event

    def check_node(self, node: Node) -> None:
        """What can be said of one node, and of those that believe to be primaries."""
        replica, disk = node.replica, node.disk
        state = replica.state
        durable_index, commit_index = state.durable_index, state.commit_index
        if state.log.last_index != disk.cache.last_index or durable_index < commit_index:
            self.fail(
                f"{node.id}: the log ends at {state.log.last_index} ({disk.cache.last_index} "
                f"written), durable {durable_index}, commit {commit_index}"
            )
        if durable_index > disk.durable.last_index and not node.installing:
            self.fail(f"D9: {node.id} takes {durable_index} for durable")
        if node.held != (self.acknowledged, disk.durable.cuts):
            self.check_holds_committed(node)
        # A single primary that has all that was acknowledged may serve, or not: it is right.
        if (
            self.clocks_hold
            and replica.primary is not None
            and (commit_index < self.acknowledged or self._has_rival(node))
            and replica.may_serve(node.clock())
        ):
            self.check_serving(node)

    def _has_rival(self, node: Node) -> bool:
        for other in self.nodes.values():
            if other.replica.primary is not None and other is not node and other.is_up:
                return True
        return False

    def check_serving(self, node: Node) -> None:
        """At most one serves at any instant, and it serves all that was acknowledged (D4, D6)."""
        commit_index = node.replica.state.commit_index
        if commit_index < self.acknowledged:
            self.fail(
                f"{node.id} serves at commit index {commit_index}, and {self.acknowledged} was "
                "acknowledged"
            )
        for other in self.nodes.values():
            if (
                other is not node
                and other.is_up
                and other.replica.primary is not None
                and other.replica.may_serve(other.clock())
            ):
                self.fail(
                    f"D4: {node.id} in epoch {node.replica.state.epoch} and {other.id} in epoch "
                    f"{other.replica.state.epoch} serve at the same time"
                )


def _survivor(node: Node) -> Survivor:
    log = node.disk.durable
    return Survivor(
        name=node.id,
        node=node.id,
        data_id=node.id,
        log=LogIndex.from_runs(log.base_index, log.base_epoch, log.last_index, log.epochs()),
        commit_index=max(log.base_index, min(log.commit_hint, log.last_index)),
    )
