"""Callers by certificate on real nodes: judged by the primary, wherever they ask."""

from __future__ import annotations

import pytest

from cluster.client.aio import AsyncClient
from cluster.client.errors import NotAppliedError
from cluster.client.results import RoleRights
from tests.nodes.conftest import MakeCluster
from tests.support.cluster import UNSUSPECTING, Cluster, wait_until

pytestmark = [pytest.mark.slow]

APP = RoleRights(read=("app/",), write=("app/",))


def client_of(cluster: Cluster, name: str, node: str, token: str = "") -> AsyncClient:
    """Return a client that shows the certificate of that name to one node."""
    files = {end: str(cluster.authority.directory / f"{name}.{end}") for end in ("crt", "key")}
    return AsyncClient(
        cluster.url(node), discover=False, timeout_ms=20_000, token=token, cacert=cluster.cacert,
        cert=files["crt"], key=files["key"],
    )  # fmt: skip


async def code_of(client: AsyncClient, key: str) -> str:
    """Return the code that a write is refused with; "" if it is done."""
    try:
        await client.put(key, b"v")
    except NotAppliedError as error:
        return error.code
    return ""


async def test_a_certificate_does_what_its_role_allows_at_any_node(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(tls=True, access={}, timing=UNSUSPECTING)
    await cluster.start()
    for name in ("alice", "bob"):
        cluster.authority.issue_client(name)
    assert cluster.token is not None
    async with cluster.client() as admin:
        await admin.set_role("app", APP)
        made = await admin.create_token("app", certificate="alice")
        assert (made.id, made.token) == ("cn=alice", "")
        assert {item.id for item in await admin.list_tokens()} == {"cn=alice", cluster.token.id}
        for node in cluster.specs:
            async with client_of(cluster, "alice", node) as alice:
                await alice.put(f"app/{node}", b"v")
                found = await alice.get(f"app/{node}")
                assert found is not None
                assert [item.key async for item in alice.list("app/")]  # on the full path
                assert await code_of(alice, "other/k") == "forbidden"
            async with client_of(cluster, "bob", node) as bob:
                assert await code_of(bob, "app/k") == "unauthenticated"
            # Who shows a token is judged by it alone.
            async with client_of(cluster, "alice", node, f"oct_{'0' * 16}_{'A' * 43}") as wrong:
                assert await code_of(wrong, "app/k") == "unauthenticated"
            async with client_of(cluster, "bob", node, cluster.token.text) as root:
                await root.put("other/k", b"v")
        clients = [client_of(cluster, "alice", node) for node in cluster.specs]
        for client in clients:
            await client.put("app/k", b"v")
        await admin.revoke_token("cn=alice")

        async def gone() -> bool:
            codes = {await code_of(client, "app/k") for client in clients}
            assert codes <= {"", "unauthenticated"}
            return codes == {"unauthenticated"}

        await wait_until(gone, "the right is gone at every node, on connections that are open")
        for client in clients:
            await client.close()
