"""Archivers of the simulated cluster, and the store that they put objects into (rules B3 and B4).

Each node has an archiver in each of its lives, by the production plan (`cluster.archive.plan`) and
catalog. The store is away at times, and slow; puts fail, fail and are there all the same, or land
long after whoever sent them has given up or ended. Sometimes a node archives that is no primary,
or is none any more: it must do no harm. Archivers draw from random numbers of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from cluster.archive import plan
from cluster.archive.catalog import ArchivePosition, Base, Catalog, PieceName
from cluster.archive.errors import MissingPieceError
from cluster.archive.plan import ArchivePlan, ArchiveStep, Gap
from datapath.node import committed_log
from datapath.records import Record

if TYPE_CHECKING:
    from tests.sim.node import Node
    from tests.sim.world import World

ROUND_MS = (5.0, 60.0)
PAUSE_MS = (10.0, 80.0)
BASE_INTERVALS_MS = (50.0, 300.0, 2000.0)
LOG_BYTES = (1, 2000, 1 << 20)
"""How much of the log is held for the archive: one of these, by the seed."""
LIST_MS = (0.1, 10.0)
PUT_MS = (0.5, 30.0)
LATE_MS = (20.0, 400.0)
READ_MS = (0.1, 5.0)
PIECE_RECORDS = (1, 6)
FAIL_RATE = 0.1
UNANSWERED_RATE = 0.05
LATE_RATE = 0.1
AWAY_RATE = 0.02
AWAY_MS = (50.0, 500.0)
TRIM_RATE = 0.1
PRETENDER_RATE = 0.1
NOTE_LOSS_RATE = 0.2

Content = tuple[tuple[int, int, bytes], ...]
"""Of a piece: (index, epoch, data) of its records. Of a base: its position."""


class _Object(NamedTuple):
    name: str
    content: Content


class Store:
    """The objects. What was put stays."""

    def __init__(self, archives: Archives) -> None:
        self.objects: dict[str, Content] = {}
        self.is_away = False
        self._archives = archives

    def names(self) -> list[str]:
        return list(self.objects)

    def land(self, found: _Object) -> None:
        """An object is there, unless the name is taken; then by the same."""
        held = self.objects.setdefault(found.name, found.content)
        if held != found.content:
            self._archives.fail(f"B3: {found.name} is put with other content than it has")


class NodeArchiver:
    """One node's archiver, in one life: production's `Archiver`, step by step."""

    def __init__(self, archives: Archives, node: Node) -> None:
        self._archives = archives
        self._node = node
        self.life = node.life
        self._random = archives.random
        self._plan = ArchivePlan(archives.base_interval_ms / 1000)
        self._base = 0  # counts them: how one ended that was given up matters to nobody
        self._base_done: bool | None = None
        self._told: int | None = None
        self._later(ROUND_MS, self._round)

    def _later(
        self, delay_ms: tuple[float, float], action: Callable[..., None], *args: object
    ) -> None:
        delay = self._random.uniform(*delay_ms)
        self._node.clockwork.after(delay, self._node.post, self.life, action, *args)

    def _is_primary(self) -> bool:
        if self._archives.calm:
            return self._node.replica.may_serve(self._node.clock())
        if self._node.replica.primary is not None:
            return True
        return self._random.random() < PRETENDER_RATE

    def _epoch(self) -> int:
        return self._node.replica.state.epoch

    def _commit_index(self) -> int:
        return self._node.replica.state.commit_index

    # -- a round

    def _round(self) -> None:
        if self._is_primary():
            self._plan.begin_round(self._commit_index())
            self._step()
        else:
            self._plan.retire()
            self._later(ROUND_MS, self._round)

    def _step(self) -> None:
        if self._base_done is not None:
            done, self._base_done = self._base_done, None
            self._plan.base_ended(done=done)
            if not done:
                self._failed()
                return
        match self._plan.next(self._epoch(), self._archives.now_s()):
            case ArchiveStep.LOOK_UP:
                self._later(LIST_MS, self._listed, self._epoch())
            case ArchiveStep.BASE:
                self._plan.base_begun(self._start_base())
                self._later(READ_MS, self._step)
            case ArchiveStep.PIECE:
                self._later(READ_MS, self._read)
            case ArchiveStep.REST:
                self._later(ROUND_MS, self._round)

    def _failed(self) -> None:
        self._plan.failed()
        self._archives.seen["archive: a step failed"] += 1
        self._later(PAUSE_MS, self._round)

    def _listed(self, epoch: int) -> None:
        if self._archives.store.is_away:
            self._failed()
            return
        catalog = Catalog(self._archives.store.names())
        if len(catalog.spans()) > 1:
            self._archives.seen["archive: gap found"] += 1
        gaps = self._plan.looked_up(epoch, catalog, self._is_held)
        self._archives.on_gaps(gaps)
        self._check_history()
        self._share()
        self._step()

    def _is_held(self, index: int) -> bool:
        return index >= self._node.disk.cache.first_index

    def _check_history(self) -> None:
        position = self._plan.position
        log = self._node.replica.state.log
        if position and not plan.is_same_history(position, self._commit_index(), log.epoch_at):
            self._archives.fail(f"B3: {self._node.id} finds another history at {position}")

    def _share(self) -> None:
        told = self._plan.told
        if told is None or told == self._told:
            return
        self._told = told
        self._archives.on_told(self._node, told)

    # -- pieces

    def _read(self) -> None:
        position = self._plan.position
        assert position is not None
        commit_index = self._commit_index()
        limit = self._random.randint(*PIECE_RECORDS)
        records = self._node.disk.cache.read_some(position.entry + 1, limit)
        if records is None:
            self._archives.seen["archive: the log lacks it"] += 1
            if self._plan.log_lacks():
                self._begin_anew()
            self._later(READ_MS, self._step)
            return
        records = committed_log.committed(records, commit_index)
        if not records:
            self._plan.begin_round(position.entry)
            self._step()
            return
        first, last = records[0], records[-1]
        self._archives.on_leaving(self._node, records)
        name = PieceName(first.first_index, last.last_index, last.epoch).name
        content = tuple((item.first_index, item.epoch, item.data) for item in records)
        end = ArchivePosition(last.last_index, last.epoch)
        self._archives.put(_Object(name, content), self._answer_to(self._piece_ended, end))

    def _answer_to(self, action: Callable[..., None], *args: object) -> Callable[[bool], None]:
        life = self.life
        return lambda done: self._node.post(life, action, *args, done=done)

    def _piece_ended(self, end: ArchivePosition, *, done: bool) -> None:
        if not done:
            self._failed()
            return
        self._plan.piece_put(end)
        self._share()
        self._step()

    def _begin_anew(self) -> None:
        self._archives.seen["archive: begun anew"] += 1
        self._archives.on_gaps([self._plan.begun_anew(self._start_base())])

    # -- bases

    def _start_base(self) -> Base:
        """Put the state at the commit index: what is in it, is other tests' matter."""
        index = self._commit_index()
        epoch = self._node.replica.state.log.epoch_at(index)
        assert epoch is not None
        base = Base(index, epoch, int(self._archives.now_s() * 1000))
        self._archives.check_committed(self._node, index, epoch)
        self._base += 1
        self._base_done = None
        ended = self._answer_to(self._base_ended, self._base)
        self._archives.put(_Object(base.name, ((index, epoch, b""),)), ended)
        return base

    def _base_ended(self, number: int, *, done: bool) -> None:
        if number == self._base:
            self._base_done = done


