"""The client port under TLS: the same answers, and a clear word to who comes the wrong way."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cluster.api.certificate_name import certificate_name
from cluster.api.hosts import Hosts
from cluster.api.listener import MIN_UNFINISHED_HANDSHAKES
from cluster.api.routes import HttpApi
from cluster.api.settings import HttpSettings
from cluster.certificates.authority import Authority, Validity
from cluster.certificates.facts import utc_now
from cluster.certificates.hosts import LOOPBACK_HOSTS
from cluster.certificates.node_tls import NodeTls
from cluster.client.aio import AsyncClient
from cluster.client.errors import ClientError, UnavailableError
from cluster.client.exchange import Request
from cluster.config.file import load_config, render_config
from cluster.config.model import NodeConfig
from cluster.config.tls_section import TlsSection
from tests.support.cluster import wait_until
from tests.support.local_node import local_node
from tests.support.raw_http import connect, fetch, kv

DAY = dt.timedelta(days=1)
DEADLINE_S = 60.0
MAX_LINES = 10


class Served:
    """A node's API on loopback, and the authority that has issued its certificate."""

    def __init__(
        self,
        directory: Path,
        *,
        hosts: tuple[str, ...] = LOOPBACK_HOSTS,
        settings: HttpSettings = HttpSettings(),  # noqa: B008 -- frozen
    ) -> None:
        self.authority = Authority(directory / "certs")
        self.authority.create()
        self.authority.issue_node("n1", hosts)
        nodes = {
            "n1": NodeConfig(
                client="127.0.0.1:1", peer="127.0.0.1:2", raft="127.0.0.1:3", data="n1"
            )
        }
        section = TlsSection(
            ca="certs/ca.crt",
            certificate="certs/{node}.crt",
            key="certs/{node}.key",
            client_ca="certs/ca.crt",
            crl="certs/ca.crl",
        )
        self.config = directory / "cluster.toml"
        self.config.write_text(render_config("demo", "x" * 32, nodes, tls=section))
        self.tls = NodeTls(load_config(self.config), "n1")
        self.api = HttpApi(local_node(), settings, hosts=Hosts(["t"]), tls=self.tls)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.api.listener.port}"

    @property
    def cacert(self) -> str:
        return str(self.authority.directory / "ca.crt")

    def client(
        self, name: str = "", *, issuer: Authority | None = None, timeout_ms: int = 20_000
    ) -> AsyncClient:
        """Return a client that shows a certificate of that name, by `issuer` or the cluster's."""
        directory = (issuer or self.authority).directory
        cert, key = (str(directory / f"{name}.{end}") if name else "" for end in ("crt", "key"))
        return AsyncClient(
            self.url,
            timeout_ms=timeout_ms,
            discover=False,
            cacert=self.cacert,
            cert=cert,
            key=key,
        )

    def names(self) -> set[str]:
        """What the open connections' clients are called."""
        server = self.api._server
        open_now = [connection._transport for connection in server._fast]
        open_now += [connection.transport for connection in server.connections]
        return {certificate_name(transport) for transport in open_now}


@contextlib.asynccontextmanager
async def serving(served: Served) -> AsyncIterator[Served]:
    await served.api.listener.start("127.0.0.1", 0)
    try:
        yield served
    finally:
        await served.api.listener.stop()


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(Served(tmp_path)) as found:
        yield found


