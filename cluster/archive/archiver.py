"""Archives the committed log of a cluster while this node is its primary (decision 33).

Nothing here decides anything for the cluster: a node that wrongly takes itself for the primary
archives what has committed, and no two archivers are in each other's way. What is done next is
decided by `cluster.archive.plan`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Protocol, TypeVar

from cluster.archive.catalog import ArchivePosition, Base, Catalog, PieceName
from cluster.archive.errors import ArchiveConflictError, ArchiveDamagedError, ArchiveError
from cluster.archive.marks import CommitTimes
from cluster.archive.object_store import ObjectStore
from cluster.archive.piece import FULL_PIECE_BYTES, decode_piece, encode_piece
from cluster.archive.plan import ArchivePlan, ArchiveStep, Gap, have_same_entries, is_same_history
from datapath.errors import OperationError, TransferError
from datapath.operations import ArchiveState, KnownViews
from datapath.records import Record

logger = logging.getLogger(__name__)

MARK_INTERVAL_S = 1.0
"""How exact a restore to a time is."""
PAUSE_FIRST_S = 1.0
PAUSE_MAX_S = 15.0
MAX_GAPS_NAMED = 10

_T = TypeVar("_T")


class State(Protocol):
    """The whole state at (`revision`, `epoch`), as a backup; see `datapath.node.backups`."""

    revision: int
    epoch: int

    @property
    def is_whole(self) -> bool:
        """Whether all of it was read, and it was not given up."""

    def pieces(self) -> AsyncIterator[bytes]:
        """Yield it piece by piece."""

    async def close(self) -> None:
        """Let go of the state."""


class ArchivedLog(Protocol):
    """What a replica has of the committed log; see `datapath.node.committed_log`."""

    @property
    def commit_index(self) -> int:
        """The last entry known to have committed."""

    def epoch_at(self, index: int, /) -> int | None:
        """Return an entry's epoch; None if it is not known any more."""

    def is_held(self, index: int, /) -> bool:
        """Whether the log goes back to that entry."""

    async def read(self, after: int, max_bytes: int, /) -> list[Record] | None:
        """Return committed records after that entry; None: they are not held any more."""

    def make_room(self) -> None:
        """Hold nothing for the archive on a disk that is full."""

    async def state(self, cluster: str, cluster_id: str, /) -> State:
        """Return the whole state as it is now."""


class ArchivingNode(Protocol):
    """The node that archives; see `datapath.node.gateway`."""

    node_id: str

    @property
    def is_primary(self) -> bool:
        """Whether it is the primary, as far as it knows."""

    @property
    def epoch(self) -> int:
        """The newest epoch that it knows."""

    @property
    def views(self) -> KnownViews:
        """What it knows of its cluster."""

    def share_archived(self, index: int, /) -> None:
        """Let every replica drop the log up to there."""


