"""Consensus groups for these tests: members in this process, members in processes, a proxy."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import functools
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Self

from election.agreement import Committed, Outcome
from election.pysyncobj_adapter import AgreementSettings, AgreementStatus, PySyncObjAgreement
from election.shared_secret import SharedSecret
from election.view import Bootstrap, Member, View, ViewChange
from tests.support.ports import free_address
from tests.support.tracking import track

DEADLINE_S = 30.0
SECRET = SharedSecret(b"a secret for tests, 32 bytes long")
NODE_PROGRAM = Path(__file__).with_name("election_node.py")


def free_addresses(count: int) -> list[str]:
    """Return loopback addresses that nobody listens on now."""
    return [free_address() for _ in range(count)]


async def until(condition: Callable[[], bool], what: str) -> float:
    """Poll until the condition holds; return how many seconds it took."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > DEADLINE_S:
            raise AssertionError(f"not within {DEADLINE_S:g} s: {what}")
        await asyncio.sleep(0.005)
    return time.monotonic() - start


def members_of(addresses: dict[str, str]) -> tuple[Member, ...]:
    return tuple(
        Member(id=node, role="replica", client=f"{node}:1", peer=f"{node}:2", raft=address)
        for node, address in addresses.items()
    )


class Group:
    """Members in this process."""

    def __init__(self, directory: Path, count: int = 3, **options: Any) -> None:
        self.directory = directory
        ids = [f"n{number}" for number in range(1, count + 1)]
        self.addresses = dict(zip(ids, free_addresses(count), strict=True))
        self.routes: dict[str, dict[str, str]] = {}
        self.options = options
        self.running: dict[str, PySyncObjAgreement] = {}
        self.failures: list[tuple[str, Exception]] = []

    def settings(self, node_id: str, **options: Any) -> AgreementSettings:
        return AgreementSettings(
            **{
                "node_id": node_id,
                "bind_address": self.addresses[node_id],
                "members": self.addresses,
                "routes": self.routes.get(node_id, {}),
                "directory": self.directory / node_id,
                "secret": SECRET,
                **self.options,
                **options,
            }
        )

    async def start(self, *node_ids: str, **options: Any) -> None:
        for node_id in node_ids or self.addresses:
            agreement = PySyncObjAgreement(self.settings(node_id, **options))
            agreement.on_failure(functools.partial(self._note_failure, node_id))
            await agreement.start()
            self.running[node_id] = agreement

    def _note_failure(self, node_id: str, error: Exception) -> None:
        self.failures.append((node_id, error))

    async def stop(self, *node_ids: str) -> None:
        for node_id in node_ids or list(self.running):
            await self.running.pop(node_id).stop()

    def __getitem__(self, node_id: str) -> PySyncObjAgreement:
        return self.running[node_id]

    def status(self, node_id: str) -> AgreementStatus:
        status = self.running[node_id].status
        assert status is not None
        return status

    def leader_of(self, *node_ids: str) -> str | None:
        """Return the leader that these (by default: all that run) agree on."""
        found = set()
        for node_id in node_ids or self.running:
            status = self.running[node_id].status
            found.add(None if status is None else (status.leader, status.term))
        if len(found) != 1:
            return None
        (only,) = found
        return None if only is None else only[0]

    async def leader(self, *node_ids: str) -> str:
        await until(lambda: self.leader_of(*node_ids) is not None, "a leader")
        leader = self.leader_of(*node_ids)
        assert leader is not None
        return leader

    async def led_by_any_but(self, node_id: str) -> str:
        """Restart that member until another leads; return the leader."""
        while (leader := await self.leader()) == node_id:
            await self.stop(node_id)
            await self.leader()
            await self.start(node_id)
            await self.connected()
        return leader

    async def followers(self) -> list[str]:
        leader = await self.leader()
        return [node_id for node_id in self.running if node_id != leader]

    async def connected(self) -> None:
        """Wait until every running member is linked with every other."""
        await until(
            lambda: all(
                len(self.status(node_id).connected) == len(self.running) - 1
                for node_id in self.running
            ),
            "all links",
        )

    async def bootstrap(self) -> View:
        outcome = await next(iter(self.running.values())).propose(
            Bootstrap("cluster", "n1", members_of(self.addresses)), 0, 5000
        )
        assert isinstance(outcome, Committed), outcome
        return outcome.view

    async def commit(self, node_id: str, change: ViewChange, timeout_ms: int = 5000) -> View:
        """Propose on the newest view until it is committed."""
        view = await self[node_id].read_view(timeout_ms)
        outcome: Outcome = await self[node_id].propose(
            change, 0 if view is None else view.version, timeout_ms
        )
        assert isinstance(outcome, Committed), outcome
        return outcome.view

    async def sees(self, version: int, *node_ids: str) -> None:
        for node_id in node_ids or self.running:
            await until(
                functools.partial(self._has_seen, node_id, version),
                f"{node_id} sees version {version}",
            )

    def _has_seen(self, node_id: str, version: int) -> bool:
        view = self[node_id].view
        return view is not None and view.version >= version


