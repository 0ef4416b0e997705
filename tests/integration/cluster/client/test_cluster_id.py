"""One client talks to one cluster, whatever its addresses come to lead to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest

from cluster.bulk.wire import WireTransport
from cluster.client.aio import AsyncClient
from cluster.client.errors import (
    InvalidRequestError,
    UnavailableError,
    UnknownOutcomeError,
    WrongClusterError,
)
from cluster.client.exchange import Request
from cluster.client.retries import Transport
from cluster.client.sync import Client
from tests.support.fake_api import FakeCluster, fake_cluster


class Relay:
    """What stands between a client and a node: a proxy, a tunnel. It can lead elsewhere."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.accepted = 0
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def lead_to(self, target: int) -> None:
        """Connections from now on lead there; those there are break."""
        self.target = target
        for writer in self._writers:
            writer.transport.abort()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, up_writer}
        try:
            await asyncio.gather(_pipe(reader, up_writer), _pipe(up_reader, writer))
        finally:
            self._writers -= {writer, up_writer}


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()


@asynccontextmanager
async def relay(target: int, port: int = 0) -> AsyncIterator[Relay]:
    made = Relay(target)
    server = await asyncio.start_server(made.accept, "127.0.0.1", port)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        made.lead_to(0)


def rename(nodes: FakeCluster, cluster_id: str) -> None:
    nodes.core.view = msgspec.structs.replace(nodes.core.view, cluster_id=cluster_id)


@pytest.fixture
async def other() -> AsyncIterator[FakeCluster]:
    """Another cluster on the same machine."""
    async with fake_cluster() as cluster:
        rename(cluster, "other")
        yield cluster


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not come true in time"
        await asyncio.sleep(0.01)


async def settled(client: AsyncClient) -> None:
    """Wait for what a client does in the background after its first call."""
    refresh = client._transport._refresh
    if refresh is not None:
        await asyncio.wait([refresh])


@pytest.mark.parametrize("wire", [False, True])
async def test_an_address_that_leads_to_another_cluster_is_an_error_and_nothing_is_written_there(
    nodes: FakeCluster, other: FakeCluster, wire: bool
) -> None:
    async with relay(nodes["n1"].port) as between:
        transport: Transport = (
            WireTransport([between.url], timeout_ms=5000)
            if wire
            else Transport([between.url], timeout_ms=5000, max_connections=4)
        )
        put = Request("PUT", "/v1/kv/k", {"Idempotency-Key": '"1"'}, b"v", "1", writes=True)
        assert (await transport.call(put)).status == 201
        between.lead_to(other["n1"].port)
        # The read first: a connection that has broken would leave a write unknown, rightly.
        for call in (Request("GET", "/v1/kv/k"), put, Request("DELETE", "/v1/kv/k", writes=True)):
            with pytest.raises(WrongClusterError) as caught:
                await transport.call(call)
            assert "cluster other" in str(caught.value)
            assert "cluster fake" in str(caught.value)
            assert (caught.value.expected, caught.value.found) == ("fake", "other")
        between.lead_to(nodes["n1"].port)
        assert (await transport.call(put)).status == 201, "it goes on where it belongs"
        await transport.close()
    assert other.core.executed == 0


async def test_it_is_known_before_the_first_write_leaves_which_cluster_it_is_for(
    nodes: FakeCluster, other: FakeCluster
) -> None:
    ends = [nodes["n1"].url, other["n1"].url]
    async with AsyncClient(ends, timeout_ms=500, discover=False) as client:
        # The question for the name passes; the write is applied and its answer lost.
        nodes["n1"].cuts += ["", "after"]  # type: ignore[list-item]
        with pytest.raises(UnknownOutcomeError, match="cluster other"):
            await client.put("k", b"v")
    assert nodes.core.executed == 1
    assert other.core.executed == 0


async def test_whoever_is_given_a_proxy_stays_behind_it(nodes: FakeCluster) -> None:
    async with (
        relay(nodes["n3"].port) as between,
        AsyncClient(between.url, timeout_ms=600) as client,
    ):
        for number in range(5):
            await client.put("k", str(number))
        await client.status()
        await settled(client)
        assert client.endpoints == (between.url,)
        assert nodes["n1"].accepted == nodes["n2"].accepted == 0
        between.lead_to(9)
        with pytest.raises(UnavailableError):
            await client.get("k")
        between.lead_to(nodes["n3"].port)
        with pytest.raises(InvalidRequestError, match="only its given endpoints"):
            await client.digest("n2")
        assert (await client.digest(nodes["n2"].url)).node == "n2"


