"""A node whose own name leads to a loopback address, as Debian's /etc/hosts has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.config.file import load_config
from cluster.config.model import ConfigError
from cluster.node.own_address import check_own_addresses

NAME = "0x7f000101"
"""Every resolver takes this for 127.0.1.1, and the configuration for a name like any other."""

NODE = """
[nodes.{node}]
client = "{host}:81{number:02}"
peer = "{host}:82{number:02}"
raft = "{host}:83{number:02}"
data = "data/{node}"
"""


def write(directory: Path, *hosts: str, more: str = "") -> Path:
    path = directory / "cluster.toml"
    text = '[cluster]\nname = "x"\nsecret = "5b1f7c0e9ad24386b7e0c81f3a6d92e4"\n'
    text += "[tls]\ninsecure = true\n"
    for number, host in enumerate(hosts, 1):
        text += NODE.format(node=f"n{number}", host=host, number=number)
    path.write_text(text + more)
    return path


async def test_it_is_refused_where_others_are_elsewhere(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, NAME, "192.0.2.2", "192.0.2.3"))
    with pytest.raises(ConfigError) as refused:
        await check_own_addresses(config, "n1")
    said = str(refused.value)
    assert "nodes.n1.peer" in said
    assert "127.0.1.1" in said
    assert "/etc/hosts" in said
    assert "192.0.2.2" in said
    assert await check_own_addresses(config, "n2") == ""


async def test_it_is_a_warning_where_the_others_look_like_this_machine(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, NAME, "127.0.0.2", "127.0.0.3"))
    hint = await check_own_addresses(config, "n1")
    assert "127.0.1.1" in hint
    assert "nodes.n1.peer" in hint


@pytest.mark.parametrize("hosts", [("127.0.0.1", "192.0.2.2"), ("localhost", "127.0.0.1")])
async def test_a_loopback_address_that_is_written_as_such_is_meant(
    tmp_path: Path, hosts: tuple[str, ...]
) -> None:
    assert await check_own_addresses(load_config(write(tmp_path, *hosts)), "n1") == ""


async def test_who_is_reached_by_a_route_may_listen_anywhere(tmp_path: Path) -> None:
    routes = '[routes.n2.n1]\npeer = "192.0.2.9:8201"\nraft = "192.0.2.9:8301"\n'
    config = load_config(write(tmp_path, NAME, "192.0.2.2", more=routes))
    assert "127.0.1.1" in await check_own_addresses(config, "n1")


async def test_a_name_that_nobody_knows_is_not_its_business(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "no-such-host.invalid", "192.0.2.2"))
    assert await check_own_addresses(config, "n1") == ""
