"""`onecopy load`: many records, acknowledged each, through interruptions and failovers.

Consecutive records go together, as one transaction: a batch, of which of two records of one key the
later one counts. A batch that has a key of one that is not acknowledged waits for it, so that the
later record wins there too. Each has an idempotency key made of the load's id and the number of its
first line. At any time the checkpoint says up to where everything is acknowledged; what lies
beyond, at most `WINDOW_RECORDS`, is sent again when the load is run again: where a batch ends
depends on nothing but the records since it began, so that they are the same batches, under the same
keys, and therefore applied once. Each batch names a revision that was known before it was first
sent, so that one whose key may be forgotten is refused.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from cluster.bulk.checkpoint import Checkpoint, write_checkpoint
from cluster.bulk.formats import PARSERS, Format, RecordError, without_mark
from cluster.bulk.source import read_lines
from cluster.bulk.wire import WireTransport
from cluster.client.errors import ClientError
from cluster.client.exchange import Request, raise_for
from cluster.client.requests import JSON_HEADERS, kv_target

WINDOW_RECORDS = 8192  # read but not acknowledged; far below the default client table
LOAD_WINDOW_BYTES = 32 * 1024 * 1024
BATCH_BYTES = 256 * 1024
"""The checkpoint of a load that was cut off rests on this and on its `batch_records`: a change of
this number needs another version of it (`cluster.bulk.checkpoint`)."""
CHECKPOINT_INTERVAL_S = 1.0
_PLACE = re.compile(r"`\$\.then\[(\d+)\]")
REACH_LINES = 65_536  # how far beyond a checkpoint's line records are sent before the next one


class LoadError(Exception):
    """The load ended at a line: a bad record, a refused request, or a failing disk.

    `cause_error` is what the client said, None if it was none of its.
    """

    def __init__(
        self,
        line: int,
        detail: str,
        *,
        cause_error: ClientError | None = None,
        is_bad_record: bool = False,
    ) -> None:
        super().__init__(f"line {line}: {detail}")
        self.is_bad_record = is_bad_record
        self.line = line
        self.cause_error = cause_error


class Totals(msgspec.Struct):
    """How far a load is; changes as it goes. `position` is where all before is acknowledged."""

    read: int = 0
    acknowledged: int = 0
    retried: int = 0
    position: int = 0
    line: int = 0


class _Batch:
    """Records between their lines and their acknowledgement."""

    def __init__(self, first_line: int) -> None:
        self.first_line = first_line
        self.line = first_line  # the last one
        self.end = 0  # position in the file behind the last record
        self.size = 0
        self.count = 0
        self.values: dict[str, bytes] = {}
        self.lines: dict[str, int] = {}
        self.after = 0  # a revision that was known before it was first sent
        self.done = False

    def add(self, line: int, end: int, size: int, key: str, value: bytes) -> None:
        """Take another record."""
        self.line, self.end = line, end
        self.size += size
        self.count += 1
        self.values[key] = value
        self.lines[key] = line

    def has_room(self, size: int, max_records: int) -> bool:
        """Whether another record belongs to it."""
        return self.count < max_records and self.size + size <= BATCH_BYTES

    def line_of(self, error: ClientError) -> int:
        """Return the line that a refusal is about: the answer names the record's place."""
        found = _PLACE.search(error.detail)
        keys = list(self.lines)
        if found is None or int(found[1]) >= len(keys):
            return self.first_line
        return self.lines[keys[int(found[1])]]


