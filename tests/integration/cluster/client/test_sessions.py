"""The connections of a client end with it."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import aiohttp
import pytest

from cluster.certificates.authority import Authority
from cluster.certificates.hosts import LOOPBACK_HOSTS
from cluster.client.sessions import explain_tls, make_session, make_tls
from tests.support.ports import free_address

PART = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"


async def test_a_dropped_stream_is_closed_without_the_nodes_farewell(tmp_path: Path) -> None:
    """The loop may end next: it would leave the connection open."""
    authority = Authority(tmp_path)
    authority.create()
    authority.issue_node("n1", LOOPBACK_HOSTS)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "n1.crt", tmp_path / "n1.key")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(PART)
        held.append(writer)

    held: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with make_session(0, make_tls(str(tmp_path / "ca.crt"), "", "")) as session:
            response = await session.get(f"https://127.0.0.1:{port}/")
            assert response.connection is not None
            assert response.connection.transport is not None
            connection = response.connection.transport.get_extra_info("socket")
            response.close()
            for _ in range(5):  # what was called soon has been called
                await asyncio.sleep(0)
            assert connection.fileno() == -1
        for writer in held:
            writer.transport.abort()


@pytest.mark.parametrize("tls", [None, ssl.create_default_context()])
async def test_an_error_names_no_context(tls: ssl.SSLContext | None) -> None:
    address = free_address()
    async with make_session(1, tls) as session:
        with pytest.raises(aiohttp.ClientConnectorError) as caught:
            await session.get(f"http://{address}/")
    assert f"Cannot connect to host {address} [" in explain_tls(caught.value)
