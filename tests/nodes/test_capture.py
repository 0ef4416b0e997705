"""What a listener on the network has: everything that crosses, captured by tshark."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.nodes.conftest import MakeCluster
from tests.nodes.test_catch_up import SMALL_LOG
from tests.support.cluster import UNSUSPECTING, Cluster, wait_until

TSHARK = shutil.which("tshark")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(
        TSHARK is None, reason="needs tshark: apt-get install tshark (make install does not)"
    ),
]

KEY, VALUE = "captured-word-in-a-key", b"captured-word-in-a-value"
LOCK, NOTE = "captured-name-of-a-lock", "captured-note-of-a-token"
BUFFER_MB = 64
N_WRITES, REPEATED = 120, 330


@contextlib.asynccontextmanager
async def captured(cluster: Cluster, file: Path) -> AsyncIterator[None]:
    """Capture what crosses the ports of all nodes, whole packets."""
    assert TSHARK is not None
    ports = {
        address.rpartition(":")[2]
        for spec in cluster.specs.values()
        for address in (spec.client, spec.peer, spec.raft)
    }
    process = await asyncio.create_subprocess_exec(
        TSHARK, "-i", "lo", "-q", "-B", str(BUFFER_MB), "-w", str(file),
        "-f", " or ".join(f"tcp port {port}" for port in sorted(ports)),
        stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    said = b""
    async with asyncio.timeout(60):
        while b"Capturing on" not in said:
            said += await process.stderr.read(1) or pytest.fail(f"tshark: {said.decode()}")
    try:
        await wait_until(file.exists, "tshark captures")
        yield
    finally:
        process.terminate()
        _, rest = await process.communicate()
        assert b"dropped" not in rest.replace(b"0 packets dropped", b""), rest


@pytest.mark.parametrize("tls", [True, False])
async def test_no_key_value_token_or_secret_crosses(
    make_cluster: MakeCluster, tmp_path: Path, tls: bool
) -> None:
    """Load, a snapshot, a failover. Without TLS the capture has the words, so that it looks."""
    cluster = make_cluster(tls=tls, access={}, limits=SMALL_LOG, timing=UNSUSPECTING)
    assert cluster.token is not None
    file = tmp_path / "captured.pcapng"
    async with captured(cluster, file):
        await cluster.start()
        async with cluster.client() as admin:
            made = await admin.create_token("admin", note=NOTE)
            await admin.put(KEY, VALUE)
        primary = await cluster.primary()
        victim, other = cluster.others(primary)
        await cluster.kill(victim)
        async with (
            cluster.client(other, discover=False, token=made.token) as client,
            client.lock(LOCK, ttl=60),
        ):
            for number in range(N_WRITES):  # forwarded; beyond what the log keeps for the victim
                await client.put(f"{KEY}{number}", VALUE * REPEATED)
        await cluster.start(victim)
        assert " snapshot" in cluster.nodes[victim].log()
        await cluster.kill(primary)
        async with cluster.client(*cluster.others(primary)) as client:
            await client.put(KEY, VALUE)
            assert [item.key async for item in client.list(KEY)]
    data = await asyncio.to_thread(file.read_bytes)
    secrets = [cluster.token.text, made.token, cluster.secret]
    words = [KEY, VALUE.decode(), LOCK, NOTE, *secrets, *(text[-20:] for text in secrets)]
    found = {word for word in words if word.encode() in data}
    assert len(data) > N_WRITES * REPEATED * len(VALUE)
    if tls:
        assert found == set()
    else:
        assert set(words[:6]) <= found
        assert cluster.secret not in found  # it never crosses, TLS or not
