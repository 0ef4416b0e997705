"""The client against real sockets: what it retries, what it concludes, what it never hides."""

from __future__ import annotations

import asyncio
import gc
import time
import warnings

import pytest

from cluster.client.aio import AsyncClient
from cluster.client.errors import (
    InvalidRequestError,
    NotAppliedError,
    PreconditionFailedError,
    StorageFullError,
    UnavailableError,
    UnknownOutcomeError,
)
from cluster.client.sync import Client
from tests.support.fake_api import FakeCluster, Fault

KEYS = ["plain", "with space", "a/b//c", ".", "..", "ü€😀", "%2F", "?q=1&x#y", "\n\x00", "x" * 480]


async def until(condition: object, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "did not come true in time"
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("key", KEYS)
async def test_any_key_goes_there_and_back(nodes: FakeCluster, key: str) -> None:
    async with AsyncClient(nodes.endpoints) as client:
        put = await client.put(key, b"\x00\xff\r\n")
        assert put.created
        entry = await client.get(key)
        assert entry is not None
        assert (entry.key, entry.value, entry.revision) == (key, b"\x00\xff\r\n", put.revision)
        assert [item.key async for item in client.list()] == [key]
        assert (await client.delete(key)).deleted
        assert await client.get(key) is None
        assert not (await client.delete(key)).deleted


@pytest.mark.parametrize("key", ["", "x" * 481, "\ud800"])
async def test_what_is_no_key_is_refused_without_a_request(nodes: FakeCluster, key: str) -> None:
    async with AsyncClient(nodes.endpoints) as client:
        with pytest.raises(InvalidRequestError):
            await client.put(key, b"")
    assert nodes.core.executed == 0


async def test_conditions(nodes: FakeCluster) -> None:
    async with AsyncClient(nodes.endpoints) as client:
        first = await client.put("k", "1", if_absent=True)
        with pytest.raises(PreconditionFailedError):
            await client.put("k", "2", if_absent=True)
        second = await client.put("k", "2", if_revision=first.revision)
        with pytest.raises(PreconditionFailedError):
            await client.delete("k", if_revision=first.revision)
        assert (await client.delete("k", if_revision=second.revision)).deleted
        with pytest.raises(InvalidRequestError):
            await client.put("k", "3", if_absent=True, if_revision=1)


async def test_pages_and_bounds(nodes: FakeCluster) -> None:
    async with AsyncClient(nodes.endpoints) as client:
        for number in range(25):
            await client.put(f"a/{number:02}", str(number))
        await client.put("b", "")
        found = [item.value async for item in client.list("a/", page_size=7)]
        assert found == [str(number).encode() for number in range(25)]
        some = [item async for item in client.list(start="a/03", end="a/05", keys_only=True)]
        assert [(item.key, item.value) for item in some] == [("a/03", b""), ("a/04", b"")]


async def test_a_value_that_is_too_large_is_refused_for_good(nodes: FakeCluster) -> None:
    async with AsyncClient(nodes.endpoints) as client:
        with pytest.raises(InvalidRequestError) as caught:
            await client.put("k", bytes(3_000_000))
    assert (caught.value.status, caught.value.code) == (413, "value_too_large")


@pytest.mark.parametrize("fault", ["not_applied", "unknown_before", "unknown_after"])
async def test_a_failed_try_is_repeated_and_applied_once(nodes: FakeCluster, fault: Fault) -> None:
    nodes.faults += [fault, fault]
    async with AsyncClient(nodes.endpoints[:1]) as client:
        result = await client.put("k", b"v")
        assert client.retries == 2
    assert nodes.value("k") == b"v"
    assert (nodes.core.executed, result.revision) == (1, 1)


@pytest.mark.parametrize("cut", ["before", "after"])
async def test_a_cut_connection_is_repeated_and_applied_once(nodes: FakeCluster, cut: str) -> None:
    async with AsyncClient(nodes.endpoints, discover=False) as client:
        await client.status()
        nodes["n1"].cuts.append(cut)  # type: ignore[arg-type]
        assert (await client.put("k", b"v")).revision == 1
    assert nodes.core.executed == 1


async def test_every_try_of_a_write_has_the_same_key_and_two_writes_have_two(
    nodes: FakeCluster,
) -> None:
    nodes.faults += ["unknown_after"]
    async with AsyncClient(nodes.endpoints) as client:
        first = await client.put("k", b"1")
        second = await client.put("k", b"1")
    assert set(nodes.core.answers) == {first.idempotency_key, second.idempotency_key}
    assert len(nodes.core.answers) == 2


async def test_an_outcome_that_stays_unknown_is_raised_and_can_be_resolved(
    nodes: FakeCluster,
) -> None:
    nodes.faults += ["unknown_after"] * 100
    async with AsyncClient(nodes.endpoints[:1], timeout_ms=300) as client:
        with pytest.raises(UnknownOutcomeError) as caught:
            await client.put("k", b"v")
        nodes.faults.clear()
        again = await client.put("k", b"v", idempotency_key=caught.value.idempotency_key)
    assert (again.revision, nodes.core.executed) == (1, 1)


async def test_one_doubtful_try_outweighs_all_later_not_applied_ones(nodes: FakeCluster) -> None:
    nodes.faults += ["unknown_before", *["not_applied"] * 100]  # type: ignore[list-item]
    async with AsyncClient(nodes.endpoints[:1], timeout_ms=300) as client:
        with pytest.raises(UnknownOutcomeError):
            await client.put("k", b"v")


async def test_a_full_disk_after_a_doubtful_try_is_still_unknown(nodes: FakeCluster) -> None:
    nodes.faults += ["unknown_before", "full"]
    async with AsyncClient(nodes.endpoints[:1], timeout_ms=500) as client:
        with pytest.raises(UnknownOutcomeError):
            await client.put("k", b"v")


async def test_if_absent_that_fails_after_a_doubtful_try_is_still_unknown(
    nodes: FakeCluster,
) -> None:
    async with AsyncClient(nodes.endpoints[:1]) as client:
        await client.put("k", b"mine")
        nodes.faults += ["unknown_before"]
        # The first try may be on its way yet, and the key may be gone when it arrives.
        with pytest.raises(UnknownOutcomeError):
            await client.put("k", b"v", if_absent=True)


async def test_a_revision_that_has_passed_is_certain_even_after_a_doubtful_try(
    nodes: FakeCluster,
) -> None:
    async with AsyncClient(nodes.endpoints[:1]) as client:
        await client.put("k", b"1")
        await client.put("k", b"2")
        nodes.faults += ["unknown_before"]
        with pytest.raises(PreconditionFailedError):
            await client.put("k", b"v", if_revision=1)


async def test_only_certain_failures_are_called_not_applied(nodes: FakeCluster) -> None:
    nodes.faults += ["not_applied"] * 100
    async with AsyncClient(nodes.endpoints[:1], timeout_ms=300) as client:
        with pytest.raises(UnavailableError) as caught:
            await client.put("k", b"v")
    assert isinstance(caught.value, NotAppliedError)
    assert nodes.value("k") is None


async def test_a_full_disk_is_told_at_once(nodes: FakeCluster) -> None:
    nodes.faults += ["full"]
    async with AsyncClient(nodes.endpoints) as client:
        with pytest.raises(StorageFullError):
            await client.put("k", b"v")


async def test_nobody_there_is_unavailable_within_the_deadline(nodes: FakeCluster) -> None:
    endpoints = nodes.endpoints
    for server in nodes.servers.values():
        await server.kill()
    async with AsyncClient(endpoints, timeout_ms=400) as client:
        async with asyncio.timeout(10):
            with pytest.raises(UnavailableError):
                await client.put("k", b"v")
            with pytest.raises(UnavailableError):
                await client.get("k")


async def test_a_node_that_accepts_and_never_answers_is_left_for_another(
    nodes: FakeCluster,
) -> None:
    nodes["n1"].silence()
    async with AsyncClient(nodes.endpoints) as client:
        await client.put("k", b"v")
        asked = nodes["n1"].accepted
        ends = time.monotonic() + 0.3  # longer than n1 is avoided for its first failure
        while time.monotonic() < ends:
            await client.put("k", b"w")
        assert nodes["n1"].accepted == asked, "it went back to the silent node"
    assert nodes.value("k") == b"w"
    nodes["n1"].silence(False)


async def test_the_server_is_told_to_give_up_before_the_client(nodes: FakeCluster) -> None:
    async with AsyncClient(nodes.endpoints) as client:
        await client.put("k", b"v", timeout_ms=1500)
    assert 1000 <= nodes["n1"].node.timeouts_ms[0] <= 1300


async def test_it_learns_the_other_nodes_and_survives_the_one_it_was_given(
    nodes: FakeCluster,
) -> None:
    async with AsyncClient(nodes.endpoints[1]) as client:
        await client.put("k", b"1")
        await until(lambda: len(client.endpoints) == 3)
        await nodes["n2"].kill()
        await client.put("k", b"2")
    assert nodes.value("k") == b"2"


async def test_it_prefers_the_primary_and_follows_it(nodes: FakeCluster) -> None:
    async with AsyncClient(nodes.endpoints[2]) as client:
        await client.put("k", b"0")
        await until(lambda: len(client.endpoints) == 3)
        await client.put("k", b"1")
        before = nodes["n1"].node.requests
        await client.put("k", b"2")
        assert nodes["n1"].node.requests == before + 1
        nodes.set_primary("n2")
        await client.put("k", b"3")  # n1 forwards it, and the answer says who has executed it
        before = nodes["n2"].node.requests
        await client.put("k", b"4")
        assert nodes["n2"].node.requests == before + 1


async def test_handover_whose_answer_was_lost_is_looked_up(nodes: FakeCluster) -> None:
    nodes.faults += ["unknown_after"]
    async with AsyncClient(nodes.endpoints[:1]) as client:
        view = await client.handover("n2")
        assert (view.primary, view.epoch) == ("n2", 2)
        with pytest.raises(InvalidRequestError):
            await client.handover("n9")
        assert (await client.remove("n3")).in_sync == ("n1", "n2")
        assert (await client.status()).primary == "n2"


async def test_digest_is_asked_of_the_named_node(nodes: FakeCluster) -> None:
    async with AsyncClient(nodes.endpoints) as client:
        await client.put("k", b"v")
        assert [(await client.digest(node)).node for node in ("n2", "n3")] == ["n2", "n3"]
        assert (await client.digest(nodes["n2"].url)).node == "n2"
        with pytest.raises(InvalidRequestError):
            await client.digest("n9")


async def test_connections_are_reused_and_bounded(nodes: FakeCluster) -> None:
    async with AsyncClient(nodes.endpoints[:1], max_connections=4) as client:
        await asyncio.gather(*(client.put(f"k{number}", b"v") for number in range(50)))
        await asyncio.gather(*(client.get(f"k{number}") for number in range(50)))
    assert nodes["n1"].accepted <= 5  # four, and one that asked for the status


async def test_nothing_is_left_open(nodes: FakeCluster) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        client = AsyncClient(nodes.endpoints)
        await client.put("k", b"v")
        await client.close()
        with pytest.raises(RuntimeError):
            await client.put("k", b"v")
        unused = AsyncClient(nodes.endpoints)
        await unused.close()
        with pytest.raises(RuntimeError):
            await unused.put("k", b"v")
        del client, unused
        gc.collect()


async def test_a_cancelled_call_leaves_the_client_usable(nodes: FakeCluster) -> None:
    nodes["n1"].silence()
    async with AsyncClient(nodes.endpoints[:1]) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.put("k", b"v")
        nodes["n1"].silence(False)
        await client.put("k", b"w")


async def test_what_is_no_endpoint_is_refused() -> None:
    for wrong in ("", "ftp://x", "http://h/path", "http://user@h"):
        with pytest.raises(ValueError):
            AsyncClient(wrong)
    with pytest.raises(ValueError):
        AsyncClient([])


@pytest.mark.parametrize("key", ['with"quote', "back\\slash", "ü", "line\nbreak"])
async def test_what_is_no_idempotency_key_is_refused(nodes: FakeCluster, key: str) -> None:
    async with AsyncClient(nodes.endpoints) as client:
        with pytest.raises(InvalidRequestError):
            await client.put("k", b"v", idempotency_key=key)
    assert nodes["n1"].accepted == 0


async def test_an_answer_that_is_not_ours_is_no_success() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, AsyncClient(f"127.0.0.1:{port}", timeout_ms=500) as client:
        with pytest.raises(UnknownOutcomeError):
            await client.put("k", b"v")
        with pytest.raises(UnavailableError):
            await client.status()


async def test_the_plain_face(nodes: FakeCluster) -> None:
    def use() -> list[str]:
        with Client(nodes.endpoints) as client:
            put = client.put("k", "v", if_absent=True)
            entry = client.get("k")
            assert entry is not None
            assert entry.value == b"v"
            with pytest.raises(PreconditionFailedError):
                client.put("k", "w", if_revision=put.revision + 1)
            assert client.digest("n3").node == "n3"
            assert client.handover("n2").primary == "n2"
            assert client.remove("n3").in_sync == ("n1", "n2")
            assert client.status().primary == "n2"
            for number in range(5):
                client.put(f"x{number}", b"")
            keys = [item.key for item in client.list("x", page_size=2)]
            assert client.delete("k").deleted
        with pytest.raises(RuntimeError):
            client.get("k")
        client.close()
        return keys

    assert await asyncio.to_thread(use) == [f"x{number}" for number in range(5)]
