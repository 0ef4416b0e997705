"""`kill -9` of the primary under many leases, locks with one that waits each, and watchers.

No lease may end before its TTL has passed since the kill; who waits for a lock gets it when it is
released; each watcher sees each change once, in order. What went wrong is counted: the figures of a
sound cluster have zeros there.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import msgspec

from bench.ask import ask_all, read_reply
from bench.context import Context
from bench.peers.onecopy import Onecopy
from bench.peers.process import BenchError, wait_until
from bench.render import http, post
from cluster.client.aio import AsyncClient
from cluster.client.errors import ClientError
from cluster.client.watching import AsyncKeyWatch

DEADLINE_S = 300.0
CLAIMS_EACH = 100
"""How many locks one lease holds, or waits for."""
LONG_TTL_MS = 3_600_000
LOCK_WAIT_MS = 600_000
WRITES_BEFORE, WRITES_AFTER = 20, 30
WRITE_INTERVAL_S = 0.005
RETRY_S = 0.05
WRITE_TIMEOUT_MS = 120_000


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How much there is; `ttl_ms` of the leases that are to end after the kill."""

    leases: int = 10_000
    locks: int = 1000
    watchers: int = 1000
    ttl_ms: int = 60_000


def run(context: Context) -> dict[str, Any]:
    """Kill the primary of three replicas."""
    return measure(context, Size())


def measure(context: Context, size: Size) -> dict[str, Any]:
    """Kill the primary under so much; return what happened when."""
    with context.peer(Onecopy.shape(replicas=3, witnesses=0)) as cluster:
        found = asyncio.run(_Kill(cluster, size).run())
    context.say(f"  {found}")
    return found


class LockWaiter(msgspec.Struct):
    """Who waits for a lock by `lease`; `got_s`: when it got it, under `token`; 0: not yet."""

    name: str
    lease: str
    holder_token: int
    released_s: float = 0.0
    got_s: float = 0.0
    token: int = 0


