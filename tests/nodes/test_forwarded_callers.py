"""Requests that claim to be another's: of clients, and of nodes that forward.

What is trusted between nodes. A node that has the secret and a certificate of the cluster is
believed in all that it says of replication and of views, and of whom a client's certificate names:
it alone has verified that. It is not believed where it forwards for a token: the token's id and
digest go with the operation, and the primary compares them with what it knows. What it forwards
without a caller is anonymous. Of what a client sends one thing says who asks, its Authorization
header; no other header, field or parameter does.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from cluster.client.results import RoleRights
from cluster.services.access_guard import CERTIFICATE, principal_of
from datapath.errors import OperationError
from datapath.operations import Operation, Principal, Query
from datapath.transport.calls import (
    ExecuteCall,
    ExecuteReturn,
    FinishUpgradeCall,
    HandoverCall,
    QueryCall,
    RemoveCall,
)
from tests.nodes.conftest import MakeCluster
from tests.support.cluster import UNSUSPECTING, Cluster
from tests.support.genuine_peer import ANSWER_S, GenuinePeer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

TIMEOUT_MS = int(ANSWER_S * 1000)
CLAIMS = (
    "X-Forwarded-User", "X-Remote-User", "Remote-User", "X-Onecopy-Caller", "Onecopy-Caller",
    "X-Onecopy-Token", "Onecopy-Token", "X-Client-Cert", "X-SSL-Client-S-DN", "SSL-Client-DN",
    "X-Forwarded-Client-Cert", "X-Onecopy-Role", "X-Onecopy-Node", "Cookie",
    "Proxy-Authorization", "Grpc-Metadata-Authorization",
)  # fmt: skip
FIELDS = ("caller", "token", "digest", "role", "principal", "node", "asked_by")


def claims(cluster: Cluster) -> list[dict[str, str]]:
    """Return headers that name the administrator, each in another way, and prove nothing."""
    assert cluster.token is not None
    admin = cluster.token
    names = (f"{CERTIFICATE}admin", "cn=admin", "admin", admin.id, "n1", "primary")
    shown = [f"{scheme}{name}" for name in names for scheme in ("", "Bearer ", "Basic ", "Node ")]
    digest = admin.digest.hex()
    shown += [f"Bearer {admin.id}:{digest}", f"Bearer oct_{admin.id}_{digest}", f"Bearer {digest}"]
    shown += [f"Bearer oct_{admin.id}_{43 * 'A'}", f"Bearer {CERTIFICATE}admin:{digest}"]
    everywhere = [dict.fromkeys(CLAIMS, value) for value in (*names, digest)]
    return [*everywhere, *({"Authorization": value} for value in shown)]


async def state(cluster: Cluster) -> Any:
    """Return what those requests would change."""
    found = [
        (await cluster.fetch("n1", "GET", target)).json
        for target in ("/v1/kv?prefix=", "/v1/roles", "/v1/tokens")
    ]
    for document in found:
        document.pop("revision", None)
    return found


async def send(cluster: Cluster, node: str, headers: dict[str, str]) -> set[int]:
    """Write a key and a role as nobody; return the statuses."""
    plain = {"Authorization": "Bearer ", **headers} if "Authorization" not in headers else headers
    query = "&".join(f"{field}={CERTIFICATE}admin" for field in FIELDS)
    document = json.dumps({"read": [""], **dict.fromkeys(FIELDS, f"{CERTIFICATE}admin")}).encode()
    typed = {**plain, "Content-Type": "application/json"}
    replies = [
        await cluster.fetch(node, "PUT", "/v1/kv/claimed", b"v", plain),
        await cluster.fetch(node, "PUT", f"/v1/kv/claimed?{query}", b"v", plain),
        await cluster.fetch(node, "PUT", "/v1/roles/claimed", document, typed),
    ]
    return {reply.status for reply in replies}


async def test_a_client_cannot_say_whose_request_it_is(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(replicas=2, witnesses=1, access={}, timing=UNSUSPECTING)
    await cluster.start()
    async with cluster.client() as admin:
        await admin.put("known", b"1")
    before = await state(cluster)
    for node in cluster.specs:
        for headers in claims(cluster):
            assert await send(cluster, node, headers) <= {401, 403}, (node, headers)
    assert await state(cluster) == before
    for node in cluster.specs:
        assert "Traceback" not in cluster.nodes[node].log()


async def refused(peer: GenuinePeer, primary: str, body: Any) -> str:
    """Forward what is to be refused; return the code."""
    async with peer.asking(primary) as caller:
        with pytest.raises(OperationError) as caught:
            await caller.call(primary, body, TIMEOUT_MS)
    return caught.value.code


@pytest.mark.parametrize("tls", [True, pytest.param(False, marks=pytest.mark.long)])
async def test_a_node_that_forwards_claims_nothing(make_cluster: MakeCluster, tls: bool) -> None:
    cluster = make_cluster(replicas=2, witnesses=1, tls=tls, access={}, timing=UNSUSPECTING)
    await cluster.start()
    async with cluster.client() as admin:
        await admin.put("known", b"1")
        await admin.set_role("reader", RoleRights(read=("known",)))
        text = (await admin.create_token("reader")).token
    reader = principal_of(text)
    assert reader is not None
    assert cluster.token is not None
    genuine = Principal(cluster.token.id, cluster.token.digest)
    wrong = {
        "no right": (reader, "forbidden"),
        "another's id": (Principal(genuine.token, reader.digest), "unauthenticated"),
        "no digest": (Principal(genuine.token), "unauthenticated"),
        "an unknown certificate": (Principal(f"{CERTIFICATE}admin"), "unauthenticated"),
        "an unknown id": (Principal("0" * 16, genuine.digest), "unauthenticated"),
        "nobody": (Principal(), "unauthenticated"),
        "no caller at all": (None, "unauthenticated"),
    }
    primary = await cluster.primary()
    await cluster.stop("w1")
    peer = GenuinePeer(cluster, "w1")
    before = await state(cluster)
    backup = next(node for node in cluster.replicas if node != primary)
    put = Operation("put", (b"known", b"changed"))
    for what, (caller, code) in wrong.items():
        operation = msgspec.structs.replace(put, caller=caller)
        asked = [
            ExecuteCall(operation, TIMEOUT_MS),
            RemoveCall(backup, TIMEOUT_MS, True, "", caller),
        ]
        asked += [HandoverCall(backup, TIMEOUT_MS, caller)]
        asked += [FinishUpgradeCall(TIMEOUT_MS, "", caller)]
        if caller is not reader:
            asked += [QueryCall(Query("get", (b"known",), caller=caller), TIMEOUT_MS)]
        for body in asked:
            assert await refused(peer, primary, body) == code, (what, body)
    assert await state(cluster) == before
    status = await cluster.status(primary)
    assert status is not None
    assert status.primary == primary
    async with peer.asking(primary) as asking:  # and the same with the right is carried out
        operation = msgspec.structs.replace(put, caller=genuine)
        answer = await asking.call(primary, ExecuteCall(operation, TIMEOUT_MS), TIMEOUT_MS)
    assert isinstance(answer, ExecuteReturn)
    assert (await cluster.fetch(primary, "GET", "/v1/kv/known")).body == b"changed"