class Loader:
    """One run of a load. `file` None (standard input) keeps no checkpoint."""

    def __init__(
        self,
        transport: WireTransport,
        state: Checkpoint,
        file: Path | None,
        *,
        concurrency: int,
        on_progress: Callable[[Totals], None],
    ) -> None:
        self.totals = Totals(position=state.position, line=state.line)
        self._transport = transport
        self._state = state
        self._file = file
        self._reach = state.reach
        self._on_progress = on_progress
        self._concurrency = concurrency
        self._queue: asyncio.Queue[_Batch | None] = asyncio.Queue()
        self._window: deque[_Batch] = deque()
        self._window_records = 0
        self._window_bytes = 0
        self._keys: set[str] = set()  # of the batches that are handed out and not acknowledged
        self._room = asyncio.Event()

    async def run(self, descriptor: int) -> None:
        """Load everything from `descriptor`, which stands at the state's position.

        Raises LoadError; whatever ends it, the last checkpoint has been written. Of several
        errors the one with the lowest line is raised.
        """
        try:
            async with asyncio.TaskGroup() as group:
                keeper = group.create_task(self._keep_checkpoint())
                workers = [group.create_task(self._work()) for _ in range(self._concurrency)]
                await self._send_all(descriptor)
                for _ in workers:
                    self._queue.put_nowait(None)
                await asyncio.wait(workers)
                keeper.cancel()
        except BaseExceptionGroup as group:
            raise self._first_error(group) from group
        finally:
            self._report()
            self._save()

    async def _send_all(self, descriptor: int) -> None:
        """Read, parse and hand out; wait while the window is full."""
        parse = PARSERS[self._state.format]  # type: ignore[index]
        max_records = self._state.batch_records
        batch: _Batch | None = None
        line, end = self._state.line, self._state.position
        async for lines, line_break in read_lines(descriptor):
            for text in lines:
                line += 1
                end += len(text) + line_break
                text = text.removesuffix(b"\r")  # noqa: PLW2901 -- CR LF is a line break too
                try:
                    record = None
                    text = without_mark(text, line)  # noqa: PLW2901
                    if text.strip():
                        record = parse(text)
                except RecordError as error:
                    # What stands before the bad line is still loaded, and acknowledged.
                    await self._hand_out(batch)
                    await self._drain()
                    raise LoadError(line, str(error), is_bad_record=True) from error
                if record is None:
                    continue
                if line > self._reach:  # on disk before it leaves
                    self._reach = line + REACH_LINES
                    self._save()
                if batch is None or not batch.has_room(len(text), max_records):
                    await self._hand_out(batch)
                    batch = _Batch(line)
                batch.add(line, end, len(text), *record)
                self.totals.read += 1
            if self._file is None:  # nothing goes on from here, and a pipe may be slow
                await self._hand_out(batch)
                batch = None
        await self._hand_out(batch)

    async def _hand_out(self, batch: _Batch | None) -> None:
        """Let a batch be sent, once the window has room and no key of it is under way."""
        if batch is None:
            return
        await self._wait_until(lambda: not self._is_full() and self._keys.isdisjoint(batch.values))
        batch.after = self._sent_after(batch.first_line)
        self._keys.update(batch.values)
        self._window.append(batch)
        self._window_records += batch.count
        self._window_bytes += batch.size
        self._queue.put_nowait(batch)

    def _first_error(self, group: BaseExceptionGroup) -> BaseException:
        """Return the error with the lowest line; one of the disk is told with the line reached."""
        errors = _leaves(group)
        loads = [error for error in errors if isinstance(error, LoadError)]
        if loads:
            return min(loads, key=lambda error: error.line)
        if isinstance(errors[0], OSError):
            where = errors[0].filename or "the file"
            return LoadError(self.totals.line, f"{where}: {errors[0].strerror}")
        return errors[0]

    def _is_full(self) -> bool:
        return self._window_records >= WINDOW_RECORDS or self._window_bytes >= LOAD_WINDOW_BYTES

    async def _drain(self) -> None:
        await self._wait_until(lambda: not self._window)

    async def _wait_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._room.clear()
            await self._room.wait()

    def _call(self, batch: _Batch) -> Request:
        name = f"{self._state.load_id}-{batch.first_line}"
        headers = {"Idempotency-Key": f'"{name}"'}
        if len(batch.values) == 1:  # as large as a value may be
            ((key, value),) = batch.values.items()
            method, target, body = "PUT", kv_target(key), value
        else:
            puts = [{"put": {"key": key, "value": value}} for key, value in batch.values.items()]
            method, target, body = "POST", "/v1/txn", msgspec.json.encode({"then": puts})
            headers |= JSON_HEADERS
        return Request(
            method, target, headers, body, name, writes=True, after=batch.after, stays=True
        )

    def _sent_after(self, line: int) -> int:
        """Return a revision that was known before the record of this line was first sent.

        An earlier run may have sent those up to the reach that its checkpoint names.
        """
        state, seen = self._state, self._transport.revision
        if line <= state.reach or seen is None:
            return state.revision
        return seen

    async def _work(self) -> None:
        while (batch := await self._queue.get()) is not None:
            call = self._call(batch)
            try:
                reply = await self._transport.call(call)
                if reply.status not in {200, 201}:
                    raise_for(call, reply)
            except ClientError as error:
                line = batch.line_of(error)
                raise LoadError(line, error.detail, cause_error=error) from error
            self._acknowledged(batch)

    def _acknowledged(self, batch: _Batch) -> None:
        batch.done = True
        self._keys.difference_update(batch.values)
        batch.values.clear()
        self.totals.acknowledged += batch.count
        window = self._window
        while window and window[0].done:
            first = window.popleft()
            self._window_records -= first.count
            self._window_bytes -= first.size
            self.totals.position, self.totals.line = first.end, first.line
        self._room.set()

    async def _keep_checkpoint(self) -> None:
        written = time.monotonic()
        while True:
            await asyncio.sleep(0.1)
            self._report()
            if time.monotonic() - written >= CHECKPOINT_INTERVAL_S:
                # Not in a thread: one that came late could bring back the file of a finished load.
                self._save()
                written = time.monotonic()

    def _now(self) -> Checkpoint:
        totals, window = self.totals, self._window
        return msgspec.structs.replace(
            self._state,
            position=totals.position,
            line=totals.line,
            records=self._state.records + totals.acknowledged,
            reach=self._reach,
            revision=window[0].after if window else self._sent_after(totals.line + 1),
        )

    def _save(self) -> None:
        if self._file is not None:
            write_checkpoint(self._file, self._now())

    def _report(self) -> None:
        self.totals.retried = self._transport.retries
        self._on_progress(self.totals)


def _leaves(group: BaseExceptionGroup) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def check_records(file: Path, kind: Format) -> int:
    """Parse the whole file; return how many records it has. Raises LoadError at a bad line."""
    count = 0
    with file.open("rb") as source:
        for number, text in enumerate(source, start=1):
            stripped = text.removesuffix(b"\n").removesuffix(b"\r")
            try:
                stripped = without_mark(stripped, number)
                if not stripped.strip():
                    continue
                PARSERS[kind](stripped)
            except RecordError as error:
                raise LoadError(number, str(error), is_bad_record=True) from error
            count += 1
    return count
