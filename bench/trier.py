"""A client that tries all the time: one write every few milliseconds, at each node in turn.

Every try is a new key, on a connection that is kept while it works, with a deadline of its own;
none waits for another. So the longest time between two successes is the service's, not that of some
client library's patience. Runs as a process of its own: `Trier` starts it, `stop` gets the tries
back.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
import time
from collections import Counter

import msgspec
import uvloop

from bench.child import start_child
from bench.render import Request, key, value, write_request
from bench.replies import check_http, check_redis
from bench.spec import Workload
from cluster.client.sessions import make_tls

OUTSTANDING_MAX = 512
READ_BYTES = 65536


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What to try: where, how often, and how long each try waits for its answer."""

    workload: Workload
    addresses: list[str]
    interval_ms: float = 5.0
    deadline_ms: float = 1000.0


class Try(msgspec.Struct, frozen=True, array_like=True):
    """An acknowledged try: its key's number, its times (CLOCK_MONOTONIC), the answer's revision.

    The revision is -1 where the answer has none that is its own.
    """

    number: int
    started_ns: int
    ended_ns: int
    revision: int


class Tries(msgspec.Struct, kw_only=True):
    """All that was acknowledged, and the other outcomes by kind."""

    acknowledged: list[Try]
    failed: dict[str, int]

    def longest_gap_ms(self, from_ns: int, to_ns: int) -> float:
        """Return the longest time without a success that overlaps [from_ns, to_ns].

        It begins at the last success before, so that a gap is not cut short.
        """
        ends = sorted(item.ended_ns for item in self.acknowledged)
        gaps = (
            later - earlier
            for earlier, later in itertools.pairwise(ends)
            if later >= from_ns and earlier <= to_ns
        )
        return max(gaps, default=0) / 1e6

    def double_revisions(self) -> int:
        """Return how many revisions two acknowledged writes share: two primaries at once."""
        counts = Counter(item.revision for item in self.acknowledged if item.revision >= 0)
        return sum(count - 1 for count in counts.values())


class Trier:
    """The process that tries. `stop` ends it."""

    def __init__(self, task: Task) -> None:
        self._popen = start_child("bench.trier", task, b"trying")

    def stop(self) -> Tries:
        """End the tries and return them."""
        output, _ = self._popen.communicate(timeout=60)
        return msgspec.json.decode(output, type=Tries)

    def abandon(self) -> None:
        """End the process, whatever it does."""
        if self._popen.poll() is None:
            self._popen.kill()
            self._popen.communicate()


Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Client:
    def __init__(self, task: Task) -> None:
        self._task = task
        self._tls = make_tls(task.workload.caller.cacert, "", "")
        self._content = value(task.workload.value_bytes, task.workload.seed)
        self._idle: dict[str, list[Pair]] = {address: [] for address in task.addresses}
        self._tasks: set[asyncio.Task[None]] = set()
        self.acknowledged: list[Try] = []
        self.failed: Counter[str] = Counter()

    async def run(self, ended: asyncio.Event) -> None:
        """Try until the event is set."""
        begin = time.monotonic()
        addresses = itertools.cycle(self._task.addresses)
        for number in itertools.count():
            delay = begin + number * self._task.interval_ms / 1000 - time.monotonic()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), max(0.0, delay))
                break
            if len(self._tasks) >= OUTSTANDING_MAX:
                self.failed["not tried: too many under way"] += 1
                continue
            task = asyncio.create_task(self._try(number, next(addresses)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        await asyncio.gather(*self._tasks)

    async def _try(self, number: int, address: str) -> None:
        workload = self._task.workload
        request = write_request(workload, key(workload, number), self._content)
        pair: Pair | None = None
        started = time.monotonic_ns()
        try:
            async with asyncio.timeout(self._task.deadline_ms / 1000):
                idle = self._idle[address]
                pair = idle.pop() if idle else await self._connect(address)
                error, data = await self._ask(pair, request)
        except TimeoutError:
            self.failed["no answer in time"] += 1
        except OSError as failure:
            self.failed[type(failure).__name__] += 1
        else:
            if error:
                self.failed[error] += 1
            else:
                ended = time.monotonic_ns()
                self.acknowledged.append(Try(number, started, ended, _revision(workload, data)))
            self._idle[address].append(pair)
            return
        if pair is not None:
            pair[1].close()

    async def _connect(self, address: str) -> Pair:
        host, _, port = address.rpartition(":")
        return await asyncio.open_connection(host, int(port), ssl=self._tls)

    async def _ask(self, pair: Pair, request: Request) -> tuple[str, bytes]:
        reader, writer = pair
        writer.write(request.data)
        data = b""
        while True:
            more = await reader.read(READ_BYTES)
            if not more:
                raise ConnectionResetError
            data += more
            if self._task.workload.api == "redis":
                error = check_redis(data, request, self._task.workload.copies)
            else:
                error = check_http(data, request)
            if error is not None:
                return error, data


def _revision(workload: Workload, data: bytes) -> int:
    if workload.api != "onecopy":
        return -1
    at = data.find(b'"revision":')
    return -1 if at < 0 else int(data[at + 11 :].split(b",", 1)[0])


async def _main() -> None:
    loop = asyncio.get_running_loop()
    task = msgspec.json.decode(sys.stdin.buffer.readline(), type=Task)
    client = _Client(task)
    ended = asyncio.Event()
    running = asyncio.create_task(client.run(ended))
    sys.stdout.buffer.write(b"trying\n")
    sys.stdout.buffer.flush()
    await loop.run_in_executor(None, sys.stdin.buffer.read)
    ended.set()
    await running
    tries = Tries(acknowledged=client.acknowledged, failed=dict(client.failed))
    sys.stdout.buffer.write(msgspec.json.encode(tries))
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    uvloop.run(_main())