class Archives:
    """The store and all archivers of a schedule, and what they have promised."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.seen = world.clockwork.seen
        self.random = Random(f"{seed} archives")
        self.base_interval_ms = self.random.choice(BASE_INTERVALS_MS)
        self.store = Store(self)
        self.calm = False
        self._told_gaps: set[int] = set()  # revisions that somebody was told to be missing
        self._first: int | None = None  # where the archive began, as was told first
        self._archivers: dict[str, NodeArchiver] = {}
        world.clockwork.after(0, self._watch)

    def now_s(self) -> float:
        """The date."""
        return self.world.clockwork.now / 1000

    def fail(self, problem: str) -> None:
        self.world.oracle.fail(problem)

    def _watch(self) -> None:
        """See that each life of each node has an archiver."""
        clockwork = self.world.clockwork
        for node in self.world.nodes.values():
            known = self._archivers.get(node.id)
            if node.is_up and (known is None or known.life != node.life):
                self._archivers[node.id] = NodeArchiver(self, node)
        if not self.calm and not self.store.is_away and self.random.random() < AWAY_RATE:
            self.seen["archive: its store was away"] += 1
            self.store.is_away = True
            clockwork.after(self.random.uniform(*AWAY_MS), self._come_back)
        if self.random.random() < TRIM_RATE:
            trimmed = self.random.choice(list(self.world.nodes.values()))
            if trimmed.is_up:
                trimmed.trim(trimmed.replica.state.commit_index)
        clockwork.after(5.0, self._watch)

    def _come_back(self) -> None:
        self.store.is_away = False

    def end_troubles(self) -> None:
        """All puts succeed from now on."""
        self.calm, self.store.is_away = True, False

    # -- the store

    def put(self, found: _Object, answer: Callable[[bool], None]) -> None:
        """Put an object: it lands, or not; whoever put it hears so, or takes it for failed."""
        clockwork, random = self.world.clockwork, self.random
        done_ms = random.uniform(*PUT_MS)
        if not self.calm and (self.store.is_away or random.random() < FAIL_RATE):
            clockwork.after(done_ms, answer, False)
            if random.random() < LATE_RATE / FAIL_RATE / 2:
                self.seen["archive: a put landed late"] += 1
                clockwork.after(done_ms + random.uniform(*LATE_MS), self.store.land, found)
            return
        if not self.calm and random.random() < UNANSWERED_RATE:
            self.seen["archive: a put was not answered"] += 1
            clockwork.after(random.uniform(0, done_ms), self.store.land, found)
            clockwork.after(done_ms, answer, False)
            return

        def landed() -> None:
            self.store.land(found)
            answer(True)

        clockwork.after(done_ms, landed)

    # -- what is promised

    def check_committed(self, node: Node, index: int, epoch: int) -> None:
        """B3: only what has committed leaves for the archive."""
        committed = self.world.oracle.committed
        if index >= len(committed) or committed[index] != epoch:
            self.fail(f"B3: {node.id} archives entry {index} of epoch {epoch}: not committed")

    def on_leaving(self, node: Node, records: list[Record]) -> None:
        for record in records:
            self.check_committed(node, record.last_index, record.epoch)

    def on_gaps(self, gaps: list[Gap]) -> None:
        for gap in gaps:
            self._told_gaps.update(range(gap.first, gap.last + 1))

    def on_told(self, node: Node, told: int) -> None:
        """B4: up to there all can be restored, but for gaps that were told; the log may go."""
        if self._first is None:
            spans = Catalog(self.store.names()).spans()
            self._first = max((s.first for s in spans if s.first <= told), default=told)
        problem = self._gap_problem(told)
        if problem:
            self.fail(f"B4: {node.id} tells that the archive goes up to {told}: {problem}")
        for other in self.world.nodes.values():
            if other is node:
                other.retention.archived_up_to(told)
            elif self.random.random() >= NOTE_LOSS_RATE:
                delay_ms = self.random.uniform(*LIST_MS)
                self.world.clockwork.after(
                    delay_ms, other.post, other.life, other.retention.archived_up_to, told
                )

    def _gap_problem(self, until: int) -> str:
        """Why not all can be restored, from where the archive began.

        An earlier base, which landed when its node had given it up, promises nothing.
        """
        catalog = Catalog(self.store.names())
        try:
            catalog.plan(until)
        except MissingPieceError as error:
            if until not in self._told_gaps:
                return str(error)
        following = self._first or 0
        for span in catalog.spans():
            missing = set(range(following, min(span.first, until + 1))) - self._told_gaps
            if missing:
                return f"revisions {min(missing)} to {max(missing)} are missing, and nobody knows"
            following = max(following, span.last + 1)
        return ""

    def problem(self) -> str:
        """Why not everything is archived: "" once it is."""
        spans = Catalog(self.store.names()).spans()
        last = len(self.world.oracle.committed) - 1
        if not spans or spans[-1].last < last:
            return f"archived is up to {spans[-1].last if spans else 0} of {last}"
        return self._gap_problem(last)
