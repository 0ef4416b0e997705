"""Watches over HTTP: what is sent, how a stream resumes and ends, what is refused."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple, cast

import pytest

from cluster.api import streams as streams_module
from cluster.api.settings import HttpSettings
from cluster.services.kv import KeyValue
from datapath.execution.changes import SCAN_SIZE_BYTES
from tests.support.local_node import LocalNode
from tests.support.raw_http import Connection, Reply, connect, fetch, kv
from tests.support.replicas import until
from tests.support.served import Local, Serve

DEADLINE_S = 20.0
NDJSON = {"Accept": "application/x-ndjson"}


class SseEvent(NamedTuple):
    type: str
    id: int | None
    data: Any


class Stream:
    """The events of one watch, as they come."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def next_event(self) -> SseEvent:
        fields: dict[str, str] = {}
        while True:
            line = (await asyncio.wait_for(self.connection.reader.readline(), DEADLINE_S)).decode()
            if not line:
                raise EOFError
            if line == "\n" and "data" in fields:
                number = fields.get("id")
                return SseEvent(
                    fields.get("event", "message"),
                    None if number is None else int(number),
                    json.loads(fields["data"]),
                )
            name, _, value = line.rstrip("\n").partition(": ")
            fields[name] = value

    async def next_change(self) -> SseEvent:
        """Return the next event that is no progress."""
        while (event := await self.next_event()).type == "progress":
            assert event.data == {"revision": event.id, "changes": []}
        return event

    async def next_line(self) -> Any:
        line = await asyncio.wait_for(self.connection.reader.readline(), DEADLINE_S)
        if not line:
            raise EOFError
        return json.loads(line)


@asynccontextmanager
async def watch(
    base_url: str, query: str, headers: dict[str, str] | None = None
) -> AsyncIterator[Stream]:
    async with connect(base_url) as connection:
        connection.send_request("GET", f"/v1/watch?{query}", None, headers or {})
        head = await asyncio.wait_for(connection.reader.readuntil(b"\r\n\r\n"), DEADLINE_S)
        assert head.startswith(b"HTTP/1.1 200 "), head
        yield Stream(connection)


async def put(base_url: str, key: str, value: bytes = b"v") -> int:
    return int((await fetch(base_url, "PUT", kv(key), value)).json["revision"])


def put_of(key: str, text: str, revision: int) -> dict[str, object]:
    """The change that created a key."""
    head = {"revision": revision, "create_revision": revision, "version": 1}
    return {"key": key, "text": text, **head}


async def refused(base_url: str, target: str, headers: dict[str, str] | None = None) -> Reply:
    return await fetch(base_url, "GET", target, None, headers or {})


# --- what is sent ---


async def test_a_stream_begins_with_where_it_is_and_goes_on_with_what_changes(local: Local) -> None:
    first = await put(local.base_url, "before")
    async with watch(local.base_url, "prefix=a/") as stream:
        assert await stream.next_event() == SseEvent(
            "progress", first, {"revision": first, "changes": []}
        )
        await put(local.base_url, "b")
        second = await put(local.base_url, "a/1", "✓".encode())
        third = await put(local.base_url, "a/2", b"\xff\x00")
        fourth = (await fetch(local.base_url, "DELETE", kv("a/1"))).json["revision"]
        assert await stream.next_event() == SseEvent(
            "message",
            second,
            {"revision": second, "changes": [put_of("a/1", "✓", second)]},
        )
        [change] = (await stream.next_event()).data["changes"]
        assert base64.b64decode(change["value"]) == b"\xff\x00"
        assert change["revision"] == third
        assert "text" not in change
        assert (await stream.next_event()).data == {
            "revision": fourth,
            "changes": [{"key": "a/1", "deleted": True, "reason": "deleted", "revision": fourth}],
        }


async def test_a_stream_gives_nothing_that_was_acknowledged_before_it_was_asked_for(
    local: Local,
) -> None:
    feed, behind = local.node.feed, []
    take = feed.on_committed
    feed.on_committed = lambda *record: behind.append(record)  # type: ignore[method-assign]
    first = await put(local.base_url, "k")  # at another node, which is ahead
    async with watch(local.base_url, "key=k") as stream:
        feed.on_committed = take  # type: ignore[method-assign]
        for record in behind:
            take(*record)
        second = await put(local.base_url, "k")
        events = [await stream.next_event() for _ in range(2)]
        assert [event.data["revision"] for event in events] == [first, second]
        assert [len(event.data["changes"]) for event in events] == [0, 1]


