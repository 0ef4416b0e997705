"""Watchers of the simulated cluster: the production feed, over links that break (rules W1 to W3).

Each watches some keys at one node, and resumes at another when that one crashes, no longer knows
the history, or the connection breaks, with all that was on its way lost. What it is given is held
against what has really committed. They draw from random numbers of their own: a seed without them
is the same schedule.
"""

from __future__ import annotations

from collections import deque
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from datapath.execution.changes import Event, Span, Watcher
from datapath.node.history import is_kept
from datapath.records import Entry, parse_record

if TYPE_CHECKING:
    from tests.sim.node import Node
    from tests.sim.world import World

SPANS = (Span(b"", None), Span(b"", None), Span(b"a", b"b"), Span(b"b", None), Span(b"k1", b"k3"))
LOG_READ_RECORDS = 4
RECONNECT_MS = (1.0, 40.0)
DELIVERY_MS = (0.1, 5.0)
BREAK_RATE = 0.02
SLOW_RATE = 0.1
SLOW_MS = (20.0, 200.0)
PROGRESS_RATE = 0.2
MEMBER_CHECK_MS = (50.0, 500.0)


class _Sent(NamedTuple):
    """What is on its way to a watcher: an event, or (`entry` None) progress up to a revision."""

    revision: int
    entry: Entry | None


class Truth:
    """The committed entries, as the oracle knows them."""

    def __init__(self, world: World) -> None:
        self._oracle = world.oracle
        self._entries: list[Entry] = []

    @property
    def last(self) -> int:
        """The index of the last committed entry."""
        return len(self._oracle.committed) - 1

    def entry(self, index: int) -> Entry:
        """Return a committed entry."""
        while len(self._entries) < index:
            first = len(self._entries) + 1
            data, _ = self._oracle._records[first, self._oracle.committed[first]]
            self._entries += parse_record(data).entries()
        return self._entries[index - 1]

    def first_concerning(self, span: Span, after: int, before: int) -> int:
        """Return the first entry between two that concerns a watcher; 0: none does."""
        between = range(after + 1, before)
        return next((index for index in between if span.concerns(self.entry(index))), 0)


