"""A local node of each of two groups."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from cluster.api.groups import KnownGroups
from cluster.api.relay import GroupRelay
from cluster.api.settings import HttpSettings
from cluster.groups.group_map import Group, GroupMap
from cluster.services.access_guard import TokenGuard
from tests.support.local_node import LocalNode, local_node
from tests.support.served import Local

LOW, HIGH = ((0, 2047),), ((2048, 4095),)


class Pair(NamedTuple):
    """A node of each of two groups, which know each other."""

    low: Local
    high: Local

    @property
    def url(self) -> str:
        return self.low.base_url


def node_of(group: str, cluster_id: str, access: TokenGuard | None = None) -> LocalNode:
    node = local_node()
    node.groups = KnownGroups(
        Group(group, LOW if group == "g1" else HIGH), GroupRelay(HttpSettings())
    )
    node.view = msgspec.structs.replace(node.view, cluster_id=cluster_id)
    if access is not None:
        node.guard = access
    return node


def know(node: LocalNode, *groups: Group, version: int = 1) -> None:
    assert node.groups is not None
    assert node.groups.learn(GroupMap(version, groups))
