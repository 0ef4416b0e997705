"""`/v3/cluster`, `/v3/maintenance`, `/version`, `/health`: what etcd says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from cluster.etcd.answers import Document, with_numbers
from cluster.etcd.backend import Backend
from cluster.etcd.messages import EmptyRequest, MemberListRequest

SPOKEN_VERSION = "3.5.0"
"""What the gateway says it is: the oldest etcd whose answers it gives."""


class MemberUrls(NamedTuple):
    """Where a member is: `peer` for consensus, and `client` for etcd's clients ("": nowhere)."""

    peer: str
    client: str = ""


class MemberCalls:
    """The calls about the cluster. `urls` are the members', by their ids."""

    def __init__(self, backend: Backend, urls: Mapping[str, MemberUrls]) -> None:
        self._backend = backend
        self._urls = urls

    async def list(self, request: MemberListRequest) -> Document:
        """Return the members; one that serves no etcd's clients has no client URL."""
        backend = self._backend
        if request.linearizable:
            await backend.now()
        status = await backend.node.cluster_status()
        members = []
        for node in sorted(status.nodes):
            member = with_numbers([("ID", backend.member_number(node))])
            member["name"] = node
            urls = self._urls.get(node)
            if urls is not None:
                member["peerURLs"] = [urls.peer]
                if urls.client:
                    member["clientURLs"] = [urls.client]
            members.append(member)
        return {"header": backend.header(0, status.epoch), "members": members}

    async def status(self, _request: EmptyRequest) -> Document:
        """Return the state of this member."""
        backend = self._backend
        node = backend.node
        status = await node.cluster_status()
        own = status.nodes.get(node.node_id)
        applied = own.applied_index if own is not None else None
        leader = backend.member_number(status.primary) if status.primary else 0
        document: Document = {
            "header": backend.header(node.commit_index, status.epoch),
            "version": SPOKEN_VERSION,
        }
        document |= with_numbers(
            [
                ("leader", leader),
                ("raftIndex", node.commit_index),
                ("raftTerm", status.epoch),
                ("raftAppliedIndex", applied or 0),
            ]
        )
        if not status.primary:
            document["errors"] = ["etcdserver: no leader"]
        return document

    def version(self) -> Document:
        """Return the versions."""
        major, minor, _ = SPOKEN_VERSION.split(".")
        return {"etcdserver": SPOKEN_VERSION, "etcdcluster": f"{major}.{minor}.0"}

    def health(self) -> tuple[int, Document]:
        """Return the HTTP status, and whether this node can serve."""
        if self._backend.node.is_ready:
            return 200, {"health": "true", "reason": ""}
        return 503, {"health": "false", "reason": "RAFT NO LEADER"}
