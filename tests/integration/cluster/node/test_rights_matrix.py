"""A1 at every route: without the right a request is refused and changes nothing, at every node."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest

from cluster.client.results import RoleRights
from tests.support.cluster import Cluster
from tests.support.matrix import Attempt, attempts
from tests.support.raw_http import Reply

pytestmark = pytest.mark.slow

ROLES = {
    "none": RoleRights(),
    "read": RoleRights(read=("app/",)),
    "write": RoleRights(write=("app/",)),
    "watch": RoleRights(watch=("app/",)),
    "lock": RoleRights(lock=("",)),
    "call": RoleRights(call=("shop",)),
    "elsewhere": RoleRights(("x/",), ("x/",), ("x/",), ("x/",), ("other",)),
}
AT_ONCE = 16
HOLD = {"write", "lock", "elsewhere"}


def allowed(attempt: Attempt) -> set[str]:
    """Return the roles that a request is not refused to, by what the document says."""
    match attempt.right:
        case "open" | "status" if attempt.path != "/v1/txn":
            return set(ROLES)
        case "status":  # the transaction of the matrix writes a key
            return {"write"}
        case "lease" if "{name}" in attempt.path:  # to release a lock
            return {"lock"}
        case "lease":
            return HOLD
        case right:
            return {right} & set(ROLES)


async def state(cluster: Cluster) -> Any:
    """Return all that the refused requests of the matrix might have changed."""
    found = []
    for target in ("/v1/kv?prefix=", "/v1/locks", "/v1/leases", "/v1/tokens", "/v1/roles"):
        document = (await cluster.fetch("n1", "GET", target)).json
        found.append({name: part for name, part in document.items() if name != "revision"})
    view = await cluster.status("n1")
    assert view is not None
    return found, view.epoch, view.version, {n: item.client for n, item in view.nodes.items()}


async def ask(cluster: Cluster, node: str, attempt: Attempt, authorization: str) -> Reply:
    """Send a request; where a busy machine's node could not ask its primary in time, again."""
    headers = {**attempt.headers, "Authorization": authorization}
    while True:
        reply = await cluster.fetch(node, attempt.method, attempt.target, attempt.body, headers)
        if reply.status not in {503, 504} or attempt.path in {"/readyz", "/primary"}:
            return reply


async def try_refused(
    cluster: Cluster, node: str, attempt: Attempt, tokens: dict[str, str], wrong: list[str]
) -> None:
    """Send a request without a token, with wrong ones, and with those of the wrong roles."""
    for header in ["", *wrong]:
        reply = await ask(cluster, node, attempt, header)
        is_refused = reply.status == 401
        assert is_refused == (attempt.right != "open"), (node, attempt, header, reply)
        if is_refused:
            assert reply.headers["www-authenticate"].startswith("Bearer")
    for role in set(ROLES) - allowed(attempt):
        reply = await ask(cluster, node, attempt, f"Bearer {tokens[role]}")
        assert reply.status == 403, (node, attempt, role, reply)


async def try_allowed(
    cluster: Cluster, node: str, attempt: Attempt, tokens: dict[str, str]
) -> None:
    """Send it with the tokens of the roles that may; whatever the answer is, it is not refused."""
    for role in allowed(attempt):
        if role == "elsewhere" and "{id}" in attempt.path:
            continue  # a lease of another role is refused, and one that is gone is not
        reply = await ask(cluster, node, attempt, f"Bearer {tokens[role]}")
        assert reply.status not in {401, 403}, (node, attempt, role, reply)


async def all_of(tries: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Make all of them, some at a time."""
    free = asyncio.Semaphore(AT_ONCE)

    async def one(trying: Coroutine[Any, Any, None]) -> None:
        async with free:
            await trying

    await asyncio.gather(*map(one, tries))


async def test_what_has_no_right_is_refused_and_changes_nothing_at_any_node(
    cluster: Cluster,
) -> None:
    tokens: dict[str, str] = {}
    async with cluster.client() as admin:
        await admin.put("app/k", b"first")
        for name, rights in ROLES.items():
            await admin.set_role(name, rights)
            tokens[name] = (await admin.create_token(name)).token
    document = json.loads((await cluster.fetch("n1", "GET", "/openapi.json")).body)
    matrix = attempts(document)
    assert len(matrix) > 40
    before = await state(cluster)
    wrong = [
        "Bearer oct_0000000000000000_" + 43 * "A",
        "Bearer " + next(iter(tokens.values()))[:-1] + "~",
        "Basic dTpw",
    ]
    refused = [
        try_refused(cluster, node, attempt, tokens, wrong)
        for node in cluster.specs
        for attempt in matrix
    ]
    await all_of(refused)
    assert await state(cluster) == before
    await all_of([try_allowed(cluster, node, a, tokens) for node in cluster.specs for a in matrix])
    lines = (cluster.directory / "audit-n1.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert {"admin", "refused"} <= {event["event"] for event in events}
    assert not any(token in line for line in lines for token in (*tokens.values(), "first"))
