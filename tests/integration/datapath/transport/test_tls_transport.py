"""TLS over a plain transport: whatever the other side cuts, holds back or leaves out."""

from __future__ import annotations

import _ssl
import asyncio
import contextlib
import ctypes
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from cluster.certificates.authority import Authority
from cluster.certificates.hosts import LOOPBACK_HOSTS
from cluster.client.sessions import make_tls
from datapath.tls_records import MAX_RECORD_BYTES
from datapath.transport.tls_transport import TlsTransport
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

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, TlsTransport)
        self.transport = transport
        self.events.append("made")

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

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
        self, port: Port, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.reader, self.writer = reader, writer
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
    found = Wire(port, reader, writer)
    try:
        await found.until(found.end.do_handshake, piece_bytes)
        await wait_until(lambda: bool(port.protocols), "the other end is ready")
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