async def test_ndjson_is_a_line_an_event(local: Local) -> None:
    async with watch(local.base_url, "key=k", NDJSON) as stream:
        assert await stream.next_line() == {"revision": 0, "changes": []}
        revision = await put(local.base_url, "k")
        assert await stream.next_line() == {
            "revision": revision,
            "changes": [put_of("k", "v", revision)],
        }
        await local.api.listener.drain()
        assert (await stream.next_line())["end"]["code"] == "stopping"


async def test_nothing_is_missing_after_a_revision_and_nothing_comes_twice(local: Local) -> None:
    revisions = [await put(local.base_url, f"k{number % 7}") for number in range(50)]
    for after in (0, revisions[20], revisions[-1]):
        async with watch(local.base_url, f"prefix=k&after={after}") as stream:
            missed = [revision for revision in revisions if revision > after]
            assert [(await stream.next_change()).id for _ in missed] == missed
            newest = await put(local.base_url, "k-new")
            assert (await stream.next_change()).id == newest
            revisions.append(newest)


async def test_last_event_id_goes_before_after(local: Local) -> None:
    for number in range(5):
        await put(local.base_url, f"k{number}")
    async with watch(local.base_url, "prefix=k&after=0", {"Last-Event-ID": "3"}) as stream:
        assert (await stream.next_event()).id == 3
        assert [(await stream.next_change()).id for _ in range(2)] == [4, 5]


async def test_a_quiet_watch_is_told_how_far_it_is(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams_module, "PROGRESS_INTERVAL_S", 0.0)
    async with watch(local.base_url, "key=quiet") as stream:
        revision = await put(local.base_url, "other")
        async with asyncio.timeout(DEADLINE_S):
            while (event := await stream.next_event()).id != revision:
                assert event.type == "progress"


# --- one change of one key ---


async def test_the_next_change_of_a_key_is_awaited(local: Local) -> None:
    first = await put(local.base_url, "k")
    reply = await fetch(local.base_url, "GET", f"{kv('k')}?after=0")
    assert reply.json == {
        "revision": first, "changes": [put_of("k", "v", first)]
    }  # fmt: skip
    waiting = asyncio.create_task(
        fetch(local.base_url, "GET", f"{kv('k')}?after={first}&timeout_ms=20000")
    )
    await until(lambda: local.api.streams.count > 0, "watchers come and go")
    await put(local.base_url, "other")
    second = await put(local.base_url, "k", b"w")
    assert (await waiting).json["changes"] == [
        {**put_of("k", "w", second), "create_revision": first, "version": 2}
    ]
    assert (await waiting).headers["onecopy-revision"] == str(second)


async def test_without_a_change_it_says_how_far_there_was_none(local: Local) -> None:
    await put(local.base_url, "k")
    other = await put(local.base_url, "other")
    reply = await fetch(local.base_url, "GET", f"{kv('k')}?after=1&timeout_ms=50")
    assert reply.json == {"revision": other, "changes": []}
    assert local.api.streams.count == 0


async def test_who_waits_for_a_change_and_goes_is_forgotten(local: Local) -> None:
    async with connect(local.base_url) as connection:
        connection.send_request("GET", f"{kv('k')}?after=0&timeout_ms=60000", None, {})
        await until(lambda: local.api.streams.count > 0, "watchers come and go")
    await until(lambda: not local.api.streams.count, "watchers come and go")
    assert local.node.feed.parked == 0


# --- slow, stopped, many ---