async def test_an_advertised_address_where_another_cluster_listens_is_not_used(
    nodes: FakeCluster, other: FakeCluster
) -> None:
    # n1 is reached at the address that it advertises, and n2's leads to another cluster.
    members = tuple(
        msgspec.structs.replace(member, client=f"127.0.0.1:{other['n2'].port}")
        if member.id == "n2"
        else member
        for member in nodes.core.view.members
    )
    nodes.core.view = msgspec.structs.replace(nodes.core.view, members=members)
    nodes.set_primary("n2")
    async with AsyncClient(nodes["n1"].url) as client:
        for number in range(12):
            await client.put(f"k{number}", b"v")
            await asyncio.sleep(0)
        await settled(client)
        await until(lambda: len(client.endpoints) == 2)
        assert client.endpoints == (nodes["n1"].url, nodes["n3"].url)
        await client.put("last", b"v")
        with pytest.raises(WrongClusterError):
            await client.digest("n2")
    assert other.core.executed == 0
    assert nodes.core.executed == 13


async def test_a_learned_address_that_comes_to_lead_elsewhere_is_left(
    nodes: FakeCluster, other: FakeCluster
) -> None:
    async with AsyncClient(nodes["n2"].url) as client:
        await client.put("k", b"1")
        await until(lambda: len(client.endpoints) == 3)
        await client.put("k", b"2")
        port = nodes["n1"].port
        await nodes["n1"].kill()
        async with relay(other["n1"].port, port):
            await client.put("k", b"3")
            await client.put("k", b"4")
            await settled(client)
            await asyncio.gather(*(client.put(f"k{number}", b"v") for number in range(20)))
            assert nodes["n1"].url not in client.endpoints
    assert other.core.executed == 0
    assert nodes.value("k") == b"4"


async def test_discovery_can_be_switched_off(nodes: FakeCluster) -> None:
    async with AsyncClient(nodes["n2"].url, discover=False, timeout_ms=400) as client:
        await client.put("k", b"1")
        await client.status()
        await settled(client)
        assert client.endpoints == (nodes["n2"].url,)
        await nodes["n2"].kill()
        with pytest.raises(UnavailableError):
            await client.get("k")
    assert nodes["n1"].accepted == nodes["n3"].accepted == 0


async def test_a_cluster_can_be_named_beforehand(nodes: FakeCluster) -> None:
    async with AsyncClient(nodes.endpoints, cluster_id="fake") as client:
        await client.put("k", b"1")
    async with AsyncClient(nodes.endpoints, cluster_id="another") as client:
        with pytest.raises(WrongClusterError):
            await client.put("k", b"2")
        with pytest.raises(WrongClusterError):
            await client.status()
    assert nodes.core.executed == 1


async def test_a_node_that_does_not_know_its_cluster_yet_is_waited_for(nodes: FakeCluster) -> None:
    async with AsyncClient(nodes.endpoints) as client:
        await client.put("k", b"1")
        rename(nodes, "")
        waiting = asyncio.create_task(client.put("k", b"2"))
        await until(lambda: client.retries > 2)
        rename(nodes, "fake")
        await waiting
    assert nodes.value("k") == b"2"


async def test_an_answer_that_names_no_cluster_is_no_answer_of_this_one(
    nodes: FakeCluster,
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = b'{"revision":1,"epoch":1,"copies":3}'
        writer.write(
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with (
        server,
        relay(nodes["n1"].port) as between,
        AsyncClient(between.url, timeout_ms=400) as client,
    ):
        await client.put("k", b"1")
        between.lead_to(server.sockets[0].getsockname()[1])
        with pytest.raises(UnknownOutcomeError, match="does not name its cluster"):
            await client.put("k", b"2")
        with pytest.raises(UnavailableError, match="does not name its cluster"):
            await client.get("k")


async def test_the_plain_client_too(nodes: FakeCluster, other: FakeCluster) -> None:
    async with relay(nodes["n1"].port) as between:
        client = Client(between.url)
        await asyncio.to_thread(client.put, "k", b"1")
        assert client.cluster_id == "fake"
        between.lead_to(other["n1"].port)
        # A write that meets the connection as it breaks would be unknown: a read goes first.
        with pytest.raises(WrongClusterError):
            await asyncio.to_thread(client.status)
        with pytest.raises(WrongClusterError):
            await asyncio.to_thread(client.put, "k", b"2")
        await asyncio.to_thread(client.close)
    assert other.core.executed == 0


async def test_the_plain_client_keeps_to_its_endpoint_if_told_to(nodes: FakeCluster) -> None:
    client = Client(nodes["n2"].url, discover=False)
    await asyncio.to_thread(client.put, "k", b"1")
    await asyncio.to_thread(client.status)
    assert client.endpoints == (nodes["n2"].url,)
    await asyncio.to_thread(client.close)
