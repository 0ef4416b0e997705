"""TLS over a plain transport: whatever the other side cuts, holds back or leaves out."""

from __future__ import annotations

import _ssl
import asyncio
import contextlib
import ctypes
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from cluster.certificates.authority import Authority
from cluster.certificates.hosts import LOOPBACK_HOSTS
from cluster.client.sessions import make_tls
from datapath.tls_records import MAX_RECORD_BYTES
from datapath.transport import tls_transport
from datapath.transport.tls_transport import BATCH_MAX, TlsTransport
from tests.support.cluster import wait_until

_T = TypeVar("_T")
DEADLINE_S = 60.0
MESSAGE = bytes(range(256)) * 4096
ASKS_FOR_NEW_KEYS = 1
SSL_AT_BYTES = 24  # of `SSL *` in CPython's object, behind its head and the socket


class Echo(asyncio.Protocol):
    """Sends back what comes, and notes what happens to it."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.lost: Exception | None = None
        self.answers_after_end = b""
        self.received = b""
        self.pieces = 1  # in which it answers
        self.does: Exception | Callable[[], object] | None = None  # when something has come
        self.closes = False  # then, too

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, TlsTransport)
        self.transport = transport
        self.events.append("made")

    def data_received(self, data: bytes) -> None:
        self.received += data
        size = -(-len(data) // self.pieces)
        for start in range(0, len(data), size):
            self.transport.write(data[start : start + size])
        if isinstance(self.does, Exception):
            raise self.does
        if self.does is not None:
            self.does()
        if self.closes:
            self.transport.close()

    def eof_received(self) -> bool:
        self.events.append("eof")
        if self.answers_after_end:
            asyncio.get_running_loop().call_soon(self._answer)
        return bool(self.answers_after_end)

    def _answer(self) -> None:
        self.transport.write(self.answers_after_end)
        self.transport.close()

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def is_lost(self) -> bool:
        return "lost" in self.events

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = exc
        self.events.append("lost")


class Port:
    """A port under TLS; the protocols of its connections, and a client's context."""

    def __init__(self, directory: Path) -> None:
        authority = Authority(directory)
        authority.create()
        authority.issue_node("n1", LOOPBACK_HOSTS)
        self.serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.serving.minimum_version = ssl.TLSVersion.TLSv1_3
        self.serving.num_tickets = 0
        self.serving.load_cert_chain(directory / "n1.crt", directory / "n1.key")
        client = make_tls(str(directory / "ca.crt"), "", "")
        assert client is not None
        self.calling = client
        self.protocols: list[Echo] = []
        self.number = 0

    def make(self) -> Echo:
        self.protocols.append(Echo())
        return self.protocols[-1]


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[Port]:
    found = Port(tmp_path)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: TlsTransport(found.serving, found.make), "127.0.0.1", 0
    )
    async with server:
        found.number = server.sockets[0].getsockname()[1]
        async with asyncio.timeout(DEADLINE_S):
            yield found


class Wire:
    """A client that has the bytes on the wire in its hands."""

    def __init__(
        self,
        port: Port,
        connection: socket.socket,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.connection, self.reader, self.writer = connection, reader, writer
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.end = port.calling.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")

    async def send(self, piece_bytes: int = 1 << 30) -> None:
        """Send what is ready, in pieces of this size."""
        data = self.outgoing.read()
        for start in range(0, len(data), piece_bytes):
            self.writer.write(data[start : start + piece_bytes])
            await self.writer.drain()
            await asyncio.sleep(0)

    async def until(self, step: Callable[[], _T], piece_bytes: int = 1 << 30) -> _T:
        """Do something that has to wait for the other side."""
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                await self.send(piece_bytes)
                data = await self.reader.read(65536)
                if data:
                    self.incoming.write(data)
                else:
                    self.incoming.write_eof()
            else:
                await self.send(piece_bytes)
                return result

    async def read(self, size_bytes: int) -> bytes:
        found = b""
        while len(found) < size_bytes:
            found += await self.until(lambda: self.end.read(MAX_RECORD_BYTES))
        return found

    def ask_for_new_keys(self) -> None:
        own = ctypes.c_void_p.from_address(id(self.end._sslobj) + SSL_AT_BYTES)  # type: ignore[attr-defined]
        library = ctypes.CDLL(_ssl.__file__)
        assert library.SSL_key_update(own, ASKS_FOR_NEW_KEYS) == 1
        self.end.write(b"!")  # which sends the message before it


@contextlib.asynccontextmanager
async def wire(port: Port, piece_bytes: int = 1 << 30, **options: int) -> AsyncIterator[Wire]:
    connection = socket.socket()
    for name, value in options.items():
        connection.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port.number))
    reader, writer = await asyncio.open_connection(sock=connection)
    made = len(port.protocols)
    found = Wire(port, connection, reader, writer)
    try:
        await found.until(found.end.do_handshake, piece_bytes)
        await wait_until(lambda: len(port.protocols) > made, "the other end is ready")
        yield found
    finally:
        writer.close()


