"""What the parts of a node's process share."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from cluster.config.model import ClusterConfig, NodeConfig
from datapath.errors import DataDirectoryError, NodeRemovedError
from datapath.node.gateway import Gateway
from datapath.storage.data_directory import DataDirectory
from datapath.transport.mesh import REQUEST, Mesh
from election.registry import PeerRegistry
from election.release import unsupported
from election.view import Member, View


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """`end` ends the process, for a reason or (None) as asked; `spawn` runs a task until then."""

    config: ClusterConfig
    node_id: str
    directory: DataDirectory
    registry: PeerRegistry
    mesh: Mesh
    gateway: Gateway
    end: Callable[[BaseException | None], None]
    spawn: Callable[[Coroutine[Any, Any, None]], object]

    def member(self) -> Member:
        """Return this node as a member, as configured and with this disk."""
        return member_of(self.node_id, self.config.nodes[self.node_id], self.directory.data_id)

    def check_level(self, view: View) -> None:
        """Remember the cluster's level, or end this node if its release does not support it."""
        if problem := unsupported(self.node_id, self.registry.release, view.level):
            raise DataDirectoryError(problem)
        self.directory.note_level(view.level)

    def why_no_link(self, nodes: list[str]) -> str:
        """Return what is known of why there is no link to `nodes`, to end a sentence with."""
        problems = ((node, self.mesh.problem(node, REQUEST)) for node in nodes)
        return "".join(f"; {node}: {problem}" for node, problem in problems if problem)


def member_of(node_id: str, item: NodeConfig, data_id: str) -> Member:
    """Return a member, as configured."""
    return Member(
        id=node_id,
        role=item.role,
        client=item.client,
        peer=item.peer,
        raft=item.raft,
        data_id=data_id,
    )


def removed(cluster: str, node_id: str) -> NodeRemovedError:
    """Return the error of a node that was removed."""
    return NodeRemovedError(
        f"node {node_id} has been removed from cluster {cluster}: to return it needs a new id in "
        f"the configuration file (rename [nodes.{node_id}]) and an empty data directory"
    )