async def test_both_paths_answer_as_without_tls(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    large = bytes(range(256)) * 4000
    async with served.client() as client:
        await client.put("a", b"1")
        await client.put("large", large)
        found = await client.get("large")
        assert found is not None
        assert found.value == large
        assert [item.key async for item in client.list()] == ["a", "large"]
    async with connect(served.url) as connection:  # many at once, and then no more
        for number in range(50):
            connection.send_request("PUT", kv(f"k{number}"), b"x")
        for _ in range(50):
            assert (await connection.receive()).status == 201
    assert "eof_received" not in caplog.text


async def test_plain_http_at_the_port_is_told_what_to_do(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    reply = await fetch(served.url.replace("https", "http"), "GET", "/v1/cluster")
    assert (reply.status, b"https://" in reply.body) == (400, True)
    async with AsyncClient(served.url.replace("https", "http"), timeout_ms=20_000) as client:
        with pytest.raises(ClientError, match="speaks TLS only: use an https:// URL"):
            await client.get("a")
    assert "a client's connection was refused: this port speaks TLS only" in caplog.text


async def test_tls_at_a_plain_port_is_told_what_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    api = HttpApi(local_node(), hosts=Hosts(["t"]))
    await api.listener.start("127.0.0.1", 0)
    Authority(tmp_path).create()
    url, cacert = f"https://127.0.0.1:{api.listener.port}", str(tmp_path / "ca.crt")
    try:
        async with AsyncClient(url, timeout_ms=60_000, cacert=cacert) as client:
            with pytest.raises(UnavailableError, match="answers without TLS: use an http:// URL"):
                await client.get("a")
    finally:
        await api.listener.stop()
    assert "a client speaks TLS to this port, which has none" in caplog.text


async def test_a_client_recognises_its_cluster(served: Served, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other")
    other.create()
    for cacert in (str(other.directory / "ca.crt"), ""):
        async with AsyncClient(served.url, timeout_ms=60_000, cacert=cacert) as client:
            with pytest.raises(UnavailableError, match=r"certificate is refused.*ONECOPY_CACERT"):
                await client.get("a")


async def test_a_client_refuses_a_node_of_another_host(tmp_path: Path) -> None:
    async with serving(Served(tmp_path, hosts=("db1.example",))) as served:
        assert "127.0.0.1" in served.tls.load_warnings[0]
        async with served.client() as client:
            with pytest.raises(UnavailableError, match="IP address mismatch"):
                await client.get("a")


async def test_a_client_is_known_by_its_certificate(served: Served) -> None:
    served.authority.issue_client("alice")
    async with served.client("alice") as client, served.client() as nobody:
        await client.put("a", b"1")
        await nobody.get("a")
        assert served.names() == {"alice", ""}
        await client._transport.call(Request("GET", "/v1/cluster"))  # on the full path
        assert "alice" in served.names()


@pytest.mark.parametrize("whose", ["foreign", "expired", "not yet valid", "revoked"])
async def test_a_certificate_that_does_not_count_is_refused(
    served: Served, tmp_path: Path, whose: str, caplog: pytest.LogCaptureFixture
) -> None:
    now = utc_now()
    issuer = served.authority
    match whose:
        case "foreign":
            issuer = Authority(tmp_path / "other")
            issuer.create()
            issuer.issue_client("alice")
        case "expired":
            served.authority.issue_client("alice", Validity(now - 2 * DAY, now - DAY))
        case "not yet valid":
            served.authority.issue_client("alice", Validity(now + DAY, now + 2 * DAY))
        case _:
            served.authority.issue_client("alice")
            served.authority.revoke("alice")
            assert served.tls.take_up(load_config(served.config))
    async with served.client("alice", issuer=issuer, timeout_ms=2000) as client:
        with pytest.raises(UnavailableError):
            await client.put("a", b"1")
    assert "a client's connection was refused: [SSL: CERTIFICATE_VERIFY_FAILED]" in caplog.text
    async with served.client() as client:
        assert await client.get("a") is None


async def test_a_revoked_certificates_open_connections_are_closed(served: Served) -> None:
    for name in ("alice", "bob"):
        served.authority.issue_client(name)
    async with (
        served.client("alice") as alice,
        served.client("bob") as bob,
    ):
        await alice.put("a", b"1")
        await bob.get("a")
        served.authority.revoke("alice")
        assert served.tls.take_up(load_config(served.config))
        served.api.close_refused(served.tls.is_revoked)
        await wait_until(lambda: "alice" not in served.names(), "alice's connections are closed")
        assert "bob" in served.names()


async def test_an_older_tls_is_refused(served: Served) -> None:
    context = ssl.create_default_context(cafile=served.cacert)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection("127.0.0.1", served.api.listener.port, ssl=context)


async def test_who_never_begins_holds_up_neither_others_nor_a_stop(served: Served) -> None:
    silent = [
        await asyncio.open_connection("127.0.0.1", served.api.listener.port) for _ in range(50)
    ]
    half = await asyncio.open_connection("127.0.0.1", served.api.listener.port)
    half[1].write(b"\x16\x03\x01\x02\x00")  # a record that does not go on
    async with served.client() as client:
        await client.put("a", b"1")
    async with asyncio.timeout(DEADLINE_S):
        await served.api.listener.stop()
    for _, writer in (*silent, half):
        writer.close()


@pytest.mark.parametrize("missing", ["cacert", "cert", "key"])
def test_a_file_that_is_missing_is_named(tmp_path: Path, missing: str) -> None:
    authority = Authority(tmp_path)
    authority.create()
    authority.issue_client("a")
    files = {"cacert": tmp_path / "ca.crt", "cert": tmp_path / "a.crt", "key": tmp_path / "a.key"}
    files[missing].unlink()
    options = {name: str(path) for name, path in files.items()}
    with pytest.raises(ValueError, match=missing):
        AsyncClient(cacert=options["cacert"], cert=options["cert"], key=options["key"])


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01\x00"])
async def test_who_does_not_finish_a_handshake_makes_room_for_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    most = 3 * MIN_UNFINISHED_HANDSHAKES
    served = Served(tmp_path, settings=HttpSettings(max_connections=most, reserved_connections=1))
    server = served.api._server
    async with serving(served), contextlib.AsyncExitStack() as stack:
        port = served.api.listener.port
        unfinished = []
        for _ in range(most + 10):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.callback(writer.close)
            writer.write(sent)
            unfinished.append(reader)
        for reader in unfinished[:10]:  # the oldest ones have gone
            assert await reader.read() == b""
        assert server.open_connections == 0
        clients = [await stack.enter_async_context(served.client()) for _ in range(most - 1)]
        for number, client in enumerate(clients):
            await client.put(f"k{number}", b"v")
        assert server.open_connections == most - 1
        for reader in unfinished[:-MIN_UNFINISHED_HANDSHAKES]:  # they had what clients need
            assert await reader.read() == b""
        for client in clients:
            await client.put("k", b"v")
    assert "had not finished their handshake" in caplog.text
    assert len(caplog.records) <= MAX_LINES
