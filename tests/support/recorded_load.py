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
import base64
import contextlib
import itertools
import random
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from tests.support.attempts import (
    CutError,
    NotSentError,
    ProtocolError,
    Wire,
    etag,
    key_target,
    problem,
    revision_seen,
)
from tests.support.availability import Availability, Success
from tests.support.cluster import DEADLINE_S, wait_until
from tests.support.history import History, Operation, Verdict
from tests.support.raw_http import Reply

_SEPARATOR = "|"
_RETRY_PAUSE_S = 0.05
_SPREAD_S = 0.002
"""How far from each other clients begin."""


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
    ) -> None:
        self.endpoints = dict(endpoints)
        self.directory = directory
        self.name = name
        self.bounds = bounds or Bounds()
        self.mix = mix or Mix()
        self.seed = random.SystemRandom().randrange(10**9) if seed is None else seed
        self.availability = Availability(self.endpoints)
        self.counts: Counter[str] = Counter()
        """Ends of operations and of attempts, by what they were ("put ok", "attempt refused")."""
        self.defects: list[str] = []
        """Answers that the API does not know."""
        self.operations = self.generations = self.unknown = self.largest = 0
        self.check_s = 0.0
        self.bad: list[Verdict] = []
        """The verdicts that are not "linearizable"."""
        self._generation_numbers = itertools.count()
        self._generation = self._next_generation()
        self._numbers = itertools.count()
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
            client = _Client(self, names[number % len(names)], random.Random(self.seed + number))
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
        wires = {name: Wire(url) for name, url in self.endpoints.items()}
        turn = itertools.cycle(self.endpoints)
        end_s = time.monotonic() + self.bounds.give_up_s
        number = next(self._numbers)
        try:
            for group in generation.groups:
                found = False
                while not found and time.monotonic() < end_s:
                    asking = _Asking(self, generation, number, next(turn))
                    found = await asking.read_range(wires[asking.node], group, stale=False)
                    if not found:
                        await asyncio.sleep(_RETRY_PAUSE_S)
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


class _Client:
    """One client: an operation at a time, at its own pace."""

    def __init__(self, load: RecordedLoad, node: str, rng: random.Random) -> None:
        self.load = load
        self.node = node
        self.rng = rng
        self.number = next(load._numbers)
        self.wires = {
            name: Wire(url, load.bounds.spare_connections if name == node else 0)
            for name, url in load.endpoints.items()
        }

    async def run(self) -> None:
        load = self.load
        interval_s = load.bounds.clients / load.bounds.rate_per_s
        kinds = [name for name in Mix.__struct_fields__ if name != "idempotent"]
        weights = [getattr(load.mix, kind) for kind in kinds]
        try:
            while load.running:
                # All clients ask at the same beats, so that their operations overlap. One that was
                # held up joins in again at the next beat.
                wait_s = interval_s - time.monotonic() % interval_s
                await asyncio.sleep(wait_s + self.rng.uniform(0, _SPREAD_S))
                (kind,) = self.rng.choices(kinds, weights)
                generation = load.enter()
                try:
                    await self._operate(generation, kind)
                finally:
                    generation.under_way -= 1
        finally:
            for wire in self.wires.values():
                with contextlib.suppress(Exception):
                    await wire.close()

    async def _operate(self, generation: Generation, kind: str) -> None:
        asking = _Asking(self.load, generation, self.number, self.node)
        key = self.rng.choice(generation.keys)
        match kind:
            case "get" | "stale_get":
                await asking.read_key(self.wires[self.node], key, stale=kind == "stale_get")
            case "range" | "stale_range":
                group = key.rpartition("/")[0] + "/"
                await asking.read_range(self.wires[self.node], group, stale=kind == "stale_range")
            case _:
                await self._write(asking, key, kind)

    async def _write(self, asking: _Asking, key: str, kind: str) -> None:
        """Write, again and again if there is an idempotency key, until the outcome is known."""
        revision = asking.generation.revisions.get(key) if kind.endswith("if_revision") else None
        write = asking.begin_write(
            key,
            kind.partition("_")[0],
            if_revision=revision,
            if_absent=kind == "put_if_absent",
            repeat_key=str(uuid.UUID(int=self.rng.getrandbits(128)))
            if self.rng.random() < self.load.mix.idempotent
            else "",
        )
        names = list(self.wires)
        at = names.index(self.node)
        end_s = time.monotonic() + self.load.bounds.give_up_s
        while not await write.attempt(names[at], self.wires[names[at]]):
            if not write.repeat_key or time.monotonic() > end_s or not self.load.running:
                write.give_up()
                break
            self.load.counts["repeats"] += 1
            at = (at + 1) % len(names)
            await asyncio.sleep(_RETRY_PAUSE_S)
        if write.operation.outcome == "unknown":
            self.number = next(self.load._numbers)


