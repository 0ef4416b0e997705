"""Leases, locks and elections over HTTP: what they do, what is refused of them, and who waits."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from cluster.api import locks
from tests.support.raw_http import Reply, connect, fetch, kv
from tests.support.served import Local

JSON = {"Content-Type": "application/json"}
TTL_MS = 60_000
DEADLINE_S = 20.0


async def ask(base_url: str, method: str, path: str, document: object = None, **more: str) -> Reply:
    headers = {name.replace("_", "-"): value for name, value in more.items()}
    if document is None:
        return await fetch(base_url, method, path, headers=headers)
    return await fetch(base_url, method, path, msgspec.json.encode(document), {**JSON, **headers})


async def grant(base_url: str, ttl_ms: int = TTL_MS) -> str:
    reply = await ask(base_url, "POST", "/v1/leases", {"ttl_ms": ttl_ms})
    assert reply.status == 201, reply
    lease: str = reply.json["lease"]
    return lease


async def take(base_url: str, name: str, **wish: Any) -> Reply:
    return await ask(base_url, "POST", f"/v1/locks/{name}", wish or {"ttl_ms": TTL_MS})


async def until_waiting(base_url: str, path: str, count: int) -> None:
    """Poll until so many wait for a lock or an election."""
    for _ in range(1000):
        if (await ask(base_url, "GET", path)).json["waiting"] >= count:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"fewer than {count} wait")


async def test_a_lease_from_its_grant_to_its_end(base_url: str, prefix: str) -> None:
    lease = await grant(base_url)
    kept = await ask(base_url, "POST", f"/v1/leases/{lease}/keepalive")
    assert (kept.json["lease"], kept.json["ttl_ms"]) == (lease, TTL_MS)
    put = await ask(base_url, "PUT", f"{kv(prefix + 'a')}?lease={lease}")
    assert put.status == 201
    got = await ask(base_url, "GET", kv(prefix + "a"))
    assert got.headers["onecopy-lease"] == lease
    found = await ask(base_url, "GET", f"/v1/leases/{lease}")
    assert found.json["keys"] == [prefix + "a"]
    assert 0 < found.json["left_ms"] <= TTL_MS
    ended = await ask(base_url, "DELETE", f"/v1/leases/{lease}")
    assert ended.json["deleted"] == 1
    assert (await ask(base_url, "GET", kv(prefix + "a"))).code == "key_not_found"
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/keepalive")):
        reply = await ask(base_url, method, f"/v1/leases/{lease}{path}")
        assert reply.code == "lease_not_found"


async def test_many_are_kept_alive_at_once(base_url: str) -> None:
    leases = [await grant(base_url) for _ in range(3)]
    await ask(base_url, "DELETE", f"/v1/leases/{leases[1]}")
    reply = await ask(base_url, "POST", "/v1/leases/keepalive", {"leases": leases})
    assert reply.json["ttl_ms"] == {leases[0]: TTL_MS, leases[2]: TTL_MS}
    assert reply.json["gone"] == [leases[1]]


async def test_leases_are_listed_page_by_page(local: Local) -> None:
    leases = [await grant(local.base_url) for _ in range(5)]
    found: list[str] = []
    after = ""
    while True:
        reply = await ask(local.base_url, "GET", f"/v1/leases?limit=2{after}")
        found += [item["lease"] for item in reply.json["leases"]]
        if reply.json["next"] is None:
            break
        after = f"&after={reply.json['next']}"
    assert found == leases


async def test_a_put_grants_a_lease_of_its_own(base_url: str, prefix: str) -> None:
    put = await ask(base_url, "PUT", f"{kv(prefix)}?ttl_ms=5000")
    got = await ask(base_url, "GET", kv(prefix))
    assert got.headers["onecopy-lease"] == str(put.json["revision"])


async def test_a_transaction_hangs_keys_on_a_lease(base_url: str, prefix: str) -> None:
    lease = await grant(base_url)
    then = [{"put": {"key": prefix + name, "text": "1", "lease": lease}} for name in "ab"]
    await ask(base_url, "POST", "/v1/txn", {"then": then})
    found = await ask(base_url, "GET", f"/v1/leases/{lease}")
    assert found.json["keys"] == [prefix + "a", prefix + "b"]


async def test_a_write_under_a_lock(base_url: str, prefix: str) -> None:
    """K3: of a put, a delete, a range and a transaction."""
    name = f"{prefix} ü"
    quoted = kv(name).removeprefix("/v1/kv/")
    token = (await take(base_url, quoted)).json["token"]
    key = kv(prefix)
    held, lost = f"{quoted}={token}", f"{quoted}={token + 1}"
    then = {"then": [{"put": {"key": prefix, "text": "2"}}]}
    for method, path, document in (
        ("PUT", key, None),
        ("POST", "/v1/txn", then),
        ("DELETE", f"/v1/kv?prefix={prefix}", None),
        ("DELETE", key, None),
    ):
        refused = await ask(base_url, method, path, document, If_Lock=lost)
        assert (refused.status, refused.code) == (412, "lock_lost")
        done = await ask(base_url, method, path, document, If_Lock=held)
        assert done.status in {200, 201}, done


async def test_who_waits_gets_it_when_it_is_free(base_url: str, prefix: str) -> None:
    first = await take(base_url, prefix, ttl_ms=TTL_MS, note="host 1")
    refused = await take(base_url, prefix)
    assert (refused.status, refused.code) == (409, "lock_held")
    assert "host 1" in refused.json["detail"]
    waiting = [
        asyncio.create_task(take(base_url, prefix, ttl_ms=TTL_MS, wait_ms=20_000)) for _ in range(2)
    ]
    tokens = [first.json["token"]]
    await until_waiting(base_url, f"/v1/locks/{prefix}", 2)
    while waiting:
        await ask(base_url, "DELETE", f"/v1/locks/{prefix}?token={tokens[-1]}")
        done, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        [got] = [task.result() for task in done]
        tokens.append(got.json["token"])
        waiting = list(pending)
    assert tokens == sorted(set(tokens))
    await ask(base_url, "DELETE", f"/v1/locks/{prefix}?token={tokens[-1]}")
    assert (await ask(base_url, "GET", f"/v1/locks/{prefix}")).code == "not_held"


async def test_a_release_makes_the_next_one_ask_and_nobody_else(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hand-over costs the same however many wait."""
    monkeypatch.setattr(locks, "ASK_AGAIN_S", 600.0)
    held = (await take(local.base_url, "jobs")).json
    leases = [await grant(local.base_url) for _ in range(8)]
    waiting = []
    for count, lease in enumerate(leases, 1):
        wish = take(local.base_url, "jobs", lease=lease, wait_ms=60_000)
        waiting.append(asyncio.create_task(wish))
        await until_waiting(local.base_url, "/v1/locks/jobs", count)
    for lease, task in zip(leases, waiting, strict=True):
        before = local.node.executed
        await ask(local.base_url, "DELETE", f"/v1/locks/jobs?token={held['token']}")
        held = (await task).json
        assert held["lease"] == lease
        assert local.node.executed == before + 2  # the release, and the one that has it now


