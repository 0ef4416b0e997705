"""Real ends on loopback, and a TCP relay between them that misbehaves on demand."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from typing import Any

from datapath.transport.dialer import Dialer
from datapath.transport.link import Link, LinkHandler
from datapath.transport.listener import PeerListener
from election.registry import PeerRegistry
from election.shared_secret import SharedSecret

DEADLINE_S = 60.0
SECRET = b"a cluster secret"
KIND = "replicate"


async def until(condition: Callable[[], object]) -> None:
    """Poll until `condition` holds; AssertionError at the deadline."""
    deadline = asyncio.get_running_loop().time() + DEADLINE_S
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "it did not happen in time"
        await asyncio.sleep(0.002)


class Recorder:
    """A LinkHandler that keeps all it is told."""

    encode = decode = staticmethod(bytes)

    def __init__(self) -> None:
        self.opened: list[Link] = []
        self.closed: list[tuple[Link, str]] = []
        self.frames: list[bytes] = []
        self.log: list[str] = []

    def on_open(self, link: Link) -> None:
        self.opened.append(link)
        self.log.append("open")

    def on_messages(self, link: Link, messages: list[bytes]) -> None:
        self.frames += messages
        assert not link.closed

    def on_close(self, link: Link, reason: str) -> None:
        assert link.closed
        self.closed.append((link, reason))
        self.log.append("close")

    @property
    def up(self) -> int:
        return len(self.opened) - len(self.closed)

    @property
    def link(self) -> Link:
        return self.opened[-1]

    @property
    def reason(self) -> str:
        return self.closed[-1][1]


def make_registry(node_id: str, **options: Any) -> PeerRegistry:
    given: dict[str, Any] = {
        "data_id": f"data of {node_id}",
        "instance": f"instance of {node_id}",
        "configured": {},
        **options,
    }
    return PeerRegistry(node_id, **given)


def make_listener(handler: LinkHandler, *, port: int = 0, **options: Any) -> PeerListener:
    given: dict[str, Any] = {
        "node_id": "n2",
        "cluster": "demo",
        "secret": SharedSecret(SECRET),
        **options,
    }
    handlers = given.pop("handlers", {KIND: handler})
    given.setdefault("registry", make_registry(given["node_id"]))
    return PeerListener("127.0.0.1", port, handlers=handlers, **given)


def make_dialer(handler: LinkHandler, port: int, **options: Any) -> Dialer:
    given: dict[str, Any] = {
        "peer": "n2",
        "kind": KIND,
        "node_id": "n1",
        "cluster": "demo",
        "secret": SharedSecret(SECRET),
        **options,
    }
    address = given.pop("address", lambda: ("127.0.0.1", port))
    given.setdefault("registry", make_registry(given["node_id"]))
    return Dialer(address, handler=handler, **given)


@dataclasses.dataclass
class Pair:
    """A dialer at `near`, a listener at `far`, and what each handler has recorded."""

    near: Recorder
    far: Recorder
    dialer: Dialer
    listener: PeerListener
    relay: Relay | None = None

    async def until_up(self) -> None:
        await until(lambda: self.near.up == 1 and self.far.up == 1)


@contextlib.asynccontextmanager
async def connected(*, relayed: bool = False, **options: Any) -> AsyncIterator[Pair]:
    """Two ends with a link between them, through a relay if asked; stopped at the end."""
    near, far = Recorder(), Recorder()
    async with contextlib.AsyncExitStack() as stack:
        at_dialer = {"dial_timeout_ms": options.pop("dial_timeout_ms", 1000)}
        listener = make_listener(far, **options)
        await listener.start()
        stack.push_async_callback(listener.stop)
        relay = None
        if relayed:
            relay = Relay(listener.port)
            await relay.start()
            stack.push_async_callback(relay.stop)
        dialer = make_dialer(near, relay.port if relay else listener.port, **options, **at_dialer)
        dialer.start()
        stack.push_async_callback(dialer.stop)
        pair = Pair(near, far, dialer, listener, relay)
        await pair.until_up()
        yield pair


class Relay:
    """Passes bytes between whoever connects and `port`.

    `swallow_there` / `swallow_back` drop what flows to / from the port, without a word to anyone;
    new connections are taken and never answered. `stuck` stops reading. `delay_s` delays each way.
    """

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.port = 0
        self.swallow_there = False
        self.swallow_back = False
        self.delay_s = 0.0
        self.passed_bytes = 0
        self.cut_after_bytes: int | None = None
        self.connections = 0
        self._free = asyncio.Event()
        self._free.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._take, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        self.stuck = False
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def stuck(self) -> bool:
        return not self._free.is_set()

    @stuck.setter
    def stuck(self, value: bool) -> None:
        if value:
            self._free.clear()
        else:
            self._free.set()

    def swallow(self, value: bool = True) -> None:
        self.swallow_there = self.swallow_back = value

    def cut(self) -> None:
        """Reset all connections."""
        for writer in self._writers:
            writer.transport.abort()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self._writers.add(writer)
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target_port)
            self._writers.add(back)
            try:
                await asyncio.gather(
                    self._pump(reader, back, lambda: self.swallow_there),
                    self._pump(there, writer, lambda: self.swallow_back),
                )
            finally:
                self._writers.discard(back)
                back.transport.abort()
        except OSError:
            pass
        except asyncio.CancelledError:
            pass  # asyncio's own stream server would report it as an error.
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)
            writer.transport.abort()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        swallowed: Callable[[], bool],
    ) -> None:
        while data := await reader.read(65536):
            await self._free.wait()
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            if swallowed():
                continue
            self.passed_bytes += len(data)
            if self.cut_after_bytes is not None and self.passed_bytes > self.cut_after_bytes:
                self.cut_after_bytes = None
                raise ConnectionResetError
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError  # One side is gone: so is the other.