class _Asking:
    """Operations of one client in one generation."""

    def __init__(self, load: RecordedLoad, generation: Generation, number: int, node: str) -> None:
        self.load = load
        self.generation = generation
        self.number = number
        self.node = node

    async def ask(
        self,
        wire: Wire,
        method: str,
        target: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        timeout_s = self.load.bounds.patience_ms / 1000
        try:
            return await wire.ask(method, target, body, headers, timeout_s=timeout_s)
        except NotSentError:
            self.load.counts["attempt refused"] += 1
            raise
        except CutError:
            self.load.counts["attempt cut"] += 1
            raise

    def ended(self, operation: Operation, success: Success | None, node: str) -> None:
        """Count an operation that has ended."""
        stale = "stale " if operation.stale else ""
        self.load.counts[f"{stale}{operation.kind} {operation.outcome}"] += 1
        if success is not None and operation.outcome == "ok":
            assert operation.return_ns is not None
            self.load.availability.add(success, node, operation.call_ns, operation.return_ns)

    def _read_query(self, stale: bool) -> str:
        consistency = "stale" if stale else "linearizable"
        return f"consistency={consistency}&timeout_ms={self.load.bounds.timeout_ms}"

    async def read_key(self, wire: Wire, key: str, *, stale: bool) -> None:
        history = self.generation.history
        operation = history.get(self.number, key, time.monotonic_ns(), stale=stale, note=self.node)
        reply = await self._read(operation, wire, f"{key_target(key)}?{self._read_query(stale)}")
        if reply is not None:
            now = time.monotonic_ns()
            if reply.status == 404:
                operation.got(now, None)
            else:
                operation.got(now, self.load.unpad(reply.body), etag(reply))
                if not stale:
                    self.generation.revisions[key] = operation.revision
        self.ended(operation, "stale" if stale else "read", self.node)

    async def read_range(self, wire: Wire, prefix: str, *, stale: bool) -> bool:
        """Read a group; return whether an answer came."""
        history = self.generation.history
        operation = history.range(
            self.number, time.monotonic_ns(), prefix=prefix, stale=stale, note=self.node
        )
        reply = await self._read(
            operation, wire, f"/v1/kv?prefix={prefix}&{self._read_query(stale)}"
        )
        if reply is not None:
            now = time.monotonic_ns()
            document: dict[str, Any] = msgspec.json.decode(reply.body)
            if document["cursor"] is not None:
                raise ProtocolError(f"a group of few keys came in pages: {reply}")
            items = [
                (item["key"], self.load.unpad(base64.b64decode(item["value"])), item["revision"])
                for item in document["items"]
            ]
            operation.listed(now, items, revision=document["revision"])
        self.ended(operation, "stale" if stale else "read", self.node)
        return reply is not None

    async def _read(self, operation: Operation, wire: Wire, target: str) -> Reply | None:
        """Return the answer, None if it is none: the operation has then ended."""
        try:
            reply = await self.ask(wire, "GET", target)
            if reply.status == 200:
                return reply
            code = problem(reply)["code"]
            if code == "key_not_found":
                return reply
            self.load.counts[f"read {code}"] += 1
            if reply.status < 500:
                self.load.defects.append(f"a read was answered: {reply}")
        except (NotSentError, CutError):
            pass
        except ProtocolError as error:
            self.load.defects.append(str(error))
        operation.failed(time.monotonic_ns())
        return None

    def begin_write(
        self, key: str, kind: str, *, if_revision: int | None, if_absent: bool, repeat_key: str
    ) -> _Write:
        history, now = self.generation.history, time.monotonic_ns()
        if kind == "put":
            operation = history.put(
                self.number,
                key,
                self.load.new_value(),
                now,
                if_revision=if_revision,
                if_absent=if_absent,
                note=self.node,
            )
        else:
            operation = history.delete(
                self.number, key, now, if_revision=if_revision, note=self.node
            )
        return _Write(self, operation, repeat_key)


class _Write:
    """A write, over all its attempts."""

    def __init__(self, asking: _Asking, operation: Operation, repeat_key: str) -> None:
        self.asking = asking
        self.load = asking.load
        self.operation = operation
        self.repeat_key = repeat_key
        self.unsure = False  # whether an attempt was unknown
        self.headers: dict[str, str] = {}
        if operation.if_revision is not None:
            self.headers["If-Match"] = f'"{operation.if_revision}"'
        if operation.if_absent:
            self.headers["If-None-Match"] = "*"
        if repeat_key:
            self.headers["Idempotency-Key"] = f'"{repeat_key}"'

    async def attempt(self, node: str, wire: Wire) -> bool:
        """Try once; return whether the outcome is known."""
        operation = self.operation
        target = f"{key_target(operation.key)}?timeout_ms={self.load.bounds.timeout_ms}"
        body = self.load.pad(operation.value) if operation.kind == "put" else None
        try:
            method = operation.kind.upper()
            reply = await self.asking.ask(wire, method, target, body, self.headers)
            known = self._conclude(reply)
        except NotSentError:
            known = False
        except CutError:
            self.unsure, known = True, False
        except ProtocolError as error:
            self.load.defects.append(str(error))
            self.unsure, known = True, False
        if known:
            if node != self.asking.node:
                operation.note += f" {node}"
            self.asking.ended(operation, "write", node)
        return known

    def _conclude(self, reply: Reply) -> bool:
        """End the operation if the answer says what came of it. Raises ProtocolError."""
        operation, now = self.operation, time.monotonic_ns()
        if operation.kind == "put" and reply.status in {200, 201}:
            revision = reply.json["revision"]
            operation.done(now, revision=revision, created=reply.status == 201)
            self.asking.generation.revisions[operation.key] = revision
            return True
        if operation.kind == "delete" and reply.status == 200:
            answer = reply.json
            operation.removed(now, deleted=answer["deleted"], revision=answer["revision"])
            return True
        document = problem(reply)
        self.load.counts[f"write {document['code']}"] += 1
        if document["code"] == "precondition_failed":
            operation.condition_failed(now, seen_revision=revision_seen(document))
            return True
        if reply.status < 500 or document.get("outcome") not in {"not_applied", "unknown"}:
            raise ProtocolError(f"a {operation.kind} was answered: {reply}")
        self.unsure |= document["outcome"] == "unknown"
        return False

    def give_up(self) -> None:
        now = time.monotonic_ns()
        if self.unsure:
            self.operation.unknown(now)
        else:
            self.operation.not_applied(now)
        self.asking.ended(self.operation, None, self.asking.node)