async def test_large_messages_pass_both_ways(port: Port) -> None:
    got = asyncio.get_running_loop().create_future()

    class Caller(Echo):
        data = b""

        def data_received(self, data: bytes) -> None:
            self.data += data
            if len(self.data) == len(MESSAGE):
                got.set_result(self.data)

    caller = TlsTransport(port.calling, Caller, "localhost")
    await asyncio.get_running_loop().create_connection(lambda: caller, "127.0.0.1", port.number)
    await caller.ready
    caller.write(b"")
    caller.write(MESSAGE)
    assert await got == MESSAGE
    caller.close()
    await wait_until(lambda: "lost" in port.protocols[0].events, "the other end is closed")
    assert port.protocols[0].events[-2:] == ["eof", "lost"]


@pytest.mark.parametrize("piece_bytes", [1, 7, 4096])
async def test_records_may_be_cut_anywhere(port: Port, piece_bytes: int) -> None:
    async with wire(port, piece_bytes) as client:
        message = MESSAGE[: 300 * piece_bytes]
        for part in (message[:1], message[1:200], message[200:]):
            client.end.write(part)
        await client.send(piece_bytes)
        assert await client.read(len(message)) == message


async def test_many_records_and_the_end_in_one_piece(port: Port) -> None:
    async with wire(port) as client:
        for _ in range(50):
            client.end.write(b"x" * 100)
        with pytest.raises(ssl.SSLWantReadError):
            client.end.unwrap()
        await client.send()
        assert await client.read(5000) == b"x" * 5000
        with pytest.raises(ssl.SSLZeroReturnError):  # said, not just cut
            await client.until(lambda: client.end.read(1))


async def test_who_sends_no_more_can_still_be_answered(port: Port) -> None:
    async with wire(port) as client:
        port.protocols[0].answers_after_end = b"late"
        with pytest.raises(ssl.SSLWantReadError):
            client.end.unwrap()
        await client.send()
        client.writer.write_eof()
        data = await client.reader.read()
        client.incoming.write(data)
        assert client.end.read(100) == b"late"


async def test_a_connection_that_is_cut_has_not_ended(port: Port) -> None:
    async with wire(port) as client:
        client.end.write(b"whole")
        client.end.write(b"cut off")
        whole = client.outgoing.read()
        client.writer.write(whole[:-3])
        assert await client.read(5) == b"whole"
        client.writer.write_eof()
        await wait_until(lambda: "lost" in port.protocols[0].events, "the connection is closed")
    assert port.protocols[0].events == ["made", "lost"]


async def test_what_is_no_record_ends_the_connection(port: Port) -> None:
    async with wire(port) as client:
        client.writer.write(b"GET / HTTP/1.1\r\n\r\n" * 10)
        await wait_until(lambda: "lost" in port.protocols[0].events, "the connection is closed")
    assert isinstance(port.protocols[0].lost, ssl.SSLError)


async def test_a_slow_reader_is_written_no_more_than_the_bound(port: Port) -> None:
    async with wire(port, SO_RCVBUF=4096) as client:
        client.end.write(b"x")
        await client.send()
        assert await client.read(1) == b"x"
        server = port.protocols[0]
        server.transport.set_write_buffer_limits(high=4096)
        written = 1
        while "pause" not in server.events:
            server.transport.write(MESSAGE[:10_000])
            written += 10_000
            await asyncio.sleep(0)
        assert server.transport.get_write_buffer_size() <= 4096 + 2 * MAX_RECORD_BYTES
        assert len(await client.read(written - 1)) == written - 1
        await wait_until(lambda: "resume" in server.events, "it goes on")