async def test_a_wait_ends_with_its_lease(
    base_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, and not when it asks again anyway."""
    monkeypatch.setattr(locks, "ASK_AGAIN_S", 600.0)
    await take(base_url, prefix)
    lease = await grant(base_url)
    waiting = asyncio.create_task(take(base_url, prefix, lease=lease, wait_ms=60_000))
    await until_waiting(base_url, f"/v1/locks/{prefix}", 1)
    await ask(base_url, "DELETE", f"/v1/leases/{lease}")
    async with asyncio.timeout(DEADLINE_S):
        assert (await waiting).code == "lease_not_found"


async def test_a_lock_passes_over_a_waiting_client_that_has_gone(
    base_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the next one's at once, and not only after the TTL of the one that has gone."""
    monkeypatch.setattr(locks, "ASK_AGAIN_S", 600.0)
    monkeypatch.setattr(locks, "LOOK_S", 600.0)  # so that it has gone unnoticed
    token = (await take(base_url, prefix)).json["token"]
    path = f"/v1/locks/{prefix}"
    body = msgspec.json.encode({"ttl_ms": TTL_MS, "wait_ms": 60_000})
    async with connect(base_url) as gone:
        gone.send_request("POST", path, body, JSON)
        await until_waiting(base_url, path, 1)
        following = asyncio.create_task(take(base_url, prefix, ttl_ms=TTL_MS, wait_ms=60_000))
        await until_waiting(base_url, path, 2)
    await ask(base_url, "DELETE", f"{path}?token={token}")
    async with asyncio.timeout(DEADLINE_S):
        assert (await following).json["token"] > token


async def test_who_waits_too_long_leaves_nothing(base_url: str, prefix: str) -> None:
    await take(base_url, prefix)
    before = await ask(base_url, "GET", "/v1/leases?limit=1000")
    late = await take(base_url, prefix, ttl_ms=TTL_MS, wait_ms=1)
    assert late.code == "lock_held"
    found = await ask(base_url, "GET", f"/v1/locks/{prefix}")
    assert found.json["waiting"] == 0
    after = await ask(base_url, "GET", "/v1/leases?limit=1000")
    assert after.json["leases"] == before.json["leases"]


async def test_a_place_may_be_kept_and_given_up(base_url: str, prefix: str) -> None:
    token = (await take(base_url, prefix)).json["token"]
    lease = await grant(base_url)
    for _ in range(2):
        late = await take(base_url, prefix, lease=lease, wait_ms=1, keep_place=True)
        assert late.code == "lock_held"
    path = f"/v1/locks/{prefix}"
    assert (await ask(base_url, "GET", path)).json["waiting"] == 1
    assert (await ask(base_url, "DELETE", f"{path}?lease={lease}")).json["token"] == 0
    await take(base_url, prefix, lease=lease, wait_ms=1, keep_place=True)
    await ask(base_url, "DELETE", f"{path}?token={token}")
    assert (await ask(base_url, "GET", path)).json["lease"] == lease
    given = await ask(base_url, "DELETE", f"{path}?lease={lease}")
    assert given.json["token"] > token
    assert (await ask(base_url, "GET", path)).code == "not_held"


async def test_an_election_tells_its_leader_and_who_follows(base_url: str, prefix: str) -> None:
    path = f"/v1/elections/{prefix}"
    first = await ask(base_url, "POST", path, {"ttl_ms": TTL_MS, "value": "one"})
    second = asyncio.create_task(
        ask(base_url, "POST", path, {"ttl_ms": TTL_MS, "value": "two", "wait_ms": 20_000})
    )
    token = first.json["token"]
    await until_waiting(base_url, path, 1)
    observer = asyncio.create_task(ask(base_url, "GET", f"{path}?after={token}&wait_ms=20000"))
    await ask(base_url, "DELETE", f"{path}?token={token}")
    assert (await observer).json["value"] == "two"
    assert (await second).json["election"] == prefix


@pytest.mark.parametrize(
    ("path", "document", "detail"),
    [
        ("/v1/leases", {"ttl_ms": 5}, "`$.ttl_ms`"),
        ("/v1/leases", {"ttl_ms": 10**9}, "`$.ttl_ms`"),
        ("/v1/leases", {"ttl": 5000}, "`ttl`"),
        ("/v1/leases/keepalive", {"leases": []}, "`$.leases`"),
        ("/v1/leases/keepalive", {"leases": ["1", "x"]}, "`$.leases[1]`"),
        ("/v1/leases/keepalive", {"leases": [str(2**64)]}, "`$.leases[0]`"),
        ("/v1/locks/a", {}, "`lease` or `ttl_ms`"),
        ("/v1/locks/a", {"ttl_ms": 5000, "lease": "1"}, "`lease` or `ttl_ms`"),
        ("/v1/locks/a", {"ttl_ms": 5000, "wait_ms": -1}, "`$.wait_ms`"),
        ("/v1/locks/a", {"ttl_ms": 5000, "keep_place": True}, "`$.keep_place`"),
        ("/v1/locks/a", {"ttl_ms": 5000, "note": "x" * 2000}, "`$.note`"),
        ("/v1/elections/a", {"ttl_ms": 5000, "value": "x" * 2000}, "`$.value`"),
        ("/v1/elections/a", {"ttl_ms": 5000, "note": "x"}, "`note`"),
    ],
)
async def test_a_malformed_body_names_the_field(
    base_url: str, path: str, document: object, detail: str
) -> None:
    reply = await ask(base_url, "POST", path, document)
    assert (reply.status, reply.code) == (400, "invalid_body")
    assert detail in reply.json["detail"]


@pytest.mark.parametrize("value", ["jobs", "=7", "jobs=", "jobs=0", "jobs=x", "%zz=7", "%00=7"])
async def test_a_malformed_if_lock_is_refused(base_url: str, prefix: str, value: str) -> None:
    reply = await ask(base_url, "PUT", kv(prefix), If_Lock=value)
    assert reply.status == 400
    assert "If-Lock" in reply.json["detail"]
    assert (await ask(base_url, "GET", kv(prefix))).status == 404


@pytest.mark.parametrize("query", ["lease=0", "lease=x", "ttl_ms=1", "lease=1&ttl_ms=5000"])
async def test_a_malformed_lease_of_a_put_is_refused(base_url: str, query: str) -> None:
    reply = await ask(base_url, "PUT", f"/v1/kv/a?{query}")
    assert (reply.status, reply.code) == (400, "invalid_parameter")