@contextlib.asynccontextmanager
async def group(directory: Path, count: int = 3, **options: Any) -> AsyncIterator[Group]:
    """Give a started and connected group; stop what still runs in the end."""
    made = Group(directory, count, **options)
    try:
        await made.start()
        await made.connected()
        yield made
    finally:
        await made.stop()


class NodeProcess:
    """A member in a process of its own, spoken to in lines of JSON; see `election_node.py`."""

    def __init__(self, settings: AgreementSettings) -> None:
        self.settings = settings
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(NODE_PROGRAM),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        config: dict[str, Any] = {
            "node_id": self.settings.node_id,
            "bind_address": self.settings.bind_address,
            "members": self.settings.members,
            "routes": self.settings.routes,
            "directory": str(self.settings.directory),
            "secret": self.settings.secret.current.hex(),
        }
        assert await self.ask(**config) == "started"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def ask(self, timeout_s: float = 15, **question: Any) -> Any:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        async with asyncio.timeout(timeout_s):
            line = await self._process.stdout.readline()
        assert line, f"{self.settings.node_id} has died"
        return json.loads(line)

    async def kill(self) -> None:
        """End it as by kill -9."""
        if self._process is None:
            return
        if self._process.returncode is None:
            self._process.kill()
        await self._process.communicate()
        self._process = None


@contextlib.asynccontextmanager
async def processes(made: Group) -> AsyncIterator[dict[str, NodeProcess]]:
    """Give a started, connected and bootstrapped group of processes."""
    nodes = {node_id: NodeProcess(made.settings(node_id)) for node_id in made.addresses}
    try:
        for node in nodes.values():
            await node.start()
        for node in nodes.values():
            await node.ask(do="connected", count=len(nodes) - 1)
        members = [
            {"id": item.id, "role": item.role, "raft": item.raft, "client": item.client}
            | {"peer": item.peer}
            for item in members_of(made.addresses)
        ]
        answer = await nodes["n1"].ask(do="bootstrap", members=members)
        assert answer["outcome"] == "Committed"
        yield nodes
    finally:
        for node in nodes.values():
            await node.kill()


class Mode(enum.Enum):
    """What a proxy does with its connections."""

    PASS = "pass"
    SWALLOW = "swallow"  # accept, read, and never say anything
    REFUSE = "refuse"  # close at once


class Proxy:
    """A TCP proxy on one link, whose mode the test switches; a switch ends its connections."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.address = ""
        self.mode = Mode.PASS
        self.accepted = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self._drop()
        await asyncio.gather(*self._serving, return_exceptions=True)
        self._drop()
        await self._server.wait_closed()

    def switch(self, mode: Mode) -> None:
        self.mode = mode
        self._drop()

    def freeze(self) -> None:
        """Swallow from now on, also on the connections that are open."""
        self.mode = Mode.SWALLOW

    def _drop(self) -> None:
        for writer in list(self._writers):
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        track(self._serving)
        self._writers.add(writer)
        try:
            if self.mode is Mode.PASS:
                host, port = self.target.rsplit(":", 1)
                with contextlib.suppress(OSError):
                    onward_reader, onward_writer = await asyncio.open_connection(host, int(port))
                    self._writers.add(onward_writer)
                    await asyncio.gather(
                        self._pump(reader, onward_writer), self._pump(onward_reader, writer)
                    )
            elif self.mode is Mode.SWALLOW:
                while await reader.read(65536):
                    pass
        except OSError:
            pass
        finally:
            await self._close(writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if self.mode is Mode.PASS:
                    writer.write(data)
        await self._close(writer)

    async def _close(self, writer: asyncio.StreamWriter) -> None:
        self._writers.discard(writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
