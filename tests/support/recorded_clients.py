"""The clients of a `RecordedLoad`: what each asks for, and what it concludes from the answers."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import random
import time
import uuid
from typing import TYPE_CHECKING, Any

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
from tests.support.availability import Success
from tests.support.failed_attempts import CUT, NOT_SENT
from tests.support.history import Operation
from tests.support.raw_http import Reply

if TYPE_CHECKING:
    from tests.support.recorded_load import Generation, RecordedLoad

RETRY_PAUSE_S = 0.05
_SPREAD_S = 0.002
"""How far from each other clients begin."""


class Client:
    """One client: an operation at a time, at its own pace."""

    def __init__(self, load: RecordedLoad, node: str, rng: random.Random) -> None:
        self.load = load
        self.node = node
        self.rng = rng
        self.number = next(load.numbers)
        self.wires = {
            name: Wire(url, load.bounds.spare_connections if name == node else 0, load.cacert)
            for name, url in load.endpoints.items()
        }

    async def run(self) -> None:
        load = self.load
        interval_s = load.bounds.clients / load.bounds.rate_per_s
        kinds = [name for name in load.mix.__struct_fields__ if name != "idempotent"]
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
        asking = Asking(self.load, generation, self.number, self.node)
        key = self.rng.choice(generation.keys)
        match kind:
            case "get" | "stale_get":
                await asking.read_key(self.wires[self.node], key, stale=kind == "stale_get")
            case "range" | "stale_range":
                group = key.rpartition("/")[0] + "/"
                await asking.read_range(self.wires[self.node], group, stale=kind == "stale_range")
            case _:
                await self._write(asking, key, kind)

    async def _write(self, asking: Asking, key: str, kind: str) -> None:
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
            await asyncio.sleep(RETRY_PAUSE_S)
        if write.operation.outcome == "unknown":
            self.number = next(self.load.numbers)


class Asking:
    """Operations of one client in one generation."""

    def __init__(self, load: RecordedLoad, generation: Generation, number: int, node: str) -> None:
        self.load = load
        self.generation = generation
        self.number = number
        self.node = node

    async def ask(
        self,
        node: str,
        wire: Wire,
        method: str,
        target: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        timeout_s = self.load.bounds.patience_ms / 1000
        asked_ns = time.monotonic_ns()
        try:
            reply = await wire.ask(method, target, body, headers, timeout_s=timeout_s)
        except NotSentError as error:
            self.load.counts["attempt refused"] += 1
            self.load.failures.add(node, NOT_SENT, method, asked_ns, str(error))
            raise
        except CutError as error:
            self.load.counts["attempt cut"] += 1
            self.load.failures.add(node, CUT, method, asked_ns, str(error))
            raise
        if reply.status >= 500:
            document = problem(reply)
            detail = str(document.get("detail"))
            self.load.failures.add(node, str(document["code"]), method, asked_ns, detail)
        return reply

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
            reply = await self.ask(self.node, wire, "GET", target)
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
    ) -> Write:
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
        return Write(self, operation, repeat_key)


class Write:
    """A write, over all its attempts."""

    def __init__(self, asking: Asking, operation: Operation, repeat_key: str) -> None:
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
            reply = await self.asking.ask(node, wire, method, target, body, self.headers)
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