class _Kill:
    def __init__(self, cluster: Onecopy, size: Size) -> None:
        self._cluster = cluster
        self._size = size
        self._addresses = [cluster.address(node) for node in cluster.replicas]
        self._primary = cluster.primary()
        self._address = cluster.address(self._primary)
        self._others = [item for item in self._addresses if item != self._address]
        self._written: list[int] = []
        self._acknowledged_s: list[float] = []
        self._ended_s: list[float] = []
        self._ended: set[str] = set()
        self._reasons: set[str] = set()
        self._killed_s = 0.0

    async def run(self) -> dict[str, Any]:
        urls = [f"http://{address}" for address in self._addresses]
        async with (
            asyncio.timeout(2 * DEADLINE_S),
            AsyncClient(urls, timeout_ms=WRITE_TIMEOUT_MS, max_connections=64) as client,
            contextlib.AsyncExitStack() as stack,
        ):
            waiters = await self._take_locks()
            waiting = [
                asyncio.create_task(self._wait_for_lock(waiter, number))
                for number, waiter in enumerate(waiters)
            ]
            await self._all_wait(len(waiters))
            watches = [client.watch("w/", after=0) for _ in range(self._size.watchers)]
            ends = client.watch("e/", after=0)
            for watch in (*watches, ends):
                await stack.enter_async_context(watch)
            leases = await self._hang_keys()
            watcher = asyncio.create_task(self._watch_ends(ends))
            stories = [asyncio.create_task(self._story(watch)) for watch in watches]
            for number in range(WRITES_BEFORE):
                await self._write(client, number)
            await self._keep_alive(leases)
            self._killed_s = time.monotonic()
            self._cluster.processes[self._primary].end()
            for number in range(WRITES_AFTER):
                await self._write(client, WRITES_BEFORE + number)
            seen = await asyncio.gather(*stories)
            await self._release(waiters)
            await asyncio.gather(*waiting)
            beside_s = await self._write_until(client, watcher)
            return self._found(waiters, seen, beside_s)

    # -- before the kill

    async def _take_locks(self) -> list[LockWaiter]:
        size = self._size
        n_leases = -(-size.locks // CLAIMS_EACH)
        grant = post("/v1/leases", json.dumps({"ttl_ms": LONG_TTL_MS})).data
        answers = await ask_all(self._address, [grant] * (2 * n_leases))
        leases = [json.loads(answer)["lease"] for answer in answers]
        names = [f"lock{number}" for number in range(size.locks)]
        takes = [
            post(f"/v1/locks/{name}", json.dumps({"lease": leases[number // CLAIMS_EACH]})).data
            for number, name in enumerate(names)
        ]
        tokens = [json.loads(answer)["token"] for answer in await ask_all(self._address, takes)]
        return [
            LockWaiter(name, leases[n_leases + number // CLAIMS_EACH], token)
            for number, (name, token) in enumerate(zip(names, tokens, strict=True))
        ]

    async def _wait_for_lock(self, waiter: LockWaiter, number: int) -> None:
        """Wait, each at a node of its own; where that fails, at the next: the place is kept."""
        wish = {"lease": waiter.lease, "wait_ms": LOCK_WAIT_MS, "keep_place": True}
        request = post(f"/v1/locks/{waiter.name}", json.dumps(wish)).data
        for address in itertools.islice(itertools.cycle(self._addresses), number % 3, None):
            with contextlib.suppress(OSError, EOFError):
                host, _, port = address.rpartition(":")
                reader, writer = await asyncio.open_connection(host, int(port))
                try:
                    writer.write(request)
                    reply = await read_reply(reader)
                finally:
                    writer.close()
                if reply.status == 200:
                    waiter.got_s = time.monotonic()
                    waiter.token = json.loads(reply.body)["token"]
                    return
                if reply.status < 500:
                    raise BenchError(f"waiting for {waiter.name}: {reply}")
            await asyncio.sleep(RETRY_S)

    async def _all_wait(self, count: int) -> None:
        """Wait until each lock says that one waits for it."""
        asks = [http("GET", f"/v1/locks/lock{number}") for number in range(count)]

        def all_wait() -> bool:
            answers = asyncio.run(ask_all(self._address, asks))
            return all(json.loads(answer)["waiting"] == 1 for answer in answers)

        await asyncio.to_thread(
            wait_until, all_wait, f"{count} wait for locks", DEADLINE_S, RETRY_S
        )

    async def _hang_keys(self) -> list[str]:
        puts = [
            http("PUT", f"/v1/kv/e/{number}?ttl_ms={self._size.ttl_ms}", b"x")
            for number in range(self._size.leases)
        ]
        return [str(json.loads(body)["revision"]) for body in await ask_all(self._address, puts)]

    async def _keep_alive(self, leases: Sequence[str]) -> None:
        batches = [leases[at : at + 1000] for at in range(0, len(leases), 1000)]
        answers = await ask_all(
            self._address,
            [post("/v1/leases/keepalive", json.dumps({"leases": part})).data for part in batches],
        )
        if any(json.loads(answer)["gone"] for answer in answers):
            raise BenchError(f"leases had ended before the kill: a TTL of {self._size} is short")

    # -- after it

    async def _write(self, client: AsyncClient, number: int) -> None:
        self._written.append((await client.put(f"w/{number}", b"v")).revision)
        self._acknowledged_s.append(time.monotonic())

    async def _story(self, watch: AsyncKeyWatch) -> tuple[list[int], float]:
        """Return what a watcher has seen, and when it had seen all."""
        story = [(await anext(watch)).revision for _ in range(WRITES_BEFORE + WRITES_AFTER)]
        return story, time.monotonic()

    async def _watch_ends(self, watch: AsyncKeyWatch) -> None:
        async for event in watch:
            for change in event.changes:
                if change.deleted:
                    self._ended_s.append(time.monotonic())
                    self._ended.add(change.key)
                    self._reasons.add(change.reason)
            if len(self._ended_s) >= self._size.leases:
                return

    async def _release(self, waiters: Sequence[LockWaiter]) -> None:
        """Release every lock, one after the other, at nodes that live."""
        addresses = itertools.cycle(self._others)
        for waiter in waiters:
            path = f"/v1/locks/{waiter.name}?token={waiter.holder_token}"
            waiter.released_s = time.monotonic()
            await ask_all(next(addresses), [http("DELETE", path)])

    async def _write_until(self, client: AsyncClient, watcher: asyncio.Task[None]) -> list[float]:
        """Write on while leases end; return when writes were acknowledged."""
        acknowledged_s: list[float] = []
        number = 0
        while not watcher.done():
            with contextlib.suppress(ClientError):
                await client.put(f"beside/{number % 100}", b"v")
                acknowledged_s.append(time.monotonic())
            number += 1
            await asyncio.sleep(WRITE_INTERVAL_S)
        await watcher
        return acknowledged_s

    def _found(
        self,
        waiters: Sequence[LockWaiter],
        seen: Sequence[tuple[list[int], float]],
        beside_s: list[float],
    ) -> dict[str, Any]:
        killed_s, size = self._killed_s, self._size
        earliest_s = killed_s + size.ttl_ms / 1000
        gaps_s = [later - earlier for earlier, later in itertools.pairwise(self._acknowledged_s)]
        handed_ms = [(waiter.got_s - waiter.released_s) * 1000 for waiter in waiters]
        first_s, last_s = min(self._ended_s), max(self._ended_s)
        during = [at for at in beside_s if first_s - 1 <= at <= last_s + 1]
        ending_gaps_s = [later - earlier for earlier, later in itertools.pairwise(during)]
        return {
            **msgspec.to_builtins(size),
            "write_gap_ms": round(max(gaps_s) * 1000),
            "seen_by_all_ms": round(
                (max(at for _, at in seen) - self._acknowledged_s[-1]) * 1000, 1
            ),
            "saw_each_write_once": sum(story == self._written for story, _ in seen),
            "handed_over_p50_ms": round(median(handed_ms), 1),
            "handed_over_max_ms": round(max(handed_ms), 1),
            "ended_early": sum(at < earliest_s for at in self._ended_s),
            "ended": len(self._ended),
            "ended_twice": len(self._ended_s) - len(self._ended),
            "reasons": sorted(self._reasons),
            "first_end_after_kill_ms": round((first_s - killed_s) * 1000),
            "ending_took_ms": round((last_s - first_s) * 1000),
            "ending_gap_ms": round(max(ending_gaps_s, default=0.0) * 1000, 1),
            "got_the_lock": sum(waiter.token > waiter.holder_token for waiter in waiters),
        }