class WatchingClient:
    """One watcher. `position`: where it resumes; it begins with the first entry."""

    def __init__(self, watchers: Watchers, name: str, span: Span) -> None:
        self.name = name
        self.span = span
        self.position = 0
        self.events = 0
        self._watchers = watchers
        self._world = watchers.world
        self._random = watchers.random
        self._node: Node | None = None
        self._life = 0
        self._connection = 0  # counts them: what an earlier one carried is dropped
        self._watcher: Watcher | None = None
        self._sent: deque[_Sent] = deque()
        self._refused: set[str] = set()  # the nodes that do not go back so far
        self._later(RECONNECT_MS, self._connect)

    def _later(self, delay_ms: tuple[float, float], action: object, *args: object) -> None:
        self._world.clockwork.after(self._random.uniform(*delay_ms), action, *args)  # type: ignore[arg-type]

    # -- the client's side

    def _connect(self) -> None:
        members = self._members()
        nodes = [node for node in members.values() if node.is_up and not node.paused]
        others = [node for node in nodes if node.id not in self._refused]
        if nodes and self._refused >= members.keys():
            # W5: nobody goes back so far. It lists anew, and watches after that.
            self._watchers.seen["watch: history gone everywhere"] += 1
            self._refused.clear()
            self.position = max(self.position, self._random.choice(nodes).service.feed.index)
        if not others:
            self._later(RECONNECT_MS, self._connect)
            return
        node = self._random.choice(others)
        if not is_kept(self.position, node.disk.cache.base_index + 1):
            self._watchers.seen["watch: history gone here"] += 1
            self._refused.add(node.id)
            self._later(RECONNECT_MS, self._connect)
            return
        self._node, self._life = node, node.life
        self._connection += 1
        self._watcher = Watcher(self.span, self.position, self._wake)
        if self.position > node.service.feed.index:
            self._watchers.seen["watch: ahead of its node"] += 1
        self._wake()
        self._later(MEMBER_CHECK_MS, self._check_member, self._connection)

    def _members(self) -> dict[str, Node]:
        members = (member.id for member in self._world.view.members)
        return {name: self._world.nodes[name] for name in members if name in self._world.nodes}

    def _check_member(self, connection: int) -> None:
        """A node that has been removed ends, in production: here it goes on, with no primary."""
        if connection != self._connection or self._node is None:
            return
        if self._node.id not in self._members():
            self._watchers.seen["watch: its node was removed"] += 1
            self._break()
            return
        self._later(MEMBER_CHECK_MS, self._check_member, connection)

    def _break(self) -> None:
        """The connection is gone, and what was on its way with it."""
        node, watcher = self._node, self._watcher
        if node is not None and watcher is not None and node.life == self._life:
            node.service.feed.leave(watcher)
        if self._sent:
            self._watchers.seen["watch: events lost on their way"] += 1
        self._node = self._watcher = None
        self._sent.clear()
        self._connection += 1
        self._later(RECONNECT_MS, self._connect)

    def on_crash(self, node: Node) -> None:
        """A node has ended."""
        if self._node is node:
            self._watchers.seen["watch: resumed after a crash"] += 1
            self._break()

    def _deliver(self, connection: int) -> None:
        if connection != self._connection or not self._sent:
            return
        if self._watchers.breaks and self._random.random() < BREAK_RATE:
            self._break()
            return
        revision, entry = self._sent.popleft()
        self._judge(revision, entry)
        self.position = revision
        self._refused.clear()

    def _judge(self, revision: int, entry: Entry | None) -> None:
        truth, fail = self._watchers.truth, self._world.oracle.fail
        if revision > truth.last:
            fail(f"W1: {self.name} is told of revision {revision}: {truth.last} have committed")
        if revision < self.position or (revision == self.position and entry is not None):
            fail(f"W2: {self.name} is at {self.position}, and is given {revision}")
        missed = truth.first_concerning(self.span, self.position, revision + (entry is None))
        if missed:
            fail(f"W3: {self.name} is at {self.position}, is given {revision}, misses {missed}")
        if entry is not None:
            self.events += 1
            if entry != truth.entry(revision):
                fail(f"W2: {self.name} is given another revision {revision} than has committed")

    # -- the node's side

    def _wake(self) -> None:
        node, connection = self._node, self._connection
        if node is not None:
            slow = self._watchers.breaks and self._random.random() < SLOW_RATE
            delay_ms = self._random.uniform(*(SLOW_MS if slow else (0.01, 0.1)))
            action = (self._life, self._step, connection)
            self._world.clockwork.after(delay_ms, node.post, *action)

    def _step(self, connection: int) -> None:
        node, watcher = self._node, self._watcher
        if connection != self._connection or node is None or watcher is None:
            return
        feed = node.service.feed
        step, events = feed.take(watcher)
        self._send(events)
        if step == "log":
            self._watchers.seen["watch: read the log"] += 1
            delay_ms = self._random.uniform(0.1, 10.0)
            action = (self._life, self._read_log, connection)
            self._world.clockwork.after(delay_ms, node.post, *action)
        elif step == "more":
            self._wake()
        elif self._random.random() < PROGRESS_RATE:
            self._queue(_Sent(feed.progress(watcher), None))

    def _read_log(self, connection: int) -> None:
        node, watcher = self._node, self._watcher
        if connection != self._connection or node is None or watcher is None:
            return
        records = node.disk.cache.read_some(watcher.position + 1, LOG_READ_RECORDS)
        if not records:
            self._watchers.seen["watch: history gone amid a watch"] += 1
            self._refused.add(node.id)
            self._break()
            return
        self._send(node.service.feed.take_from_log(watcher, records))
        self._wake()

    def _send(self, events: list[Event]) -> None:
        for event in events:
            self._queue(_Sent(event.revision, event.entry))

    def _queue(self, sent: _Sent) -> None:
        self._sent.append(sent)
        self._later(DELIVERY_MS, self._deliver, self._connection)


class Watchers:
    """All watchers of a schedule. `breaks`: whether their connections may still do."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.seen = world.clockwork.seen
        self.random = Random(f"{seed} watchers")
        self.truth = Truth(world)
        self.breaks = True
        self._clients = [
            WatchingClient(self, f"watcher {number}", span) for number, span in enumerate(SPANS)
        ]
        world.on_crash = self._on_crash

    def _on_crash(self, node: Node) -> None:
        for client in self._clients:
            client.on_crash(node)

    def problem(self) -> str:
        """Why not all have been given everything: "" once they have."""
        last = self.truth.last
        for client in self._clients:
            missed = self.truth.first_concerning(client.span, client.position, last + 1)
            if missed:
                return f"W3: {client.name} is at {client.position}, and misses {missed}"
        return ""
