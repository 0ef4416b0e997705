"""Nodes inside a program of one's own: started, served from, stopped."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from cluster.config.file import load_config
from cluster.config.model import ConfigError
from onecopy import AsyncClient, Node
from tests.support.cluster import Cluster
from tests.support.doc_shop import Shop

pytestmark = pytest.mark.slow  # real nodes


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return Cluster(tmp_path / "cluster").config_path


async def test_three_nodes_of_one_program_keep_a_services_state(config: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        nodes = [Node(config, node, services=[Shop()]) for node in ("n1", "n2", "n3")]
        await asyncio.gather(*map(stack.enter_async_context, nodes[1:]), nodes[0].__aenter__())
        async with AsyncClient([node.url for node in nodes], timeout_ms=20_000) as client:
            shop = client.service(Shop)
            assert (await shop.call(Shop.reserve, item="apple", count=2)).left == 98
            await nodes[0].__aexit__(None, None, None)  # the primary, in an orderly way
            assert (await shop.call(Shop.reserve, item="apple", count=2)).left == 96


def test_what_keeps_a_node_from_starting_is_raised(config: Path) -> None:
    with pytest.raises(ConfigError, match=r"nodes.n9: there is no such node; there are: n1"):
        Node(config, "n9")
    config.write_text(config.read_text() + '\n[services.shop]\nclass = "no_such:Shop"\n')
    with pytest.raises(ConfigError, match=r"services.shop.class: there is no module 'no_such'"):
        Node(load_config(config), "n1")


def test_a_service_is_hosted_once(config: Path) -> None:
    with pytest.raises(ConfigError, match=r"services.shop: is hosted already"):
        Node(config, "n1", services=[Shop(), Shop()])


async def test_a_port_that_is_taken_is_raised_and_leaves_nothing_open(config: Path) -> None:
    host, port = load_config(config).nodes["n1"].client.split(":")
    taken = await asyncio.start_server(lambda *_: None, host, int(port))
    async with taken:
        for _ in range(2):  # the data directory can be opened again
            with pytest.raises(OSError, match=port):
                async with Node(config, "n1"):
                    pass
