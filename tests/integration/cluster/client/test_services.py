"""Calling services with both clients: typed, retried, and every way in which a call can end."""

from __future__ import annotations

import asyncio
from typing import Any, assert_type

import pytest

from cluster.client.aio import AsyncClient
from cluster.client.errors import (
    InvalidRequestError,
    NotAppliedError,
    RefusedError,
    UnavailableError,
    UnknownOutcomeError,
)
from cluster.client.sync import Client
from datapath.errors import OperationNotAppliedError as ServerNotAppliedError
from tests.support.doc_shop import Order, Shop
from tests.support.fake_api import FakeCluster, Fault


async def test_a_class_is_called_as_if_it_were_here(nodes: FakeCluster) -> None:
    def call() -> None:
        with Client(nodes.endpoints) as client:
            shop = client.service(Shop)
            order = shop.reserve(item="apple", count=2)
            assert_type(order, Order)
            assert order == Order("apple", 2, 98)
            assert shop.reserve("apple").left == 97
            left = shop.left(item="apple", at_least=3)
            assert_type(left, int)
            assert left == 97
            by_name = client.service("shop")
            assert by_name.reserve(item="apple") == {"item": "apple", "count": 1, "left": 96}
            assert client.service("shop", reads=True).left(item="apple") == 96

    await asyncio.to_thread(call)


async def test_with_asyncio(nodes: FakeCluster) -> None:
    async with AsyncClient(nodes.endpoints) as client:
        shop = client.service(Shop)
        order = await shop.call(Shop.reserve, item="apple", count=2)
        assert_type(order, Order)
        assert (await shop.reserve(item="apple")).left == order.left - 1
        assert await client.service(Shop, consistency="stale").call(Shop.left, "apple") == 97
        elsewhere: Any = await client.service(Shop, name="shop").left(item="pear")
        assert elsewhere == 100


async def test_a_refusal_has_the_services_code_and_is_not_tried_again(nodes: FakeCluster) -> None:
    async with AsyncClient(nodes.endpoints) as client:
        with pytest.raises(RefusedError, match="only 100 of apple") as caught:
            await client.service(Shop).reserve(item="apple", count=101)
        assert caught.value.code == "sold_out"
        assert client.retries == 0


@pytest.mark.parametrize("code", ["service_failed", "service_timeout"])
async def test_what_failed_in_the_service_is_not_tried_again(nodes: FakeCluster, code: str) -> None:
    async with AsyncClient(nodes.endpoints) as client:
        nodes.core.fail_with = ServerNotAppliedError(code, "so")
        for method in ("reserve", "left"):
            with pytest.raises(NotAppliedError, match="so") as caught:
                await getattr(client.service(Shop), method)(item="apple")
            assert (type(caught.value), caught.value.code) == (NotAppliedError, code)
        assert client.retries == 0


async def test_what_failed_in_the_service_after_a_try_that_may_have_been_applied_is_unknown(
    nodes: FakeCluster,
) -> None:
    nodes.faults += ["unknown_before"]
    async with AsyncClient(nodes.endpoints) as client:
        await client.status()
        nodes.core.fail_with = ServerNotAppliedError("service_failed", "so")
        with pytest.raises(UnknownOutcomeError) as caught:
            await client.service(Shop).reserve(item="apple")
        assert caught.value.idempotency_key


@pytest.mark.parametrize("fault", ["not_applied", "unknown_before", "unknown_after"])
async def test_a_failed_try_is_repeated_and_applied_once(nodes: FakeCluster, fault: Fault) -> None:
    nodes.faults += [fault, fault]
    async with AsyncClient(nodes.endpoints[:1]) as client:
        assert (await client.service(Shop).reserve(item="apple")).left == 99
        assert client.retries == 2
    assert nodes.core.executed == 1


async def test_an_unknown_outcome_is_resolved_under_its_key(nodes: FakeCluster) -> None:
    nodes.faults += ["unknown_after"] * 100
    async with AsyncClient(nodes.endpoints, timeout_ms=300) as client:
        with pytest.raises(UnknownOutcomeError) as caught:
            await client.service(Shop).reserve(item="apple")
        nodes.faults.clear()
        error = caught.value
        again = client.service(
            Shop,
            idempotency_key=error.idempotency_key,
            idempotency_after=error.idempotency_after,
        )
        assert (await again.reserve(item="apple")).left == 99
    assert nodes.core.executed == 1


async def test_a_service_that_has_not_started_is_waited_for(nodes: FakeCluster) -> None:
    nodes.core.fail_next = ServerNotAppliedError("service_starting", "in a moment")
    async with AsyncClient(nodes.endpoints) as client:
        assert await client.service(Shop).left(item="apple") == 100
        nodes.core.fail_with = ServerNotAppliedError("service_starting", "in a moment")
        with pytest.raises(UnavailableError, match="in a moment"):
            await client.service(Shop, timeout_ms=200).left(item="apple")


async def test_what_is_wrong_is_said_before_anything_is_sent(nodes: FakeCluster) -> None:
    async with AsyncClient(nodes.endpoints) as client:
        shop, by_name = client.service(Shop), client.service("shop")
        with pytest.raises(TypeError, match="unexpected keyword argument 'size'"):
            await shop.reserve(item="apple", size=2)
        with pytest.raises(TypeError, match="missing a required argument: 'item'"):
            await shop.reserve()
        with pytest.raises(AttributeError, match="Shop has no operation or query 'close'"):
            await shop.close()
        with pytest.raises(TypeError, match="give the arguments by name"):
            await by_name.reserve("apple")
        with pytest.raises(InvalidRequestError, match="cannot be sent as JSON"):
            await by_name.reserve(item=object())
        with pytest.raises(InvalidRequestError, match="argument 'item': expected str") as caught:
            await by_name.reserve(item=5)
        assert caught.value.code == "invalid_argument"
        with pytest.raises(InvalidRequestError, match="no service 'none'"):
            await client.service("none").reserve(item="x")
    assert nodes.core.executed == 0