async def test_who_reads_nothing_is_held_little_for_and_misses_nothing(local: Local) -> None:
    local.node.feed._recent_bytes = 1  # all but the newest is read from the log
    streams = local.api.streams
    async with watch(local.base_url, "prefix=k") as slow, watch(local.base_url, "prefix=k") as fast:
        [slow_connection, _] = list(streams._open)
        slow_reader = cast("asyncio.Transport", slow.connection.writer.transport)
        slow_reader.pause_reading()
        revisions = []
        value = b"v" * 40_000
        for number in range(300):  # 12 MB: more than the sockets' buffers
            revisions.append(await put(local.base_url, f"k{number}", value))
            assert (await fast.next_change()).id == revisions[-1]
        assert slow_connection._is_paused
        assert slow_connection._transport is not None
        held_bytes = slow_connection._transport.get_write_buffer_size()
        assert held_bytes < streams_module.WATCH_BUFFER_SIZE_BYTES + 2 * SCAN_SIZE_BYTES
        assert streams.memory.held_bytes > 0
        slow_reader.resume_reading()
        assert [(await slow.next_change()).id for _ in revisions] == revisions
    await until(lambda: not streams.count, "watchers come and go")
    assert streams.memory.held_bytes == 0


async def test_watchers_are_bounded_and_their_places_given_back(serve: Serve) -> None:
    local = await serve(HttpSettings(max_watchers=2))
    async with watch(local.base_url, "prefix="), watch(local.base_url, "key=a"):
        reply = await refused(local.base_url, "/v1/watch?prefix=")
        assert (reply.status, reply.code) == (503, "too_many_watchers")
        assert "limits.max_watchers" in reply.json["detail"]
        assert reply.headers["retry-after"]
        reply = await refused(local.base_url, f"{kv('k')}?after=0")
        assert reply.code == "too_many_watchers"
    await until(lambda: not local.api.streams.count, "watchers come and go")
    async with watch(local.base_url, "prefix="):
        assert local.api.streams.count == 1


@pytest.mark.parametrize("target", ["/v1/watch?prefix=", "/v1/elections/e/observe"])
async def test_watchers_that_begin_together_are_bounded_too(serve: Serve, target: str) -> None:
    local = await serve(HttpSettings(max_watchers=2))
    local.node.hold = asyncio.Event()
    async with AsyncExitStack() as open_ones:
        clients = [await open_ones.enter_async_context(connect(local.base_url)) for _ in range(3)]
        for client in clients:
            client.send_request("GET", target, None, {})
        await until(lambda: local.node.waiting == len(clients), "all of them ask the primary")
        local.node.hold.set()
        heads = [await asyncio.wait_for(each.reader.readline(), DEADLINE_S) for each in clients]
    assert sorted(heads) == [*2 * [b"HTTP/1.1 200 OK\r\n"], b"HTTP/1.1 503 Service Unavailable\r\n"]


async def test_watchers_take_no_place_of_other_clients(serve: Serve) -> None:
    local = await serve(HttpSettings(max_connections=2, reserved_connections=0))
    async with (
        watch(local.base_url, "key=a"),
        watch(local.base_url, "key=b"),
        watch(local.base_url, "key=c"),
    ):
        assert (await fetch(local.base_url, "PUT", kv("a"), b"")).status == 201


async def test_what_a_watcher_still_sends_is_dropped(local: Local) -> None:
    async with watch(local.base_url, "prefix=k") as stream:
        stream.connection.send_request("PUT", kv("k"), b"not applied", {})
        stream.connection.send(b"\xff" * 100_000)
        revision = await put(local.base_url, "k")
        assert (await stream.next_change()).id == revision


# --- the end ---


async def test_a_stopping_node_says_so_and_closes(local: Local) -> None:
    async with watch(local.base_url, "prefix=k") as stream:
        await stream.next_event()
        waiting = asyncio.create_task(
            fetch(local.base_url, "GET", f"{kv('k')}?after=0&timeout_ms=60000")
        )
        await until(lambda: local.api.streams.count == 2, "watchers come and go")
        draining = asyncio.create_task(local.api.listener.drain())
        event = await stream.next_event()
        assert (event.type, event.id, event.data["code"]) == ("end", None, "stopping")
        with pytest.raises(EOFError):
            await stream.next_event()
        assert (await waiting).json == {"revision": 0, "changes": []}
        reply = await refused(local.base_url, "/v1/watch?prefix=")
        assert (reply.status, reply.code) == (503, "stopping")
        await draining


