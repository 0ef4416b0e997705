"""TLS on real nodes: nothing crosses in plain text, and certificates change without a pause."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import functools
import signal
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import pytest

from cluster.certificates.authority import Validity
from cluster.certificates.facts import utc_now
from tests.nodes.conftest import MakeCluster
from tests.nodes.test_catch_up import SMALL_LOG
from tests.support.cluster import UNSUSPECTING, Cluster, Writer, wait_until
from tests.support.ports import free_address
from tests.support.tracking import track

pytestmark = [pytest.mark.slow]

DAY = dt.timedelta(days=1)
REFUSED = 78


class Tap:
    """TCP relays that look for words in all that passes, in both directions.

    `channels` has the bytes of each; what is kept is only as much as a word may be cut in.
    """

    def __init__(self, words: Iterable[bytes]) -> None:
        self._words = list(words)
        self._overlap = max(map(len, self._words)) - 1
        self._servers: list[asyncio.Server] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._copying: set[asyncio.Task[None]] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self.channels: dict[str, int] = {}
        self.found: set[tuple[str, bytes]] = set()
        self.first: dict[str, set[bytes]] = {}

    async def relay(self, channel: str, listen: str, target: str) -> None:
        """Relay connections at `listen` to `target`, both "host:port"."""
        self.channels.setdefault(channel, 0)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._writers.add(writer)
            track(self._opening)
            try:
                there, to_there = await asyncio.open_connection(*target.split(":"))
            except OSError:
                writer.close()
                return
            self._writers.add(to_there)
            for one, other in ((reader, to_there), (there, writer)):
                task = asyncio.create_task(self._copy(channel, one, other))
                self._copying.add(task)

        server = await asyncio.start_server(serve, *listen.split(":"))
        self._servers.append(server)

    async def _copy(
        self, channel: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        last = b""
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if not last:
                    self.first.setdefault(channel, set()).add(data[:2])
                last += data
                self.found |= {(channel, word) for word in self._words if word in last}
                last = last[-self._overlap :]
                self.channels[channel] += len(data)
                writer.write(data)
                await writer.drain()
        writer.close()

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        await asyncio.gather(*self._opening, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._copying, return_exceptions=True)
        for writer in self._writers:
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def tapped(cluster: Cluster, words: Iterable[bytes]) -> AsyncIterator[Tap]:
    """Put a relay before every link between nodes; the configuration is written anew."""
    tap = Tap(words)
    for source in cluster.specs:
        for target, spec in cluster.specs.items():
            if source != target:
                route = {"peer": free_address(), "raft": free_address()}
                cluster.routes[source, target] = route
                for channel, listen in route.items():
                    await tap.relay(channel, listen, getattr(spec, channel))
    cluster.write_config()
    try:
        yield tap
    finally:
        await tap.close()


@pytest.mark.parametrize(
    ("tls", "kills"),
    [
        (True, False),
        pytest.param(True, True, marks=pytest.mark.long),
        pytest.param(False, False, marks=pytest.mark.long),
    ],
)
async def test_nothing_that_is_stored_crosses_in_plain_text(
    make_cluster: MakeCluster, tls: bool, kills: bool
) -> None:
    """Load; by `kills` a failover and a snapshot. Without TLS the words are seen: it looks."""
    cluster = make_cluster(tls=tls, limits=SMALL_LOG, timing=UNSUSPECTING)
    words = [b"plain-word-in-a-key", b"plain-word-in-a-value", cluster.secret.encode()]
    async with tapped(cluster, words) as tap:
        clients = free_address()
        await cluster.start()
        primary = await cluster.primary()
        await tap.relay("client", clients, cluster.specs[primary].client)
        async with cluster.client(primary, discover=False) as client:
            await client.put("plain-word-in-a-key", b"plain-word-in-a-value")
        url = cluster.url(primary).replace(cluster.specs[primary].client, clients)
        async with cluster.client_at(url) as client:
            found = await client.get("plain-word-in-a-key")
            assert found is not None
        if kills:
            victim = cluster.others(primary)[0]
            last_held = await cluster.metric(victim, "last_index")
            await cluster.kill(victim)
            async with cluster.client() as client:
                for number in range(80):  # beyond what the log keeps for the victim
                    value = b"plain-word-in-a-value" * 380
                    await client.put(f"plain-word-in-a-key{number}", value)

            async def trimmed() -> bool:
                return await cluster.metric(primary, "log_first_index") > last_held + 1

            await wait_until(trimmed, f"{primary} keeps no log that far back")
            await cluster.start(victim)
            assert " snapshot" in cluster.nodes[victim].log()
            await cluster.kill(primary)
            async with cluster.client(*cluster.others(primary)) as client:
                await client.put("plain-word-in-a-key", b"plain-word-in-a-value")
        assert all(tap.channels[channel] for channel in ("client", "peer", "raft"))
        records = {b"\x16\x03"}
        if tls:
            assert tap.found == set()
            assert tap.first["client"] == tap.first["peer"] == records
        else:
            seen = {(channel, each) for channel in ("client", "peer") for each in words[:2]}
            assert seen <= tap.found
            assert not records & (tap.first["client"] | tap.first["peer"])


@pytest.mark.long
async def test_certificates_authority_and_secret_change_under_load(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(tls=True, timing=UNSUSPECTING)
    await cluster.start()
    async with Writer(cluster, timeout_ms=60_000) as writer:
        await writer.progress(20)
        steps: list[Callable[[], object]] = [cluster.authority.rotate]
        steps += [functools.partial(cluster.authority.renew, node) for node in cluster.replicas]
        steps += [cluster.authority.retire]
        for step in steps:
            step()
            await _taken_up(cluster, "took up the files of [tls]")
            await writer.progress(20)
        for secret in (f"{cluster.secret}\n{'n' * 40}", f"{'n' * 40}\n{cluster.secret}", "n" * 40):
            cluster.write_config(secret=secret)
            await _taken_up(cluster, "took up a changed cluster.secret")
            await writer.progress(20)
        victim = cluster.others(await cluster.primary())[0]
        await cluster.stop(victim)
        await cluster.start(victim)  # under what is new alone
    assert not list(writer.unserved())
    await cluster.wait_converged()
    await writer.verify()


@pytest.mark.long
async def test_what_expires_and_what_cannot_be_used_is_told(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(replicas=1, tls=True)
    await cluster.start()
    now = utc_now()
    cluster.authority.renew("n1", Validity(now - DAY, now + 5 * DAY))
    await _warned(cluster, "the certificate in", "expires in 5 days")
    seconds = await cluster.metric("n1", "tls_certificate_expiry_timestamp_seconds")
    assert abs(seconds - (now + 5 * DAY).timestamp()) < 2
    (cluster.authority.directory / "n1.key").write_text("half a file")
    await _warned(cluster, "changed files of [tls] are not used", "tls.key")
    assert await cluster.metric("n1", "tls_files_rejected") == 1
    cluster.authority.renew("n1")
    await wait_until(lambda: _accepted(cluster), "the renewed files are used")


@pytest.mark.parametrize("what", ["expired", "another node's", "readable by all"])
async def test_a_node_does_not_start_with_what_others_would_refuse(
    make_cluster: MakeCluster, what: str
) -> None:
    cluster = make_cluster(tls=True)
    now = utc_now()
    certificates = cluster.authority.directory
    match what:
        case "expired":
            cluster.authority.renew("n1", Validity(now - 2 * DAY, now - DAY))
            said = "onecopy certs renew n1"
        case "another node's":
            for end in ("crt", "key"):
                _copy(certificates / f"n2.{end}", certificates / f"n1.{end}")
            said = "onecopy certs node n1"
        case _:
            (certificates / "n1.key").chmod(0o644)
            said = "chmod 600"
    cluster.launch("n1")
    assert await cluster.nodes["n1"].wait_exit() == REFUSED
    log = cluster.nodes["n1"].log()
    assert said in log
    assert "Traceback" not in log
    assert "PRIVATE KEY" not in log


@pytest.mark.long
async def test_a_revoked_node_is_shut_out_while_it_runs(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(tls=True, timing=UNSUSPECTING)
    await cluster.start()
    victim, other = cluster.others(primary := await cluster.primary())
    cluster.authority.revoke(victim)
    for node in (primary, other):
        cluster.nodes[node].signal(signal.SIGHUP)
    status = await cluster.wait_in_sync(primary, other)
    assert victim not in status.in_sync
    async with cluster.client(primary, other, discover=False) as client:
        await client.put("a", b"1")
    await wait_until(
        lambda: "certificate revoked" in cluster.nodes[primary].log(), "the refusal is logged"
    )


def _copy(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())


async def _taken_up(cluster: Cluster, words: str) -> None:
    """Have every node look at its files, and wait until it says that it uses them."""
    before = {node: cluster.nodes[node].log().count(words) for node in cluster.specs}
    for node in cluster.specs:
        cluster.nodes[node].signal(signal.SIGHUP)
    for node, count in before.items():
        log = cluster.nodes[node].log
        await wait_until(lambda: log().count(words) > count, f"{node} {words}")  # noqa: B023


async def _warned(cluster: Cluster, *words: str) -> None:
    async def told() -> bool:
        status = await cluster.status("n1")
        warnings = status.warnings if status is not None else ()
        return any(all(word in text for word in words) for text in warnings)

    await wait_until(told, f"status warns of {words}")


async def _accepted(cluster: Cluster) -> bool:
    return await cluster.metric("n1", "tls_files_rejected") == 0