async def test_new_keys_are_taken(port: Port) -> None:
    async with wire(port) as client:
        for _ in range(3):
            client.ask_for_new_keys()
            await client.send()
            assert await client.read(1) == b"!"


async def test_a_handshake_that_is_given_up_is_not_gone_on_with(port: Port) -> None:
    caller = TlsTransport(port.calling, Echo, "another.example")
    loop = asyncio.get_running_loop()
    plain, _ = await loop.create_connection(lambda: caller, "127.0.0.1", port.number)
    with pytest.raises(ssl.SSLCertVerificationError):
        await caller.ready
    await wait_until(plain.is_closing, "its connection is closed")
    assert port.protocols == []


@contextlib.asynccontextmanager
async def wires(port: Port, count: int) -> AsyncIterator[list[Wire]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(wire(port)) for _ in range(count)]


def send_in_one_turn(clients: list[Wire]) -> None:
    for number, client in enumerate(clients):
        client.end.write(b"request %03d" % number)
        client.connection.send(client.outgoing.read())  # now: a loop may send later, in any order


@pytest.mark.parametrize("batch_max", [1, 3, BATCH_MAX])
async def test_what_many_send_in_one_turn_is_answered(
    port: Port, batch_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_transport, "BATCH_MAX", batch_max)
    async with wires(port, 8) as clients:
        for server in port.protocols[::2]:
            server.pieces = 3
        for _ in range(3):
            send_in_one_turn(clients)
            for number, client in enumerate(clients):
                assert await client.read(11) == b"request %03d" % number


async def test_a_protocol_that_fails_takes_no_other_connection_with_it(port: Port) -> None:
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: failures.append(context["exception"])
    )
    async with wires(port, 5) as clients:
        error = RuntimeError("broken")
        for server in (port.protocols[0], port.protocols[3]):
            server.does = error
        send_in_one_turn(clients)
        for number in (1, 2, 4):
            assert await clients[number].read(11) == b"request %03d" % number
        for server in (port.protocols[0], port.protocols[3]):
            await wait_until(server.is_lost, "it is closed")
            assert server.lost is error
    assert failures == [error, error]


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_connections_closed_by_another_in_the_same_turn_get_nothing_more(
    port: Port, how: str
) -> None:
    async with wires(port, 5) as clients:
        servers = port.protocols

        def close_the_others() -> None:
            silent = [server for server in servers if not server.received]
            if len(silent) == 3:  # else it is the first, which does not wait
                for server in silent:
                    getattr(server.transport, how)()

        for server in servers:
            server.does = close_the_others
        send_in_one_turn(clients)
        await wait_until(lambda: sum(server.is_lost() for server in servers) == 3, "all are closed")
        lost = [server for server in servers if server.is_lost()]
        assert [server.received for server in lost] == [b""] * 3
        for client, server in zip(clients, servers, strict=True):
            if server not in lost:
                assert await client.read(11) == server.received


async def test_an_answer_goes_out_before_its_connection_closes(port: Port) -> None:
    async with wires(port, 3) as clients:
        for server in port.protocols:
            server.closes = True
        send_in_one_turn(clients)
        for number, client in enumerate(clients):
            assert await client.read(11) == b"request %03d" % number
            assert await client.until(partial(client.end.read, 1)) == b""  # said, not cut


@pytest.mark.parametrize("end", ["eof_received", "connection_lost"])
async def test_what_came_before_the_end_is_passed_on_before_it(port: Port, end: str) -> None:
    async with wires(port, 2) as clients:
        for client, server in zip(clients, port.protocols, strict=True):
            client.end.write(b"last words")
            server.transport.data_received(client.outgoing.read())
        assert [server.received for server in port.protocols] == [b"last words", b""]
        transport = port.protocols[1].transport
        if end == "eof_received":
            transport.eof_received()
        else:
            transport.connection_lost(None)
        assert port.protocols[1].received == b"last words"


async def test_what_waits_to_be_sent_is_counted(port: Port) -> None:
    sizes: list[int] = []

    def note_size(transport: TlsTransport) -> None:
        sizes.append(transport.get_write_buffer_size())

    async with wires(port, 3) as clients:
        for server in port.protocols:
            server.does = partial(note_size, server.transport)
        send_in_one_turn(clients)
        await wait_until(lambda: len(sizes) == len(clients), "all have come")
    assert sizes == [0, 11, 11]  # the first one's has been sent
