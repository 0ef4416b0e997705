"""`onecopy load`: many records, acknowledged each, through interruptions and failovers.

The records of one key go through one worker, in order, so that the later of two wins. Each has an
idempotency key made of the load's id and its line number. At any time the checkpoint says up to
where everything is acknowledged; what lies beyond, at most `WINDOW_RECORDS`, is sent again when the
load is run again, under the same keys, and therefore applied once. Each record names a revision
that was known before it was first sent, so that one whose key may be forgotten is refused.
"""

from __future__ import annotations

import asyncio
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
from cluster.client.requests import kv_target
from cluster.client.retries import Request, raise_for

WINDOW_RECORDS = 8192  # read but not acknowledged; far below the default client table
LOAD_WINDOW_BYTES = 32 * 1024 * 1024
CHECKPOINT_INTERVAL_S = 1.0
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


class _Pending:
    """A record between its line and its acknowledgement."""

    __slots__ = ("after", "call", "done", "end", "line", "size")

    def __init__(self, line: int, end: int, size: int, call: Request, after: int) -> None:
        self.line = line
        self.end = end  # position in the file behind the record
        self.size = size
        self.call = call
        self.after = after  # a revision that was known before it was first sent
        self.done = False


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
        self._queues: list[asyncio.Queue[_Pending | None]] = [
            asyncio.Queue() for _ in range(concurrency)
        ]
        self._window: deque[_Pending] = deque()
        self._window_bytes = 0
        self._room = asyncio.Event()

    async def run(self, descriptor: int) -> None:
        """Load everything from `descriptor`, which stands at the state's position.

        Raises LoadError; whatever ends it, the last checkpoint has been written. Of several
        errors the one with the lowest line is raised.
        """
        try:
            async with asyncio.TaskGroup() as group:
                keeper = group.create_task(self._keep_checkpoint())
                workers = [group.create_task(self._work(queue)) for queue in self._queues]
                await self._send_all(descriptor)
                for queue in self._queues:
                    queue.put_nowait(None)
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
        queues, count = self._queues, len(self._queues)
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
                    await self._drain()
                    raise LoadError(line, str(error), is_bad_record=True) from error
                if record is None:
                    continue
                if line > self._reach:  # on disk before it leaves
                    self._reach = line + REACH_LINES
                    self._save()
                after = self._sent_after(line)
                call = self._call(line, after, *record)
                pending = _Pending(line, end, len(text), call, after)
                self._window.append(pending)
                self._window_bytes += pending.size
                self.totals.read += 1
                queues[hash(record.key) % count].put_nowait(pending)
                if self._is_full():
                    await self._wait_until(lambda: not self._is_full())

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
        return len(self._window) >= WINDOW_RECORDS or self._window_bytes >= LOAD_WINDOW_BYTES

    async def _drain(self) -> None:
        await self._wait_until(lambda: not self._window)

    async def _wait_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._room.clear()
            await self._room.wait()

    def _call(self, line: int, after: int, key: str, value: bytes) -> Request:
        idempotency_key = f"{self._state.load_id}-{line}"
        headers = {"Idempotency-Key": f'"{idempotency_key}"'}
        target = kv_target(key)
        return Request("PUT", target, headers, value, idempotency_key, writes=True, after=after)

    def _sent_after(self, line: int) -> int:
        """Return a revision that was known before the record of this line was first sent.

        An earlier run may have sent those up to the reach that its checkpoint names.
        """
        state, seen = self._state, self._transport.revision
        if line <= state.reach or seen is None:
            return state.revision
        return seen

    async def _work(self, queue: asyncio.Queue[_Pending | None]) -> None:
        call = self._transport.call
        while (pending := await queue.get()) is not None:
            try:
                reply = await call(pending.call)
                if reply.status not in {200, 201}:
                    raise_for(pending.call, reply)
            except ClientError as error:
                raise LoadError(pending.line, error.detail, cause_error=error) from error
            self._acknowledged(pending)

    def _acknowledged(self, pending: _Pending) -> None:
        pending.done = True
        self.totals.acknowledged += 1
        window = self._window
        while window and window[0].done:
            first = window.popleft()
            self._window_bytes -= first.size
            self.totals.position, self.totals.line = first.end, first.line
        if not self._room.is_set() and (not window or not self._is_full()):
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
