"""GET /v1/elections/{name}/observe: who leads, every change of it, and how a stream resumes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.integration.cluster.api.test_leases import TTL_MS, ask, grant, until_waiting
from tests.integration.cluster.api.test_watch import NDJSON, Stream, refused
from tests.support.local_node import local_node
from tests.support.raw_http import connect
from tests.support.served import Local, Serve

DEADLINE_S = 20.0


@asynccontextmanager
async def observe(
    base_url: str, name: str, query: str = "", headers: dict[str, str] | None = None
) -> AsyncIterator[Stream]:
    async with connect(base_url) as connection:
        target = f"/v1/elections/{name}/observe{query}"
        connection.send_request("GET", target, None, headers or {})
        head = await asyncio.wait_for(connection.reader.readuntil(b"\r\n\r\n"), DEADLINE_S)
        assert head.startswith(b"HTTP/1.1 200 "), head
        yield Stream(connection)


async def next_leader(stream: Stream) -> tuple[int, Any]:
    """Return (revision, leader) of the next event that is no progress."""
    while (event := await stream.next_event()).type == "progress":
        assert event.data == {"revision": event.id}
    assert event.type == "message"
    assert event.data["revision"] == event.id
    return event.data["revision"], event.data["leader"]


async def stand(base_url: str, name: str, value: str, **more: Any) -> dict[str, Any]:
    wish = {"ttl_ms": TTL_MS, "value": value, **more}
    reply = await ask(base_url, "POST", f"/v1/elections/{name}", wish)
    assert reply.status == 200, reply
    found: dict[str, Any] = reply.json
    return found


def leader_of(elected: dict[str, Any], value: str) -> dict[str, Any]:
    return {"token": elected["token"], "lease": elected["lease"], "value": value}


async def test_it_begins_with_who_leads_and_tells_every_change(base_url: str, prefix: str) -> None:
    path = f"/v1/elections/{prefix}"
    async with observe(base_url, prefix) as stream:
        assert (await next_leader(stream))[1] is None
        one = await stand(base_url, prefix, "one ✓")
        assert await next_leader(stream) == (one["token"], leader_of(one, "one ✓"))
        async with observe(base_url, prefix) as late:
            revision, leader = await next_leader(late)
            assert (revision >= one["token"], leader) == (True, leader_of(one, "one ✓"))
        waiting = asyncio.create_task(stand(base_url, prefix, "two", wait_ms=20_000))
        await until_waiting(base_url, path, 1)  # to stand is no change of the leader
        await ask(base_url, "DELETE", f"{path}?token={one['token']}")
        two = await waiting
        assert await next_leader(stream) == (two["token"], leader_of(two, "two"))
        ended = await ask(base_url, "DELETE", f"/v1/leases/{two['lease']}")
        assert await next_leader(stream) == (ended.json["revision"], None)


async def test_it_resumes_after_an_event_without_gap_or_double(base_url: str, prefix: str) -> None:
    path = f"/v1/elections/{prefix}"
    async with observe(base_url, prefix) as stream:
        begun, _ = await next_leader(stream)
    changes: list[tuple[int, dict[str, Any] | None]] = []
    for value in ("one", "two"):
        elected = await stand(base_url, prefix, value)
        resigned = await ask(base_url, "DELETE", f"{path}?token={elected['token']}")
        changes.append((elected["token"], leader_of(elected, value)))
        changes.append((resigned.json["revision"], None))
    revisions = [begun, *(revision for revision, _ in changes)]
    for number, revision in enumerate(revisions[:-1]):
        resumed = {"Last-Event-ID": str(revision)}
        async with observe(base_url, prefix, "?after=0", resumed) as stream:
            assert [await next_leader(stream) for _ in changes[number:]] == changes[number:]
    async with observe(base_url, prefix, f"?after={revisions[1]}") as stream:
        assert await next_leader(stream) == changes[1]


async def test_many_observers_of_many_elections_in_both_forms(local: Local) -> None:
    """They are sent what is encoded once for all, and each what it has asked for."""
    names = [f"e{number % 2}" for number in range(6)]
    async with (
        observe(local.base_url, names[0]) as one,
        observe(local.base_url, names[1]) as two,
        observe(local.base_url, names[2], "", NDJSON) as three,
        observe(local.base_url, names[3], "", NDJSON) as four,
    ):
        for stream in (one, two):
            await next_leader(stream)
        for stream, name in ((three, "e0"), (four, "e1")):
            assert await stream.next_line() == {"revision": 0, "election": name, "leader": None}
        lease = await grant(local.base_url)
        for name in ("e0", "e1"):  # one lease leads both, and loses both at one revision
            await ask(local.base_url, "POST", f"/v1/elections/{name}", {"lease": lease})
        ended = await ask(local.base_url, "DELETE", f"/v1/leases/{lease}")
        for stream in (one, two):
            assert (await next_leader(stream))[1]["lease"] == lease
            assert await next_leader(stream) == (ended.json["revision"], None)
        for stream, name in ((three, "e0"), (four, "e1")):
            line = await stream.next_line()
            assert (line["election"], line["leader"]["lease"]) == (name, lease)
            assert (await stream.next_line())["leader"] is None


async def test_a_stopping_node_says_so_and_closes(local: Local) -> None:
    async with observe(local.base_url, "main") as stream:
        await next_leader(stream)
        await local.api.listener.drain()
        event = await stream.next_event()
        assert (event.type, event.id, event.data["code"]) == ("end", None, "stopping")
        with pytest.raises(EOFError):
            await stream.next_event()


@pytest.mark.parametrize(
    ("name", "query", "status", "code", "named"),
    [
        ("%00", "", 400, "invalid_name", "zero"),
        ("", "", 400, "invalid_name", "1 to 200 bytes"),
        ("n" * 201, "", 400, "invalid_name", "200"),
        ("main", "?after=x", 400, "invalid_parameter", "'after'"),
        ("main", "?after=-1", 400, "invalid_parameter", "'after'"),
        ("main", "?after=1&after=2", 400, "invalid_parameter", "'after'"),
        ("main", "?wait_ms=1", 400, "unknown_parameter", "wait_ms"),
        ("main", "?after=99", 400, "future_revision", "'after' is 99"),
    ],
)
async def test_bad_input_names_the_field(
    local: Local, name: str, query: str, status: int, code: str, named: str
) -> None:
    reply = await refused(local.base_url, f"/v1/elections/{name}/observe{query}")
    assert (reply.status, reply.code) == (status, code), reply
    assert named in reply.json["detail"]
    assert local.api.streams.count == 0


async def test_headers_that_cannot_be_served_are_refused(local: Local) -> None:
    target = "/v1/elections/main/observe"
    reply = await refused(local.base_url, target, {"Last-Event-ID": "x"})
    assert (reply.status, reply.code) == (400, "invalid_header")
    reply = await refused(local.base_url, target, {"Accept": "application/json"})
    assert (reply.status, reply.code) == (406, "not_acceptable")


async def test_history_that_is_gone_is_refused_with_the_oldest_that_is_kept(local: Local) -> None:
    for _ in range(4):
        elected = await stand(local.base_url, "main", "one")
        await ask(local.base_url, "DELETE", f"/v1/elections/main?token={elected['token']}")
    local.node.first_index = 5
    reply = await refused(local.base_url, "/v1/elections/main/observe?after=3")
    assert (reply.status, reply.code, reply.json["oldest"]) == (410, "revision_compacted", 4)
    async with observe(local.base_url, "main") as stream:  # who leads now is always known
        assert (await next_leader(stream))[1] is None


async def test_a_witness_and_a_full_node_send_observers_to_others(serve: Serve) -> None:
    node = local_node()
    node.history = None  # type: ignore[assignment]
    local = await serve(node=node)
    reply = await refused(local.base_url, "/v1/elections/main/observe")
    assert (reply.status, reply.code) == (404, "no_data")
    local = await serve()
    local.api.streams.max_watchers = 0
    reply = await refused(local.base_url, "/v1/elections/main/observe")
    assert (reply.status, reply.code) == (503, "too_many_watchers")