async def test_a_replica_that_a_snapshot_has_brought_up_sends_no_gap(local: Local) -> None:
    await put(local.base_url, "k")
    async with watch(local.base_url, "prefix=k") as stream:
        assert (await stream.next_event()).id == 1
        local.node.first_index = 101
        local.node.feed.on_snapshot(100)
        event = await stream.next_event()
        assert (event.type, event.data["code"], event.data["oldest"]) == (
            "end", "revision_compacted", 100
        )  # fmt: skip
        with pytest.raises(EOFError):
            await stream.next_event()


async def test_a_node_that_is_long_out_of_touch_sends_its_watchers_away(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams_module, "OUT_OF_TOUCH_S", 0.0)
    async with watch(local.base_url, "prefix=k") as stream:
        await stream.next_event()
        local.node.ready = False
        event = await stream.next_event()
        assert (event.type, event.data["code"]) == ("end", "not_ready")
    assert (await refused(local.base_url, "/v1/watch?prefix=")).code == "not_ready"
    local.node.ready = True
    await until(lambda: local.api.streams.ended is None, "watchers come and go")
    async with watch(local.base_url, "prefix=k"):
        pass


# --- what is refused ---


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("", "say what to watch"),
        ("after=3", "say what to watch"),
        ("key=", "'key' is empty"),
        ("key=a&prefix=b", "'key' excludes prefix"),
        ("key=a&start=a&end=b", "'key' excludes end and start"),
        ("start=b&end=a", "'start' must be below 'end'"),
        ("prefix=a&start=b", "'start' must be below 'end'"),
        ("prefix=" + "k" * 481, "480"),
        ("prefix=&after=x", "'after' must be a whole number"),
        ("prefix=&after=-1", "'after' must be a whole number"),
        ("prefix=&after=9223372036854775808", "'after' must be a whole number"),
        ("prefix=&limit=3", "limit"),
        ("prefix=a&prefix=b", "given twice"),
    ],
)
async def test_a_watch_of_nothing_or_nonsense_says_what_is_wrong(
    local: Local, query: str, named: str
) -> None:
    reply = await refused(local.base_url, f"/v1/watch?{query}")
    assert reply.status == 400
    assert named in reply.json["detail"]
    assert local.api.streams.count == 0


@pytest.mark.parametrize("last", ["x", "", "-1", "9" * 19, "9" * 30])
async def test_a_last_event_id_that_is_none_is_refused(local: Local, last: str) -> None:
    reply = await refused(local.base_url, "/v1/watch?prefix=", {"Last-Event-ID": last})
    assert (reply.status, reply.code) == (400, "invalid_header")


async def test_the_future_is_refused_by_name(local: Local) -> None:
    await put(local.base_url, "k")
    for target in ("/v1/watch?prefix=&after=2", f"{kv('k')}?after=2"):
        reply = await refused(local.base_url, target)
        assert (reply.status, reply.code) == (400, "future_revision")
        assert "revision 1" in reply.json["detail"]


async def test_history_that_is_gone_is_refused_with_the_oldest_that_is_kept(local: Local) -> None:
    for _ in range(9):
        await put(local.base_url, "k")
    local.node.first_index = 5
    for target in ("/v1/watch?prefix=&after=3", f"{kv('k')}?after=3"):
        reply = await refused(local.base_url, target)
        assert (reply.status, reply.code, reply.json["oldest"]) == (410, "revision_compacted", 4)
    async with watch(local.base_url, "prefix=&after=4") as stream:
        assert (await stream.next_change()).id == 5


async def test_a_witness_has_nothing_to_watch(serve: Serve) -> None:
    node = LocalNode(KeyValue())
    node.history = None  # type: ignore[assignment]
    local = await serve(node=node)
    for target in ("/v1/watch?prefix=", f"{kv('k')}?after=0"):
        reply = await refused(local.base_url, target)
        assert (reply.status, reply.code) == (404, "no_data")


async def test_only_streams_are_served(local: Local) -> None:
    reply = await refused(local.base_url, "/v1/watch?prefix=", {"Accept": "application/json"})
    assert (reply.status, reply.code) == (406, "not_acceptable")
