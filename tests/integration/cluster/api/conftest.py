"""What the API's tests run against: a served node, at a base URL.

Tests that need no more than `base_url` hold for any node of any cluster. Those that make the node
fail, or set the API's bounds, take `local` or `serve`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from typing import cast

import msgspec
import pytest
import uvloop

from cluster.api.groups import GroupNode
from cluster.api.hosts import Hosts
from cluster.api.routes import HttpApi, ServedNode
from cluster.api.settings import HttpSettings
from cluster.groups.group_map import Group
from datapath.operations import Operation
from tests.support.group_pair import HIGH, LOW, Pair, know, node_of
from tests.support.local_node import LocalNode, local_node
from tests.support.served import Local, Serve

EARLIER = b"cart{7}/earlier"  # a key of group g2


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run on the loop that nodes run on: its transports differ from asyncio's own."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is documented of other paths than keys is the same on both paths: one suffices."""
    for item in items:
        params = (
            item.callspec.params
            if isinstance(item, pytest.Function) and hasattr(item, "callspec")
            else {}
        )
        path = params.get("path")
        if path not in {None, "/v1/kv/{key}"} and params.get("serve") in {"fast", "forwarding"}:
            item.add_marker("slow")
            item.add_marker("long")


@pytest.fixture(params=["fast", "forwarding", "full"])
async def serve(request: pytest.FixtureRequest) -> AsyncIterator[Serve]:
    """Serve a fresh local node, with settings of the test's choice, on both paths.

    "forwarding": on the fast path, at a node that can answer nothing at once.
    """
    started: list[HttpApi] = []
    can_submit = request.param == "fast"

    async def start(settings: HttpSettings | None = None, node: LocalNode | None = None) -> Local:
        node = node or local_node(can_submit=can_submit)
        settings = msgspec.structs.replace(
            settings or HttpSettings(), fast_path=request.param != "full"
        )
        served: ServedNode = node
        if node.groups is not None:
            served = cast("ServedNode", GroupNode(node, node.groups.guard))
        api = HttpApi(
            served,
            settings,
            Hosts(["t", "test", "a", "x", "any.example"]),
            node.hosts,
            guard=node.guard,
            audit=node.audit,
            groups=node.groups,
        )
        await api.listener.start("127.0.0.1", 0)
        started.append(api)
        return Local(f"http://127.0.0.1:{api.listener.port}", node, api)

    yield start
    for api in started:
        await api.listener.stop()


@pytest.fixture
async def pair(serve: Serve) -> AsyncIterator[Pair]:
    low = await serve(None, node_of("g1", "1" * 32))
    high = await serve(None, node_of("g2", "2" * 32))
    for _ in range(50):  # revisions that cannot be mistaken for the other group's
        await high.node.execute(Operation("put", (EARLIER, b"x")), 1000)
        await high.node.execute(Operation("delete", (EARLIER,)), 1000)
    for node in (low.node, high.node):
        know(node, Group("g1", LOW, (low.base_url,)), Group("g2", HIGH, (high.base_url,)))
    yield Pair(low, high)
    for node in (low.node, high.node):
        assert node.groups is not None
        await node.groups.close()


@pytest.fixture
async def local(serve: Serve) -> Local:
    return await serve()


@pytest.fixture
def base_url(local: Local) -> str:
    return local.base_url


@pytest.fixture
def prefix() -> str:
    """A prefix of keys that no other test has."""
    return f"{uuid.uuid4().hex}-"
