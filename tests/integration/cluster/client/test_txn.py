"""Transactions and range deletes by both clients."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from cluster.client.aio import AsyncClient
from cluster.client.errors import InvalidRequestError
from cluster.client.results import GetResult, Item, Page, TxnDeleteResult, TxnPutResult
from cluster.client.sync import Client
from cluster.client.txn import TxnBuilder, gt, lt, ne
from tests.support.fake_api import FakeCluster


async def test_a_transaction_reads_like_what_it_does(nodes: FakeCluster) -> None:
    async with AsyncClient(nodes.endpoints) as client:
        first = await client.put("a", b"old")
        await client.put("tmp/1", b"x")
        done = await (
            client.txn()
            .if_("a", revision=first.revision, value="old")
            .if_("b", exists=False)
            .put("a", b"\xff")
            .put("b", "text")
            .delete(prefix="tmp/")
            .get("a")
            .get("none")
            .list("b", limit=5)
            .else_()
            .get("a")
            .commit()
        )
        found = GetResult(
            key="a", value=b"\xff", revision=done.revision, create_revision=first.revision,
            version=2, node="n1", epoch=1,
        )  # fmt: skip
        listed = Item(
            key="b", value=b"text", revision=done.revision, create_revision=done.revision, version=1
        )
        assert (done.succeeded, done.copies, done.epoch) == (True, 3, 1)
        assert done.revision > first.revision
        assert done.idempotency_key
        assert done.results == (
            TxnPutResult(created=False),
            TxnPutResult(created=True),
            TxnDeleteResult(deleted=1),
            found,
            None,
            Page(items=(listed,), revision=done.revision, cursor=None),
        )
        assert await client.get("a") == found
        other = await client.txn().if_("a", revision=first.revision).else_().get("b").commit()
        assert not other.succeeded
        (entry,) = other.results
        assert isinstance(entry, GetResult)
        assert entry.value == b"text"


async def test_without_asyncio_it_is_the_same(nodes: FakeCluster) -> None:
    await asyncio.to_thread(_without_asyncio, nodes)


def _without_asyncio(nodes: FakeCluster) -> None:
    with Client(nodes.endpoints) as client:
        done = client.txn().if_("k", exists=False).put("k", "1").commit(min_copies=2)
        assert done.succeeded
        assert not client.txn().if_("k", exists=False).put("k", "2").commit(ack="local").succeeded
        seen = client.txn().if_("k", version=gt(0)).get("k").commit(timeout_ms=5000)
        (entry,) = seen.results
        assert isinstance(entry, GetResult)
        assert entry.value == b"1"
        document = msgspec.json.encode({"then": [{"delete": {"key": "k"}}]})
        assert client.transact(document).results == (TxnDeleteResult(deleted=1),)
        client.put("t/1", b"")
        assert client.delete_range(start="t/", end="t/9").deleted == 1


async def test_a_put_hangs_its_key_on_a_lease(nodes: FakeCluster) -> None:
    async with AsyncClient(nodes.endpoints) as client:
        lease = await client.grant_lease(60)
        await client.txn().put("leased", b"1", lease=lease).put("plain", b"1").commit()
        leased, plain = await client.get("leased"), await client.get("plain")
        assert leased is not None
        assert plain is not None
        assert (leased.lease, plain.lease) == (lease, "")
        assert (await client.txn().if_("leased", lease=lease).get("leased").commit()).succeeded
        for wrong, named in (("99", "99"), ("x", "lease")):
            with pytest.raises(InvalidRequestError, match=named):
                await client.txn().put("leased", b"2", lease=wrong).commit()
        await client.txn().put("leased", b"3").commit()  # takes it off
        assert (await client.revoke_lease(lease)).deleted == 0


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        (lambda txn: txn.if_("k", version=lt(2)), False),
        (lambda txn: txn.if_("k", version=ne(1), create_revision=gt(0)), True),
        (lambda txn: txn.if_("k", value=gt("a")), True),
        (lambda txn: txn.if_("k", value=ne(b"b")), False),
        (lambda txn: txn.if_("k", lease=ne("0")), False),
        (lambda txn: txn.if_("k", lease="0"), True),
        (lambda txn: txn.if_lock("jobs", 7), False),
    ],
)
async def test_comparisons(
    nodes: FakeCluster, condition: Callable[[TxnBuilder], object], holds: bool
) -> None:
    async with AsyncClient(nodes.endpoints) as client:
        await client.put("k", b"a")
        await client.put("k", b"b")
        txn = client.txn()
        condition(txn)
        assert (await txn.get("k").commit()).succeeded is holds


async def test_one_that_only_reads_is_not_remembered(nodes: FakeCluster) -> None:
    async with AsyncClient(nodes.endpoints) as client:
        read = await client.txn().get("k").commit()
        assert read.idempotency_key == ""
        assert not nodes.core.sent_after
        await client.txn().get("k").else_().put("k", "1").commit()
        assert nodes.core.sent_after


async def test_a_repeat_under_its_key_gets_the_first_answer(nodes: FakeCluster) -> None:
    async with AsyncClient(nodes.endpoints) as client:
        txn = client.txn().if_("k", exists=False).put("k", "1")
        first = await txn.commit()
        again = await txn.commit(idempotency_key=first.idempotency_key)
        assert again == first
        assert nodes.core.executed == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda txn: txn.if_("k"),
        lambda txn: txn.if_("", exists=True),
        lambda txn: txn.if_("k", version=-1),
        lambda txn: txn.if_lock("jobs", 0),
        lambda txn: txn.put("", b""),
        lambda txn: txn.delete(),
        lambda txn: txn.delete("k", prefix="p"),
        lambda txn: txn.list(limit=0),
        lambda txn: txn.else_().else_(),
    ],
)
def test_what_is_wrong_is_refused_at_once(make: Callable[[TxnBuilder], object]) -> None:
    with pytest.raises(InvalidRequestError):
        make(TxnBuilder())


@pytest.mark.parametrize(
    "make",
    [
        lambda txn: txn.if_("k", exists=1),
        lambda txn: txn.if_("k", version="1"),
        lambda txn: txn.if_("k", value=gt(7)),
        lambda txn: txn.put("k", 1),
    ],
)
def test_wrong_types_are_type_errors(make: Callable[[TxnBuilder], object]) -> None:
    with pytest.raises(TypeError):
        make(TxnBuilder())


async def test_what_the_cluster_refuses_names_the_path(nodes: FakeCluster) -> None:
    async with AsyncClient(nodes.endpoints) as client:
        with pytest.raises(InvalidRequestError, match=r"`\$\.then\[1\]`") as caught:
            await client.txn().put("k", "1").delete("k").commit()
        assert caught.value.code == "invalid_body"


async def test_a_range_is_deleted_part_by_part(nodes: FakeCluster) -> None:
    async with AsyncClient(nodes.endpoints) as client:
        for number in range(5):
            await client.put(f"t/{number}", b"")
        first = await client.delete_range("t/", limit=2)
        assert (first.deleted, first.copies) == (2, 3)
        assert first.cursor
        rest = await client.delete_range(cursor=first.cursor)
        assert (rest.deleted, rest.cursor) == (3, None)
        with pytest.raises(InvalidRequestError):
            await client.delete_range("", start="", end="")
