"""TLS connections are read record by record, whatever the event loop asks for at once."""

from __future__ import annotations

import asyncio
import ssl
import tracemalloc
from pathlib import Path

from cluster.certificates.authority import Authority
from cluster.certificates.hosts import LOOPBACK_HOSTS
from cluster.client.sessions import make_tls
from datapath.tls_records import MAX_RECORD_BYTES, read_by_record

UVLOOP_READS_BYTES = 256 * 1024
MESSAGE = bytes(range(256)) * 4096


def make_contexts(directory: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return a server's context and a client's."""
    authority = Authority(directory)
    authority.create()
    authority.issue_node("n1", LOOPBACK_HOSTS)
    serving = read_by_record(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    serving.load_cert_chain(directory / "n1.crt", directory / "n1.key")
    client = make_tls(str(directory / "ca.crt"), "", "")
    assert client is not None
    return serving, client


async def test_a_read_takes_no_more_memory_than_a_record(tmp_path: Path) -> None:
    serving, calling = make_contexts(tmp_path)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = serving.wrap_bio(to_server, to_client, server_side=True)
    client = calling.wrap_bio(to_client, to_server, server_hostname="localhost")
    for end in (client, server, client, server):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    for writes, reads in ((client, server), (server, client)):
        writes.write(b"y")
        n_bytes: object = reads.read(1, buffer := bytearray(1))
        assert n_bytes == 1
        assert buffer == b"y"
        writes.write(b"x")
        tracemalloc.start()
        try:
            assert reads.read(UVLOOP_READS_BYTES) == b"x"
            assert tracemalloc.get_traced_memory()[1] < 2 * MAX_RECORD_BYTES
        finally:
            tracemalloc.stop()


async def test_large_messages_pass(tmp_path: Path) -> None:
    serving, calling = make_contexts(tmp_path)

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(len(MESSAGE)))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=serving)
    async with server:
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=calling)
        writer.write(MESSAGE)
        assert await reader.read() == MESSAGE
        writer.close()
