"""Query parameters: what they do, and that nothing misspelt goes unnoticed."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.raw_http import fetch, kv

WRITE = ("ack", "min_copies", "timeout_ms")
READ = ("consistency", "max_staleness_ms", "timeout_ms")
RANGE = ("prefix", "start", "end", "limit", "cursor", "keys_only", *READ)


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [
        ("PUT", "/v1/kv/a", WRITE),
        ("DELETE", "/v1/kv/a", WRITE),
        ("GET", "/v1/kv/a", READ),
        ("GET", "/v1/kv", RANGE),
        ("DELETE", "/v1/cluster/nodes/n9", ("timeout_ms",)),
        ("POST", "/v1/cluster/handover", ("timeout_ms",)),
        ("GET", "/v1/cluster", ()),
        ("GET", "/v1/digest", ()),
    ],
)
async def test_an_unknown_parameter_is_refused_and_the_known_are_listed(
    base_url: str, method: str, target: str, allowed: tuple[str, ...]
) -> None:
    reply = await fetch(base_url, method, f"{target}?min_copy=2", b"" if method == "PUT" else None)
    assert (reply.status, reply.code) == (400, "unknown_parameter")
    assert "'min_copy'" in reply.json["detail"]
    assert all(name in reply.json["detail"] for name in allowed)


@pytest.mark.parametrize("target", ["/livez", "/readyz", "/primary", "/metrics", "/openapi.json"])
async def test_probes_may_add_what_they_like(base_url: str, target: str) -> None:
    with_query = await fetch(base_url, "GET", f"{target}?cache=1234")
    assert with_query.status == (await fetch(base_url, "GET", target)).status
    assert with_query.status in {200, 503}


@pytest.mark.parametrize(
    ("method", "query"),
    [
        ("PUT", "ack=some"),
        ("PUT", "ack="),
        ("PUT", "ack"),
        ("PUT", "min_copies=0"),
        ("PUT", "min_copies=-1"),
        ("PUT", "min_copies=1e1"),
        ("PUT", "min_copies=%D9%A1"),  # a digit, but not an ASCII one
        ("PUT", "min_copies=256"),
        ("PUT", "min_copies=99999999999999999999"),
        ("PUT", "timeout_ms=0"),
        ("PUT", "timeout_ms=600001"),
        ("PUT", "timeout_ms=%ff"),
        ("PUT", "timeout_ms=%1"),
        ("PUT", "ack=local&ack=local"),
        ("PUT", "min_copies=2&ack=local"),
        ("DELETE", "ack=any"),
        ("GET", "consistency=eventual"),
        ("GET", "max_staleness_ms=5&consistency=linearizable"),
        ("GET", "max_staleness_ms=5&consistency=confirmed"),
        ("GET", "max_staleness_ms=5"),
        ("GET", "max_staleness_ms=-5&consistency=stale"),
        ("GET", "max_staleness_ms=2147483648&consistency=stale"),
    ],
)
async def test_a_malformed_parameter_is_refused_by_name(
    base_url: str, prefix: str, method: str, query: str
) -> None:
    body = b"x" if method == "PUT" else None
    reply = await fetch(base_url, method, f"{kv(prefix)}?{query}", body)
    assert (reply.status, reply.code) == (400, "invalid_parameter")
    assert f"'{query.partition('=')[0]}'" in reply.json["detail"]
    assert (await fetch(base_url, "GET", kv(prefix))).status == 404  # nothing was written


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=", "keys_only=1", "start=" + "k" * 481, "prefix=%ff"]
)
async def test_a_malformed_range_parameter_is_refused_by_name(base_url: str, query: str) -> None:
    reply = await fetch(base_url, "GET", f"/v1/kv?{query}")
    assert (reply.status, reply.code) == (400, "invalid_parameter")
    assert f"'{query.partition('=')[0]}'" in reply.json["detail"]


async def test_local_acknowledgement_says_so(base_url: str, prefix: str) -> None:
    early = await fetch(base_url, "PUT", f"{kv(prefix)}?ack=local", b"x")
    assert early.json["ack"] == "local"
    assert early.json["copies"] >= 1
    removed = await fetch(base_url, "DELETE", f"{kv(prefix)}?ack=local")
    assert (removed.json["ack"], removed.json["deleted"]) == ("local", True)
    full = await fetch(base_url, "PUT", f"{kv(prefix)}?ack=all", b"x")
    assert "ack" not in full.json


async def test_min_copies_is_met_or_refused(base_url: str, prefix: str) -> None:
    assert (await fetch(base_url, "PUT", f"{kv(prefix)}?min_copies=1", b"x")).json["copies"] >= 1
    reply = await fetch(base_url, "PUT", f"{kv(prefix)}?min_copies=200&timeout_ms=300", b"y")
    assert (reply.status, reply.code) == (503, "not_enough_copies")
    assert int(reply.headers["retry-after"]) >= 1
    assert reply.json["outcome"] in {"not_applied", "unknown"}
    if reply.json["outcome"] == "not_applied":
        assert (await fetch(base_url, "GET", kv(prefix))).body == b"x"


async def test_a_stale_read_is_answered_here(base_url: str, prefix: str) -> None:
    await fetch(base_url, "PUT", kv(prefix), b"x")
    for query in ("consistency=stale", "consistency=stale&max_staleness_ms=600000"):
        async with asyncio.timeout(10):
            # Stale is what it says: a backup may have the value a moment later.
            while (reply := await fetch(base_url, "GET", f"{kv(prefix)}?{query}")).status == 404:
                pass
        assert (reply.status, reply.body) == (200, b"x")


async def test_a_confirmed_read_sees_what_was_written(base_url: str, prefix: str) -> None:
    for value in (b"1", b"2", b"3"):
        await fetch(base_url, "PUT", kv(prefix), value)
        reply = await fetch(base_url, "GET", f"{kv(prefix)}?consistency=confirmed")
        assert (reply.status, reply.body) == (200, value)
        page = await fetch(base_url, "GET", f"/v1/kv?prefix={prefix}&consistency=confirmed")
        assert (page.status, len(page.json["items"])) == (200, 1)


async def test_empty_parts_of_a_query_are_nothing(base_url: str, prefix: str) -> None:
    assert (await fetch(base_url, "PUT", f"{kv(prefix)}?", b"x")).status == 201
    assert (await fetch(base_url, "GET", f"{kv(prefix)}?&timeout_ms=900&")).status == 200
