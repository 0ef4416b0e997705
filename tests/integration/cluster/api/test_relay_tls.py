"""Nodes ask other groups under TLS, and trust another authority once its file says so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from cluster.api.groups import GroupNode, KnownGroups
from cluster.api.relay import GroupRelay
from cluster.api.routes import HttpApi, ServedNode
from cluster.api.settings import HttpSettings
from cluster.certificates.authority import Authority
from cluster.certificates.hosts import LOOPBACK_HOSTS
from cluster.certificates.node_tls import NodeTls
from cluster.config.file import load_config, render_config
from cluster.config.groups_section import GroupsSection
from cluster.config.model import NodeConfig
from cluster.config.tls_section import TlsSection
from cluster.groups.group_map import Group, GroupMap
from cluster.node.group_map import MapFollower
from tests.support.local_node import local_node
from tests.support.raw_http import fetch
from tests.support.served import Serve

LOW, HIGH = ((0, 2047),), ((2048, 4095),)
OTHER = "/v1/kv/orders%2F1"  # slot 598


class Deployment:
    """A node of g2, whose trust is the file `trusted`, and one of g1, the first, under TLS."""

    def __init__(self, directory: Path) -> None:
        self.trusted = directory / "trusted.crt"
        self.authority, another = Authority(directory / "certs"), Authority(directory / "others")
        for authority in (self.authority, another):
            authority.create()
        self.authority.issue_node("n1", LOOPBACK_HOSTS)
        self.trusted.write_bytes((another.directory / "ca.crt").read_bytes())
        nodes = {
            "n1": NodeConfig(
                client="127.0.0.1:1", peer="127.0.0.1:2", raft="127.0.0.1:3", data="n1"
            )
        }
        section = TlsSection(
            ca="certs/ca.crt", certificate="certs/{node}.crt", key="certs/{node}.key"
        )
        config = directory / "cluster.toml"
        config.write_text(render_config("demo", "x" * 32, nodes, tls=section))
        config.chmod(0o600)
        self.asking = KnownGroups(
            Group("g2", HIGH), GroupRelay(HttpSettings(), str(self.trusted)), self.section
        )
        self.first = KnownGroups(Group("g1", LOW))
        tls = NodeTls(load_config(config), "n1")
        node = cast("ServedNode", GroupNode(local_node(), self.first.guard))
        self.api = HttpApi(node, tls=tls, groups=self.first)

    @property
    def section(self) -> TlsSection:
        return TlsSection(ca=str(self.trusted))

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.api.listener.port}"

    @property
    def map(self) -> GroupMap:
        groups = (Group("g1", LOW, (self.url,)), Group("g2", HIGH, ("http://127.0.0.1:1",)))
        return GroupMap(1, groups)

    def trust(self) -> None:
        """Have the file name the authority that g1 has."""
        self.trusted.write_bytes((self.authority.directory / "ca.crt").read_bytes())


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    found = Deployment(tmp_path)
    await found.api.listener.start("127.0.0.1", 0)
    assert found.first.learn(found.map)
    yield found
    await found.asking.close()
    await found.api.listener.stop()


async def test_a_relay_trusts_what_the_authoritys_file_holds_now(
    deployment: Deployment, serve: Serve
) -> None:
    assert deployment.asking.learn(deployment.map)
    node = local_node()
    node.groups = deployment.asking
    asked = await serve(None, node)
    refused = await fetch(asked.base_url, "PUT", OTHER, b"x")
    assert (refused.status, "certificate" in refused.json["detail"]) == (503, True), refused
    deployment.trust()
    deployment.asking.renew(deployment.section)
    written = await fetch(asked.base_url, "PUT", OTHER, b"x")
    assert (written.status, written.headers["onecopy-group"]) == (201, "g1"), written


async def test_a_map_is_asked_for_on_one_connection_under_what_the_files_hold_now(
    deployment: Deployment,
) -> None:
    known = deployment.asking
    section = GroupsSection(id="g2", slots=HIGH, first=(deployment.url,))
    follower = MapFollower(section, known, cast("Any", None))  # only the first group's is asked
    assert await follower._look() is None
    deployment.trust()
    assert await follower._look() is None, "it has not been told"
    known.renew(deployment.section)
    for _ in range(3):
        assert await follower._look() == deployment.map
    assert deployment.api._server.open_connections == 1
    await follower._close()
