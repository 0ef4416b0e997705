"""One simulated node: a production `Replica` and `Interpreter`, and what they are given."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from datapath.execution.concurrency import Running
from datapath.keyspaces import KV
from datapath.node.proposal import Proposal
from datapath.node.recovery import recover_replica
from datapath.node.retention import LogRetention
from datapath.protocol import effects
from datapath.protocol.confirmations import Confirmation
from datapath.protocol.messages import Heartbeat, Message, StaleEpoch
from datapath.protocol.primary import Primary
from datapath.protocol.replica import Replica
from datapath.records import make_record
from datapath.transport.snapshot_transfer import Offer
from election.view import Handover, TakeOver, View
from tests.sim.disk import Disk
from tests.sim.identities import Identity
from tests.sim.service import NodeService, Storage

if TYPE_CHECKING:
    from tests.sim.world import World

READ_LIMIT_RECORDS = 4
CLOCK_RATES = (0.92, 1.08)
START_AGAIN_MS = (20.0, 100.0)
TURN_MS = (0.01, 0.1)
"""How long a turn of the event loop lasts."""
_PAYLOAD = b"x" * 16


class PeerStream:
    """A stream with a peer: the network drops what is sent where there is none."""

    def __init__(self, send: Callable[[str, Message], None], peer: str) -> None:
        self._send, self._peer = send, peer

    def send(self, message: Message, /) -> None:
        """Send it."""
        self._send(self._peer, message)


class Node:
    """A process on a machine. `life` counts its starts; what an earlier life awaited is dropped."""

    def __init__(self, world: World, node_id: str) -> None:
        clockwork = world.clockwork
        self.world = world
        self.clockwork = clockwork
        self.oracle = world.oracle
        self.id = node_id
        self.life = 0
        self.is_up = False
        self.down_ms = 0.0  # when its process ended last
        self.paused = False
        self.installing = False
        self.retention: LogRetention
        self.begun: dict[str, int] = {}  # peer: the session of the snapshot that left last
        self.has_lost = False  # a fault took durable entries, and it has not caught up since
        self.loss_is_hidden = False  # nothing on its disk tells of it, and nobody has told it yet
        self.loss_is_remembered = False  # but other nodes do: it is told before it could act on it
        self.loss_is_noted = False  # it was told, and has that on its disk
        self.when_noted: Callable[[Node], None] | None = None
        self.commit_index = 0
        self.held = (0, 0)  # (acknowledged index, cuts) at which its disk was seen to be right
        self.takeovers: set[int] = set()  # versions that this life has proposed itself at
        self.disk = Disk(clockwork, self._on_disk, self._on_disk_failed)
        self.clock_rate = clockwork.between(*CLOCK_RATES)
        self.stalled_ms = 0.0  # by its clock, in stalls that it has to notice
        self.tick_ms = clockwork.between(14, 24)
        self.replica: Replica
        self._clock_offset = clockwork.between(0, 1e6)
        self._backlog: list[tuple[Callable[..., None], tuple[Any, ...], dict[str, Any]]] = []
        self._torn = False
        self._paused_ms = 0.0
        self._applied_index = 0
        self._appended = 0
        self.storage = Storage(self)
        self.service: NodeService
        self.identity = Identity(self, world.configuration(node_id))

    # -- lifetime

    def clock(self) -> float:
        """This machine's clock: it has a rate of its own, and goes on through pauses."""
        return self._clock_offset + self.clock_rate * self.clockwork.now

    def set_clock_rate(self, rate: float) -> None:
        """Let the clock go on from where it is, faster, slower, or (0) not at all."""
        self._clock_offset += (self.clock_rate - rate) * self.clockwork.now
        self.clock_rate = rate

    def start(self) -> None:
        """Start the process; later, if another one listens at its address."""
        clockwork, world = self.clockwork, self.world
        if world.network.is_taken(self.identity.file[self.id].peer, self):
            clockwork.seen["cannot listen"] += 1
            clockwork.after(clockwork.between(*START_AGAIN_MS), self._start_again, self.life)
            return
        self.life += 1
        self.identity.start(self.life)
        self.is_up, self.paused, self.installing = True, False, False
        self._backlog.clear()
        self.takeovers.clear()
        self.begun.clear()
        self.retention = LogRetention(
            0, 0, world.bounds.snapshot_log_bytes, world.archive_log_bytes
        )
        recovered = recover_replica(
            self.disk.durable, self.storage.store, self.disk.marks(tail_cut=self._torn), self.id
        )
        self.commit_index = recovered.commit_index
        self.oracle.on_start(self, self._applied_index)
        is_known = recovered.tail_cut or recovered.incomplete
        if self.has_lost and not is_known and not self.loss_is_hidden:
            if self.loss_is_noted:
                self.oracle.fail(f"rule e: {self.id} has forgotten the loss that it had noted")
            # It ended before what it had been told was on its disk: it knows nothing, once more.
            self.hide_loss(remembered=self.loss_is_remembered)
            if not self.loss_is_remembered:
                world.agreement.keep_away(self.id)
        if recovered.tail_cut:
            clockwork.seen["cut tail start"] += 1
        if recovered.incomplete:
            clockwork.seen["incomplete start"] += 1
        self.replica = Replica(
            self.id,
            f"{self.id}.{self.life}",
            recovered,
            world.timing,
            world.bounds,
            self.clock(),
            world.takeover_order,
        )
        self.service = NodeService(self)
        if clockwork.tracing:
            clockwork.note(
                f"{self.id} STARTS: entries {recovered.log.base_index + 1}.."
                f"{recovered.log.last_index} commit {recovered.commit_index} accepted "
                f"{recovered.accepted_epoch} {recovered.accepted_primary}"
                f"{' cut tail' if recovered.tail_cut else ''}"
                f"{' incomplete' if recovered.incomplete else ''}"
            )
        world.network.start(self)
        if self.id not in world.agreement.cut_off:
            world.agreement.inform(self)
        clockwork.after(self.tick_ms, self._tick_later, self.life)

    def _start_again(self, life: int) -> None:
        if life == self.life and not self.is_up:
            self.start()

    def crash(self, lost_from: int | None = None, *, damage: bool = False) -> None:
        """End the process, at any point; what was not durable may be lost."""
        if self.clockwork.tracing:
            self.clockwork.note(f"{self.id} CRASHES{' and loses entries' if lost_from else ''}")
        state = self.replica.state
        behind = self.clockwork.random.randint(0, 20)
        applied = self.disk.durable.record_end(state.commit_index - behind)
        self._applied_index = max(self._applied_index, applied)
        if lost_from is not None:
            self.has_lost = True
            self._applied_index = min(self._applied_index, lost_from - 1)
        # A tail that was cut stays suspicious until the replica has caught up.
        self._torn = self.disk.crash(lost_from, damage=damage) or state.tail_cut
        self.is_up = False
        self.down_ms = self.clockwork.now
        self.life += 1
        self.storage.crash(self._applied_index)
        self.world.network.forget(self)
        self.oracle.check_recovery()
        self.world.on_crash(self)
        self.oracle.check_holds_committed(self)

    def hide_loss(self, *, remembered: bool = False) -> None:
        """What the crash took leaves no trace on the disk: its directory is an old copy.

        `remembered`: nodes without that data know that it was there (decision 18). Else nothing can
        be promised until the primary has told it.
        """
        self.loss_is_hidden, self._torn = True, False
        self.loss_is_remembered = remembered

    def pause(self) -> None:
        """Stop the process; what arrives meanwhile waits."""
        if not self.paused:
            self._paused_ms = self.clock()
        self.paused = True
        if self.clockwork.tracing:
            self.clockwork.note(f"{self.id} is paused")

    def resume(self) -> None:
        """Wake up, and find what has arrived."""
        if not self.is_up or not self.paused:
            return
        self.paused = False
        stood_still_ms = self.clock() - self._paused_ms
        if stood_still_ms >= self.world.timing.stall_threshold_ms:
            self.stalled_ms += stood_still_ms
            leases = self.oracle.leases
            if leases is not None and leases.leases and self.replica.primary is not None:
                self.clockwork.seen["lease: its primary stood still"] += 1
        if self.clockwork.tracing:
            self.clockwork.note(f"{self.id} wakes")
        if self.clockwork.chance(0.3):
            self._tick()  # a timer may come before what has arrived, or after it
        backlog, self._backlog = self._backlog, []
        for action, args, kwargs in backlog:
            if not self.is_up or self.paused:
                break
            action(*args, **kwargs)

    def post(self, life: int, action: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """Give an event to that life of this node, when it is awake."""
        if life != self.life or not self.is_up:
            return
        if self.paused:
            self._backlog.append((action, args, kwargs))
        else:
            action(*args, **kwargs)

    # -- events

    def _tick_later(self, life: int) -> None:
        if life != self.life:
            return
        if not self.paused:
            self._tick()
        self.clockwork.after(self.tick_ms, self._tick_later, life)

    def _tick(self) -> None:
        timing, replica, now_ms = self.world.timing, self.replica, self.clock()
        if now_ms - replica.state.now_ms >= timing.stall_threshold_ms:
            self.clockwork.seen["stall noticed"] += 1
        if replica.primary is not None:
            self._count_situations(replica.primary)
        self.service.on_tick()
        self.world.agreement.tell(self)

    def _count_situations(self, primary: Primary) -> None:
        """Look at what only the primary itself knows; each tick that finds it counts."""
        seen = self.clockwork.seen
        if primary.stage == "matching" and not primary.is_free_of_promises():
            seen["waited for own promise"] += 1
        if primary.is_open and self.clock() >= primary.lease_until_ms():
            seen["lease expired"] += 1
        if primary.in_sync.giving_way:
            seen["gave way"] += 1
        if len(primary.in_sync.view.in_sync) < self.world.bounds.min_in_sync:
            seen["too few in sync"] += 1

    def on_message(self, peer: str, message: Message) -> None:
        """A message has arrived."""
        if self.clockwork.tracing:
            self.clockwork.note(f"{peer} -> {self.id}  {_brief(message)}")
        if isinstance(message, Heartbeat) and self.replica.backup._takeover_version:
            self.clockwork.seen["promise withheld"] += 1
        self.service.run(self.replica.on_message, peer, message, self.clock())

    def on_link(self, peer: str) -> None:
        """The connection to a peer is open."""
        if self.clockwork.tracing:
            self.clockwork.note(f"{self.id} is connected to {peer}")
        self.service.run(self.replica.on_link, peer)

    def on_link_lost(self, peer: str) -> None:
        """The connection to a peer is gone."""
        if self.clockwork.tracing:
            self.clockwork.note(f"{self.id} has lost its connection to {peer}")
        self.service.run(self.replica.on_link_lost, peer)

    def on_view(self, view: View) -> None:
        """A view is known here."""
        if self.clockwork.tracing:
            self.clockwork.note(f"{self.id} learns view {view.version}")
        is_news = self.identity.take(view)
        if is_news:
            self.world.network.dial_peers(self)
        self.service.on_view(view)
        if is_news:
            self.world.on_entry(self, self.identity.step(view))

    def on_reminder(self, epoch: int, index: int) -> None:
        """Another node remembers that this one had that entry committed."""
        was_incomplete = self.replica.state.incomplete
        self.service.run(self.replica.on_reminder, epoch, index)
        if self.replica.state.incomplete and not was_incomplete:
            self.clockwork.seen["reminded of its loss"] += 1
            if self.clockwork.tracing:
                self.clockwork.note(f"{self.id} is reminded of entry {index} of epoch {epoch}")
            if not self.has_lost:
                self.oracle.fail(
                    f"{self.id} is told that it has gone back behind entry {index} of epoch "
                    f"{epoch}, and its disk has lost nothing"
                )

    def on_proposal_done(self, *, answered: bool) -> None:
        """A proposal has ended."""
        if self.clockwork.tracing:
            self.clockwork.note(f"{self.id}: its proposal has ended, answered={answered}")
        self.service.run(self.replica.on_proposal_done, answered=answered)

    def _on_disk(self, life: int, ticket: int) -> None:
        # The disk counts its own lives; `post` asks for this process's.
        del life
        self.post(self.life, self.on_durable, ticket)

    def _on_disk_failed(self) -> None:
        """D9: an fsync has failed, so nothing is known of the pages: stop, and read them anew."""
        if self.is_up:
            self.clockwork.seen["failed fsync"] += 1
            self.crash()

    def on_durable(self, ticket: int) -> None:
        """The disk has caught up."""
        self.service.on_durable(ticket)

    def append(self, n_entries: int) -> bool:
        """Execute operations, if this node may."""
        replica = self.replica
        if not self.is_up or self.paused or not replica.may_execute() or not replica.state.writable:
            return False
        self._appended += 1
        # Different bytes for each record, so that two of them at one place are told apart.
        key = f"{self.id}.{self.life}.{self._appended}".encode()
        record = make_record(
            replica.next_index,
            replica.state.epoch,
            replica.state.commit_index,
            [[(KV, key, _PAYLOAD)]] * n_entries,
        )
        self.service.run(replica.append, record)
        return True

    def confirm(self, waiting: Confirmation | None = None) -> None:
        """Ask whether this node is the primary still, as a read does that rests on no clock."""
        if self.is_up and not self.paused:
            self.service.confirm(waiting)

    def hand_over(self, to: str) -> None:
        """Ask for a handover."""
        if not self.is_up or self.paused or self.replica.primary is None:
            return
        problem, emitted = self.replica.start_handover(to, 500)
        if self.clockwork.tracing:
            self.clockwork.note(f"{self.id} hands over to {to}: {problem or 'begun'}")
        self.service.run(lambda: emitted)

    def trim(self, first_index: int) -> None:
        """Forget old entries of the log, up to `first_index` at the most, as production decides.

        A record here is what a segment is there.
        """
        if not self.is_up or self.paused or self.installing or not self.disk.idle:
            return
        self.retention.settle(self.replica.primary, self.clock())
        if self.begun:
            self.clockwork.seen["trimmed while a snapshot is under way"] += 1
        segments = [
            (record.last_index, len(record.data), 0.0) for record in self.disk.durable.records
        ]
        durable = min(first_index, self.replica.state.commit_index) - 1
        first = self.disk.trim(self.retention.keep_from(segments, durable, first_index))
        self.service.run(self.replica.on_log_trimmed, first)

    def _trim_committed(self) -> None:
        self.trim(self.replica.state.commit_index)

    def after_event(self) -> None:
        """An event has been carried out: look at what has become of this node."""
        if self.has_lost:
            state = self.replica.state
            is_whole = self.disk.durable.last_index >= self.oracle.acknowledged
            if self.loss_is_hidden and (state.incomplete or is_whole):
                # The primary has told it, or caught it up before it knew of what is missing here.
                self.loss_is_hidden = False
                self.world.agreement.cut_off_for_good.discard(self.id)
                self.world.agreement.reconnect(self.id)
            self.has_lost = state.tail_cut or state.incomplete or self.loss_is_hidden
            self.loss_is_remembered = self.loss_is_remembered and self.has_lost
            is_noted = self.loss_is_noted or (state.incomplete and self.disk.idle)
            if is_noted and not self.loss_is_noted and self.when_noted is not None:
                strike, self.when_noted = self.when_noted, None
                self.clockwork.after(0, strike, self)
            self.loss_is_noted = is_noted and self.has_lost
        self.oracle.check_node(self)

    # -- what the interpreter asks for (`datapath.node.interpreter.Surroundings`)

    def stream_to(self, peer: str) -> PeerStream:
        """Return the one that this node has opened, if it has."""
        return PeerStream(self._send, peer)

    def stream_from(self, peer: str) -> PeerStream:
        """Return the one that a peer has opened, if it has."""
        return PeerStream(self._reply, peer)

    def _send(self, peer: str, message: Message) -> None:
        self.oracle.on_sent_as_primary(self, message)
        self.world.network.send(self.id, peer, message)

    def _reply(self, peer: str, message: Message) -> None:
        if isinstance(message, StaleEpoch):
            self.clockwork.seen["refused as fenced"] += 1
        self.oracle.on_replied(self, peer, message)
        self.world.network.reply(self.id, peer, message)

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Make a turn of the event loop, in this life."""
        clockwork = self.clockwork
        clockwork.after(clockwork.between(*TURN_MS), self.post, self.life, callback)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> Running:
        """Nothing here is `async`."""
        raise NotImplementedError("the key-value service has no async operations")

    def fail(self, problem: Exception) -> None:
        """A broken invariant ends the schedule."""
        raise problem

    def on_commit(self, index: int) -> None:
        """Entries are committed."""
        self.oracle.on_commit(self, self.commit_index, index)
        self.commit_index = index

    def propose(self, effect: effects.Propose) -> None:
        """Propose a change of the view."""
        change = effect.change
        if self.clockwork.tracing:
            self.clockwork.note(f"{self.id} proposes {change} at {effect.expected_version}")
        primary = self.replica.primary
        if isinstance(change, Handover) and primary is not None and primary.stage == "matching":
            self.clockwork.seen["cut tail yields"] += 1
        self.world.agreement.propose(self, Proposal(self.replica, effect, self.on_view))

    def on_leaving(self, effect: effects.Propose) -> None:
        """A change leaves for consensus."""
        self.world.oracle.on_proposed(self, effect.change)
        if isinstance(effect.change, TakeOver):
            self.takeovers.add(effect.expected_version)

    def read_log(self, effect: effects.ReadLog) -> None:
        """Read some of the log, later."""
        self.clockwork.seen["log replay"] += 1
        delay = self.clockwork.between(0.1, 10)
        self.clockwork.after(delay, self.post, self.life, self._log_is_read, effect)

    def _log_is_read(self, effect: effects.ReadLog) -> None:
        records = self.disk.cache.read_some(effect.from_index, READ_LIMIT_RECORDS)
        self.service.run(self.replica.on_log_read, effect.peer, effect.session, records)

    def on_epoch_started(self, epoch: int) -> None:
        """This node is the primary of a new epoch."""
        self.clockwork.seen["epoch opened"] += 1
        if self.clockwork.tracing:
            self.clockwork.note(f"{self.id} opens epoch {epoch}")
        self.oracle.on_start_epoch(self, epoch)

    def on_epoch_open(self, epoch: int) -> None:
        """It serves: the oracle sees that by itself, but for when."""
        del epoch
        if self.oracle.leases is not None:
            self.oracle.leases.on_epoch_open(self)

    def on_step_down(self, epoch: int) -> None:
        """The epoch is over."""
        self.clockwork.seen["step down"] += 1
        if self.clockwork.tracing:
            self.clockwork.note(f"{self.id} steps down from epoch {epoch}")

    def on_handover_ended(self, reason: str) -> None:
        """The handover was given up."""
        self.clockwork.seen["handover given up"] += 1
        if self.clockwork.tracing:
            self.clockwork.note(f"{self.id}: handover ended: {reason}")

    def redial(self, peer: str, reason: str) -> None:
        """Close the connection to a peer; another one follows."""
        self.clockwork.seen["redial"] += 1
        if self.clockwork.tracing:
            self.clockwork.note(f"{self.id} redials {peer}: {reason}")
        connection = self.world.network.outgoing.get((self.id, peer))
        if connection is not None:
            self.clockwork.after(0.01, self.world.network.close, connection, 0)

    # -- snapshots: a copy of the state at the primary's commit index

    def send_snapshot(self, effect: effects.SendSnapshot) -> None:
        """Send one, which takes its time."""
        self.clockwork.seen["snapshot begun"] += 1
        delay = self.clockwork.between(0, 20)
        self.clockwork.after(delay, self.post, self.life, self._snapshot_leaves, effect)

    def _snapshot_leaves(self, effect: effects.SendSnapshot) -> None:
        state, world = self.replica.state, self.world
        index = state.commit_index
        epoch = state.log.epoch_at(index)
        if epoch is None or self.clockwork.chance(world.snapshot_failure_rate):
            self._snapshot_done(effect, done=False)
            return
        target = world.nodes[effect.peer]
        self.begun[effect.peer] = effect.session
        self.retention.begin_snapshot(effect.peer, index)
        if self.clockwork.chance(0.5):  # the log is trimmed meanwhile
            delay_ms = self.clockwork.between(1, world.snapshot_ms)
            self.clockwork.after(delay_ms, self.post, self.life, self._trim_committed)
        self.storage.keep_snapshot(index, epoch)
        if self.clockwork.tracing:
            self.clockwork.note(f"{self.id} sends {target.id} a snapshot at ({index}, {epoch})")
        self.clockwork.after(
            self.clockwork.between(5, world.snapshot_ms),
            self._snapshot_arrives, effect, self.life, target, target.life,
            Offer("", index, epoch, self.replica.state.epoch),
        )  # fmt: skip

    def _snapshot_arrives(
        self, effect: effects.SendSnapshot, life: int, target: Node, target_life: int, offer: Offer
    ) -> None:
        network = self.world.network
        if (
            target.life != target_life
            or not target.is_up
            or target.paused
            or network.is_cut(self.id, target.id)
            or network.is_cut(target.id, self.id)
        ):
            self.post(life, self._snapshot_done, effect, done=False)
            return
        target.post(target_life, target.take_snapshot, self, life, effect, offer)

    def take_snapshot(
        self, sender: Node, sender_life: int, effect: effects.SendSnapshot, offer: Offer
    ) -> None:
        """Begin to put a received snapshot in place of the log."""
        index, epoch = offer.index, offer.epoch
        problem = self.replica.snapshot_refusal(sender.id, index, offer.sender_epoch)
        problem = problem or self.replica.start_install(index, epoch)
        if problem:
            self.clockwork.seen["snapshot refused"] += 1
            if self.clockwork.tracing:
                self.clockwork.note(f"{self.id} refuses the snapshot at {index}: {problem}")
            sender.post(sender_life, sender._snapshot_done, effect, done=False)
            return
        self.installing = True
        self.clockwork.after(1000, self._tell_sender, self.life, sender, sender_life, effect)
        self.clockwork.after(
            self.clockwork.between(0.5, 30),
            self.post, self.life, self._install, sender, sender_life, effect, index, epoch,
        )  # fmt: skip

    def _install(
        self, sender: Node, sender_life: int, effect: effects.SendSnapshot, index: int, epoch: int
    ) -> None:
        if not self.disk.idle:
            self.clockwork.after(
                2, self.post, self.life, self._install, sender, sender_life, effect, index, epoch
            )
            return
        if sender_life != sender.life:
            self.installing = False
            self.service.run(self.replica.on_install_failed)
            return
        self.storage.install(sender.storage, index, epoch)
        self.installing = False
        self.clockwork.seen["snapshot installed"] += 1
        self.oracle.on_snapshot_installed(self, sender, effect.session, index)
        if self.clockwork.tracing:
            self.clockwork.note(f"{self.id} has installed the snapshot at ({index}, {epoch})")
        self.commit_index = index
        self.service.on_snapshot_installed(index, epoch)
        self.clockwork.after(
            self.clockwork.between(0.5, 20),
            sender.post, sender_life, sender._snapshot_done_kw, effect,
        )  # fmt: skip

    def _tell_sender(
        self, life: int, sender: Node, sender_life: int, effect: effects.SendSnapshot
    ) -> None:
        """The sender notices if this process has ended while it installed a snapshot."""
        if life != self.life:
            sender.post(sender_life, sender._snapshot_done, effect, done=False)

    def _snapshot_done_kw(self, effect: effects.SendSnapshot) -> None:
        self._snapshot_done(effect, done=True)

    def _snapshot_done(self, effect: effects.SendSnapshot, *, done: bool) -> None:
        if self.begun.get(effect.peer) == effect.session:
            del self.begun[effect.peer]
            self.retention.end_snapshot(effect.peer, self.clock(), installed=done)
        self.service.run(self.replica.on_snapshot_sent, effect.peer, effect.session, done=done)


def _brief(message: Message) -> str:
    fields = {name: getattr(message, name) for name in message.__struct_fields__}
    if "records" in fields:
        fields["records"] = len(fields["records"])
    text = " ".join(f"{name}={value}" for name, value in fields.items())
    return f"{type(message).__name__} {text}"