class Archiver:
    """Run `note_times` and `run` until the node ends.

    Every `piece_interval_s` what has committed is archived; every `base_interval_s` the whole
    state. `report` takes a sentence for operators, again and again while it holds. `wall_clock_s`
    is the machine's date.
    """

    def __init__(
        self,
        node: ArchivingNode,
        log: ArchivedLog,
        store: ObjectStore,
        *,
        cluster: str,
        piece_interval_s: float,
        base_interval_s: float,
        report: Callable[[str], None],
        wall_clock_s: Callable[[], float] = time.time,
    ) -> None:
        self._node = node
        self._log = log
        self._store = store
        self._cluster = cluster
        self._piece_interval_s = piece_interval_s
        self._report = report
        self._wall_clock_s = wall_clock_s
        self._marks = CommitTimes()
        self._plan = ArchivePlan(base_interval_s)
        self._shared: int | None = None  # up to where replicas were told that the archive is
        self._named: set[Gap] = set()  # the gaps that were reported
        self._unchecked: PieceName | None = None  # the last one of the archive, put by others
        self._base: asyncio.Task[None] | None = None
        self._problem = ""
        self._pieces_total = self._bases_total = 0
        self._bytes_total = self._failures_total = self._gaps_total = 0

    # -- what is told

    def state(self) -> ArchiveState | None:
        """Return how far the archive is, as this node knows; None: it does not archive."""
        if not self._node.is_primary:
            return None
        return ArchiveState(
            revision=self._plan.told,
            lag_ms=self._marks.lag_ms(self._now_ms()),
            problem=self._problem,
        )

    def counters(self) -> dict[str, float]:
        """Numbers for metrics."""
        state = self.state()
        index = (state.revision if state else None) or 0
        return {
            "archiving": float(state is not None),
            "archive_failing": float(state is not None and bool(state.problem)),
            "archive_revision": index,
            "archive_lag_entries": max(0, self._log.commit_index - index) if state else 0,
            "archive_lag_seconds": round(state.lag_ms / 1000, 3) if state else 0,
            "archive_pieces_total": self._pieces_total,
            "archive_bases_total": self._bases_total,
            "archive_bytes_total": self._bytes_total,
            "archive_failures_total": self._failures_total,
            "archive_gaps_total": self._gaps_total,
        }

    def _now_ms(self) -> int:
        return int(self._wall_clock_s() * 1000)

    # -- running

    async def note_times(self) -> None:
        """Note when what commits, on every replica: the next primary needs it too.

        Every replica also gives up the log that it holds, where its disk is full.
        """
        while True:
            self._marks.note(self._log.commit_index, self._now_ms())
            self._log.make_room()
            await asyncio.sleep(MARK_INTERVAL_S)

    async def run(self) -> None:
        """Archive while this node is the primary."""
        pause_s = PAUSE_FIRST_S
        try:
            while True:
                wait_s = self._piece_interval_s
                try:
                    if self._node.is_primary:
                        await self._round()
                    else:
                        self._plan.retire()
                except (ArchiveError, TransferError, OperationError) as error:
                    self._failed(error)
                    wait_s, pause_s = pause_s, min(2 * pause_s, PAUSE_MAX_S)
                else:
                    if self._problem:
                        logger.info("the archive can be written again")
                    self._problem, pause_s = "", PAUSE_FIRST_S
                await asyncio.sleep(wait_s)
        finally:
            await self._cancel_base()

    def _failed(self, error: Exception) -> None:
        self._plan.failed()
        self._failures_total += 1
        if not self._problem:
            logger.warning(
                "the archive cannot be written: %s. Writes go on, and the log is kept for it up to "
                "archive.max_log_bytes",
                error,
            )
        self._problem = str(error)

    async def _round(self) -> None:
        """Archive what has committed by now."""
        if not self._node.views.cluster_id:
            return
        self._plan.begin_round(self._log.commit_index)
        while self._node.is_primary:
            if self._base is not None and self._base.done():
                self._end_base(self._base)
            match self._plan.next(self._node.epoch, self._wall_clock_s()):
                case ArchiveStep.LOOK_UP:
                    await self._look_up()
                case ArchiveStep.BASE:
                    self._plan.base_begun(await self._start_base())
                case ArchiveStep.PIECE:
                    await self._archive_piece()
                case ArchiveStep.REST:
                    return

    async def _look_up(self) -> None:
        """Look up how far the archive is."""
        epoch, prefix = self._node.epoch, f"{self._node.views.cluster_id}/"
        names = await _in_daemon_thread(lambda: list(self._store.names()))
        catalog = Catalog(name.removeprefix(prefix) for name in names if name.startswith(prefix))
        self._report_gaps(self._plan.looked_up(epoch, catalog, self._log.is_held))
        self._check_history()
        end = self._plan.position
        self._unchecked = next(
            (piece for piece in catalog.pieces if end == (piece.last, piece.epoch)), None
        )
        self._shared = None  # a node may have missed it
        self._share()

    def _check_history(self) -> None:
        position = self._plan.position
        if position is not None and not is_same_history(
            position, self._log.commit_index, self._log.epoch_at
        ):
            raise self._other_history(position)

    def _other_history(self, position: ArchivePosition) -> ArchiveConflictError:
        return ArchiveConflictError(
            f"{self._store.url} holds entry {position.entry} of epoch {position.epoch}, and the "
            f"log here ends or differs before that (committed up to {self._log.commit_index}): it "
            "is of data that this cluster has lost. Give archive.url another place, and keep this "
            "one"
        )

    async def _check_entries(self, name: PieceName) -> None:
        """Compare the piece that the archive ends with, as far as the log here holds it."""
        place = f"{self._node.views.cluster_id}/{name.name}"

        def read() -> list[Record]:
            return decode_piece(b"".join(self._store.read(place)), place).records

        with contextlib.suppress(ArchiveDamagedError):  # proves nothing; `archive verify` tells it
            archived = await _in_daemon_thread(read)
            archived = [record for record in archived if self._log.is_held(record.first_index)]
            if archived:
                after = archived[0].first_index - 1
                held = await self._log.read(after, FULL_PIECE_BYTES)
                if held is not None and not have_same_entries(archived, held):
                    raise self._other_history(ArchivePosition(name.last, name.epoch))
        self._unchecked = None

    def _share(self) -> None:
        """Let every replica drop the log that is archived."""
        told = self._plan.told
        if told is not None and told != self._shared:
            self._shared = told
            self._marks.archived(told)
            self._node.share_archived(told)

    def _report_gaps(self, gaps: list[Gap]) -> None:
        """Tell operators of gaps that they have not been told of by this process."""
        news = [gap for gap in gaps if gap.first <= gap.last and gap not in self._named]
        if not news:
            return
        self._named.update(news)
        texts = [f"{gap.first} to {gap.last}" for gap in news[-MAX_GAPS_NAMED:]]
        if len(news) > MAX_GAPS_NAMED:
            texts.insert(0, f"of {len(news) - MAX_GAPS_NAMED} older gaps")
        self._report(
            f"{self._node.node_id}: the archive lacks revisions {', '.join(texts)}: the log that "
            "was held up to archive.max_log_bytes does not go back so far. Nothing can be "
            "restored at them"
        )

    # -- pieces

    async def _archive_piece(self) -> None:
        position = self._plan.position
        assert position is not None
        self._check_history()
        if self._unchecked is not None:
            await self._check_entries(self._unchecked)
        records = await self._log.read(position.entry, FULL_PIECE_BYTES)
        if records is None:
            if self._plan.log_lacks():
                await self._begin_anew()
            return
        if not records:
            self._plan.begin_round(position.entry)  # nothing more has committed
            return
        first, last = records[0].first_index, records[-1]
        marks = self._marks.within(first, last.last_index, self._now_ms())
        name = PieceName(first, last.last_index, last.epoch)
        cluster_id = self._node.views.cluster_id

        def put() -> int:
            data = encode_piece(cluster_id, records, marks)
            # One of that name holds the same entries: whoever was faster.
            self._store.put(f"{cluster_id}/{name.name}", [data])
            return len(data)

        self._bytes_total += await _in_daemon_thread(put)
        self._pieces_total += 1
        self._plan.piece_put(ArchivePosition(last.last_index, last.epoch))
        self._share()

    async def _begin_anew(self) -> None:
        """The log does not hold the next entry: the archive goes on from the whole state."""
        await self._cancel_base()  # it is of a state before the gap
        gap = self._plan.begun_anew(await self._start_base())
        self._gaps_total += 1
        self._report_gaps([gap])

    # -- bases

    async def _start_base(self) -> Base:
        """Begin to archive the whole state, beside the pieces."""
        state = await self._log.state(self._cluster, self._node.views.cluster_id)
        base = Base(state.revision, state.epoch, self._now_ms())
        self._base = asyncio.create_task(self._put_base(base, state))
        return base

    def _end_base(self, base: asyncio.Task[None]) -> None:
        """Take note of a base that was put. Raises what went wrong."""
        self._base = None
        self._plan.base_ended(done=base.exception() is None)
        base.result()

    async def _cancel_base(self) -> None:
        if self._base is not None:
            self._base.cancel()
            await asyncio.gather(self._base, return_exceptions=True)
            self._base = None

    async def _put_base(self, base: Base, state: State) -> None:
        name = f"{self._node.views.cluster_id}/{base.name}"
        pieces = state.pieces()
        loop = asyncio.get_running_loop()
        size = 0

        def parts() -> Iterator[bytes]:
            """Yield the pieces in the thread of the store, which fetches them from the loop."""
            nonlocal size
            while piece := asyncio.run_coroutine_threadsafe(_next(pieces), loop).result():
                size += len(piece)
                yield piece
            if not state.is_whole:
                raise TransferError("the whole state could not be read: see the log")

        try:
            await _in_daemon_thread(lambda: self._store.put(name, parts()))
        finally:
            await state.close()
        self._bytes_total += size
        self._bases_total += 1
        logger.info("archived the whole state at revision %d", base.revision)


async def _next(pieces: AsyncIterator[bytes]) -> bytes:
    """Return the next piece; an empty one at the end."""
    return await anext(pieces, b"")


async def _in_daemon_thread(function: Callable[[], _T]) -> _T:
    """Call it in a thread of its own, which keeps no process from ending: a store may hang."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def tell(complete: Callable[[], None]) -> None:
        def settle() -> None:
            if not future.done():
                complete()

        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle)

    def call() -> None:
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 -- for who waits
            problem = error
            tell(lambda: future.set_exception(problem))
        else:
            tell(lambda: future.set_result(result))

    threading.Thread(target=call, name="archive", daemon=True).start()
    return await future
