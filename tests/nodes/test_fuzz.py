"""Fuzzed bytes at all three ports of real nodes: nothing crashes, grows or leaks.

What is sent are mutations of what was recorded: requests of every operation of the OpenAPI
document, by whom they may be, and the handshakes and frames of the nodes. Frames within a link that
is open, also under TLS, are mangled by test_mangled_frames.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import ssl
from collections.abc import Sequence
from random import Random

import pytest

from cluster.client.results import RoleRights
from tests.nodes.conftest import MakeCluster
from tests.support.cluster import UNSUSPECTING, Cluster
from tests.support.matrix import attempts
from tests.support.mutator import mutated
from tests.support.ports import free_address
from tests.support.tracking import track

pytestmark = pytest.mark.slow

SEED = 15
AT_ONCE = 16
ANSWER_S = 0.3
"""How long one that is fuzzed has to say something before the next is tried."""
RECORDED_BYTES = 64 * 1024
GROWTH_MAX_BYTES = 80 * 1024 * 1024
RIGHTS = RoleRights(read=("",), write=("",), watch=("",), lock=("",), call=("*",))
SAID_OF_A_FAULT = re.compile(r"Traceback|CRITICAL|service_failed|Task exception|never retrieved")


class Relay:
    """Relays one link between nodes, and records what its dialer sends first."""

    def __init__(self) -> None:
        self.recorded: list[bytearray] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None

    async def start(self, listen: str, target: str) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            track(self._tasks)
            try:
                there, to_there = await asyncio.open_connection(*target.split(":"))
            except OSError:
                writer.close()
                return
            self._writers += [writer, to_there]
            said = bytearray()
            self.recorded.append(said)
            for source, sink, record in ((reader, to_there, said), (there, writer, None)):
                self._tasks.add(asyncio.create_task(self._copy(source, sink, record)))

        self._server = await asyncio.start_server(serve, *listen.split(":"))

    @staticmethod
    async def _copy(
        source: asyncio.StreamReader, sink: asyncio.StreamWriter, record: bytearray | None
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if record is not None and len(record) < RECORDED_BYTES:
                    record += data
                sink.write(data)
                await sink.drain()
        sink.close()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


class Target:
    """A port that is fuzzed, and the samples that are changed on the way to it."""

    def __init__(self, address: str, samples: Sequence[bytes], *, tls: bool = False) -> None:
        self.address = address
        self.samples = samples
        self._context: ssl.SSLContext | None = None
        if tls:
            self._context = ssl.create_default_context()
            self._context.check_hostname = False
            self._context.verify_mode = ssl.CERT_NONE

    async def send(self, data: bytes) -> bytes:
        """Send on a connection of its own; return what came back within ANSWER_S."""
        answer = b""
        try:
            reader, writer = await asyncio.open_connection(
                *self.address.split(":"), ssl=self._context
            )
        except OSError:
            return answer  # no room for strangers at the moment: the node is asked at the end
        with contextlib.suppress(OSError, TimeoutError):
            writer.write(data)
            async with asyncio.timeout(ANSWER_S):
                while received := await reader.read(65536):
                    answer += received
        writer.transport.abort()
        return answer

    async def fuzz(self, count: int, random: Random) -> list[bytes]:
        """Send so many mutations, some at a time; return the answers."""
        free = asyncio.Semaphore(AT_ONCE)

        async def one(data: bytes) -> bytes:
            async with free:
                return await self.send(data)

        chosen = [mutated(random.choice(self.samples), random) for _ in range(count)]
        return await asyncio.gather(*map(one, chosen))


async def requests_of(cluster: Cluster, token: str) -> list[bytes]:
    """Return a request for each operation, by someone with a role, a stranger, and nobody."""
    document = json.loads((await cluster.fetch("n1", "GET", "/openapi.json")).body)
    wrong = token[:-4] + "AAAA"
    found = []
    for attempt in attempts(document):
        for shown in (token, wrong, ""):
            headers = {"Host": "localhost", "Accept": "*/*", **attempt.headers}
            if shown:
                headers["Authorization"] = f"Bearer {shown}"
            if attempt.body is not None:
                headers["Content-Length"] = str(len(attempt.body))
            lines = [f"{attempt.method} {attempt.target} HTTP/1.1"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            found.append("\r\n".join(lines).encode() + b"\r\n\r\n" + (attempt.body or b""))
    return found


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("tls", "count"),
    [
        (False, 80),
        pytest.param(False, 6000, marks=pytest.mark.long),
        pytest.param(True, 2000, marks=pytest.mark.long),
    ],
)
async def test_fuzzed_bytes_harm_nobody(make_cluster: MakeCluster, tls: bool, count: int) -> None:
    cluster = make_cluster(
        tls=tls, access={"audit_file": "audit-{node}.jsonl"}, timing=UNSUSPECTING
    )
    relays = {"peer": Relay(), "raft": Relay()}
    if not tls:  # what a node sends under TLS cannot be said again
        route = {channel: free_address() for channel in relays}
        cluster.routes["n2", "n1"] = route
        cluster.write_config()
        for channel, relay in relays.items():
            await relay.start(route[channel], getattr(cluster.specs["n1"], channel))
    await cluster.start()
    async with cluster.client() as admin:
        await admin.set_role("app", RIGHTS)
        token = (await admin.create_token("app")).token
        await admin.put("app/k", b"v")
    spec = cluster.specs["n1"]
    targets = [Target(spec.client, await requests_of(cluster, token), tls=tls)]
    for channel, relay in relays.items():
        samples = [bytes(said) for said in relay.recorded if said] or [b"\x16\x03\x01" + bytes(300)]
        targets.append(Target(getattr(spec, channel), samples))
        assert tls or relay.recorded
    random = Random(SEED)
    for target in targets:  # what a node allocates once is not growth
        await target.fuzz(50, random)
    before = {node: cluster.nodes[node].rss_bytes() for node in cluster.running}
    for target in targets:
        answers = await target.fuzz(count // len(targets), random)
        assert not any(b"Traceback" in answer for answer in answers)
        statuses = {answer[9:12] for answer in answers if answer.startswith(b"HTTP/1.1 ")}
        assert b"500" not in statuses
    for node, size_bytes in before.items():
        grown = cluster.nodes[node].rss_bytes() - size_bytes
        assert grown < GROWTH_MAX_BYTES, (node, grown)
    cluster.check_alive()
    async with cluster.client() as client:
        await client.put("after", b"all of it")
    await cluster.wait_converged()
    for node in cluster.specs:
        log = cluster.nodes[node].log()
        assert not SAID_OF_A_FAULT.search(log), SAID_OF_A_FAULT.findall(log)
        audit = (cluster.directory / f"audit-{node}.jsonl").read_text()
        for secret in (token[-40:], cluster.secret):
            assert secret not in log
            assert secret not in audit
    if not tls:
        for relay in relays.values():
            await relay.stop()
