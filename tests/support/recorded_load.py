"""A load of many clients over HTTP, recorded as histories and checked while it runs.

    async with RecordedLoad({"n1": url1, "n2": url2}, tmp_path) as load:
        await load.progress(writes=50)
        start_ns = time.monotonic_ns()
        ...                                    # cut, kill, pause
        await load.progress(writes=50, node="n2")
        gap_ms = load.availability.longest_gap_ms("write", start_ns, time.monotonic_ns())
    print(load.require())

Each client asks one endpoint (client i the i-th, round and round): a node that hangs holds up its
own clients only. Endpoints may be proxies.

**Generations.** All work of some seconds goes to a generation of fresh keys, in small groups that
ranges cover. When its last operation has ended, each group is read once more, and the generation's
history is checked and forgotten. So the check stays small, memory stays flat however long the load
runs, and a violation is known a few seconds after it happened.

What an attempt's end means: no connection: not applied. Sent, and no whole answer: unknown. An
answer: what it says. A write under an idempotency key is repeated, at the next endpoint, until an
answer says what came of it; once an attempt was unknown, "not applied" of a later one proves
nothing. A client whose operation stays unknown goes on as a new client.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from tests.support.attempts import Wire
from tests.support.availability import Availability
from tests.support.cluster import DEADLINE_S, wait_until
from tests.support.failed_attempts import FailedAttempts
from tests.support.history import History, Verdict
from tests.support.recorded_clients import RETRY_PAUSE_S, Asking, Client

_SEPARATOR = "|"


class Mix(msgspec.Struct, frozen=True, kw_only=True):
    """How often each kind of operation is drawn (weights), and how writes are asked for."""

    put: int = 30
    put_if_revision: int = 8
    put_if_absent: int = 5
    delete: int = 5
    delete_if_revision: int = 3
    get: int = 30
    range: int = 10
    stale_get: int = 6
    stale_range: int = 3
    idempotent: float = 0.5  # the part of the writes that have an idempotency key


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """What keeps a load, and the check of it, within bounds."""

    clients: int = 8
    rate_per_s: float = 200.0
    operations: int = 100_000
    duration_s: float = 4000.0
    generation_s: float = 4.0
    groups: int = 2
    keys_per_group: int = 3
    value_size_bytes: int = 16
    timeout_ms: int = 2000
    """How long a node is told to try."""
    patience_ms: int = 3000
    """How long a client waits for an answer."""
    spare_connections: int = 0
    """How many connections a client holds ready for when it has lost patience with one."""
    give_up_s: float = 10.0
    """How long a write is repeated under its idempotency key."""
    check_timeout_s: float = 60.0


class Generation:
    """Fresh keys, and the history of all that was done to them."""

    def __init__(self, name: str, bounds: Bounds) -> None:
        self.history = History(name)
        self.groups = [f"{name}/{group}/" for group in range(bounds.groups)]
        self.keys = [
            group + str(key) for group in self.groups for key in range(bounds.keys_per_group)
        ]
        self.revisions: dict[str, int] = {}  # the newest that anybody was told, by key
        self.under_way = 0
        self.begin_s = time.monotonic()


class RecordedLoad:
    """See above. `directory` gets what failed; `seed` decides what each client asks for."""

    def __init__(
        self,
        endpoints: Mapping[str, str],
        directory: Path,
        *,
        name: str = "load",
        bounds: Bounds | None = None,
        mix: Mix | None = None,
        seed: int | None = None,
        cacert: str = "",
    ) -> None:
        self.endpoints = dict(endpoints)
        self.directory = directory
        self.name = name
        self.cacert = cacert
        self.bounds = bounds or Bounds()
        self.mix = mix or Mix()
        self.seed = random.SystemRandom().randrange(10**9) if seed is None else seed
        self.availability = Availability(self.endpoints)
        self.counts: Counter[str] = Counter()
        """Ends of operations and of attempts, by what they were ("put ok", "attempt refused")."""
        self.failures = FailedAttempts()
        self.defects: list[str] = []
        """Answers that the API does not know."""
        self.operations = self.generations = self.unknown = self.largest = 0
        self.check_s = 0.0
        self.bad: list[Verdict] = []
        """The verdicts that are not "linearizable"."""
        self._generation_numbers = itertools.count()
        self._generation = self._next_generation()
        self.numbers = itertools.count()
        self._values = itertools.count()
        self._run = uuid.uuid4().hex[:6]
        self._tasks: list[asyncio.Task[None]] = []
        self._closings: set[asyncio.Task[None]] = set()
        self._checking = asyncio.Lock()
        self._stopping = False
        self._issued = 0
        self._end_s = 0.0

    # -- its life

    async def __aenter__(self) -> Self:
        self._end_s = time.monotonic() + self.bounds.duration_s
        self._generation.begin_s = time.monotonic()
        names = list(self.endpoints)
        for number in range(self.bounds.clients):
            client = Client(self, names[number % len(names)], random.Random(self.seed + number))
            self._tasks.append(asyncio.create_task(client.run()))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopping = True
        try:
            if error is None:
                await self._finish()
            elif isinstance(error, Exception):
                # What went wrong may well be seen in the history, and more plainly.
                with contextlib.suppress(Exception):
                    await self._finish()
                for problem in (*self.defects, *self.bad):
                    error.add_note(str(problem))
        finally:
            for task in (*self._tasks, *self._closings):
                task.cancel()
            await asyncio.gather(*self._tasks, *self._closings, return_exceptions=True)

    async def _finish(self) -> None:
        """Let what is under way end, and check the last generation."""
        await asyncio.gather(*self._tasks)
        self._close(self._generation)
        await asyncio.gather(*self._closings)

    @property
    def issued(self) -> int:
        """How many operations have been asked for."""
        return self._issued

    @property
    def running(self) -> bool:
        """Whether clients still ask: not told to stop, and within the bounds."""
        return (
            not self._stopping
            and self._issued < self.bounds.operations
            and time.monotonic() < self._end_s
        )

    def check_healthy(self) -> None:
        """Raise what ended a client, and AssertionError for a verdict that is not good."""
        for task in (*self._tasks, *self._closings):
            if task.done() and not task.cancelled():
                task.result()
        problems = [*self.defects, *map(str, self.bad)]
        assert not problems, "\n".join(problems[:5])

    def require(self) -> str:
        """Raise AssertionError unless all is linearizable; return the figures in a line."""
        self.check_healthy()
        assert self.generations, "nothing was checked: call this when the load has ended"
        assert self.counts["put ok"], "no write succeeded: nothing was tested"
        return str(self)

    def __str__(self) -> str:
        return (
            f"{self.operations} operations in {self.generations} histories, "
            f"{self.unknown} unknown, {len(self.bad)} histories not linearizable; "
            f"at most {self.largest} operations in one part, "
            f"checked in {self.check_s:.2f} s; seed {self.seed}"
        )

    async def progress(
        self,
        *,
        writes: int = 0,
        reads: int = 0,
        node: str | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        """Wait until so many more, asked for from now on (of this node), succeed."""
        start = time.monotonic_ns()

        def enough() -> bool:
            self.check_healthy()
            count = self.availability.count
            return (
                count("write", start, node=node) >= writes
                and count("read", start, node=node) >= reads
            )

        where = f" at {node}" if node else ""
        await wait_until(enough, f"{writes} more writes, {reads} reads succeed{where}", deadline_s)

    # -- generations

    def _next_generation(self) -> Generation:
        return Generation(f"{self.name}/{next(self._generation_numbers)}", self.bounds)

    def enter(self) -> Generation:
        """Return the generation that an operation which begins now belongs to."""
        if time.monotonic() - self._generation.begin_s > self.bounds.generation_s:
            old = self._generation
            self._generation = self._next_generation()
            self._close(old)
        self._generation.under_way += 1
        self._issued += 1
        return self._generation

    def _close(self, generation: Generation) -> None:
        task = asyncio.create_task(self._closed(generation))
        self._closings.add(task)

        def forget(done: asyncio.Task[None]) -> None:
            if not done.cancelled() and done.exception() is None:
                self._closings.discard(done)

        task.add_done_callback(forget)

    async def _closed(self, generation: Generation) -> None:
        """See a generation to its end, its check."""
        await wait_until(
            lambda: generation.under_way == 0,
            "the generation's operations end",
            self.bounds.give_up_s + self.bounds.patience_ms / 1000 + DEADLINE_S,
        )
        await self._read_once_more(generation)
        async with self._checking:
            verdict = await asyncio.to_thread(
                generation.history.check, self.directory, self.bounds.check_timeout_s
            )
        self.generations += 1
        self.operations += verdict.operations
        self.unknown += verdict.unknown
        self.largest = max(self.largest, verdict.largest)
        self.check_s += verdict.seconds
        if not verdict.ok:
            self.bad.append(verdict)

    async def _read_once_more(self, generation: Generation) -> None:
        """Read each group at some node, so that what was lost shows. Without one, go without."""
        wires = {name: Wire(url, 0, self.cacert) for name, url in self.endpoints.items()}
        turn = itertools.cycle(self.endpoints)
        end_s = time.monotonic() + self.bounds.give_up_s
        number = next(self.numbers)
        try:
            for group in generation.groups:
                found = False
                while not found and time.monotonic() < end_s:
                    asking = Asking(self, generation, number, next(turn))
                    found = await asking.read_range(wires[asking.node], group, stale=False)
                    if not found:
                        await asyncio.sleep(RETRY_PAUSE_S)
                self.counts["last read " + ("ok" if found else "failed")] += 1
        finally:
            for wire in wires.values():
                await wire.close()

    # -- values

    def new_value(self) -> str:
        """Return a short text that nobody else writes."""
        return f"{self._run}.{next(self._values)}"

    def pad(self, value: str) -> bytes:
        """Return what stands for a value in the store."""
        return (value + _SEPARATOR).encode().ljust(self.bounds.value_size_bytes, b".")

    def unpad(self, stored: bytes) -> str:
        """Return the value that stands there, or what else was found."""
        value = stored.decode(errors="backslashreplace").partition(_SEPARATOR)[0]
        return value if stored == self.pad(value) else f"damaged: {stored[:40]!r}"
