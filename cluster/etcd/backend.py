"""The node behind etcd's gateway: what the calls ask of it, and the header of their answers."""

from __future__ import annotations

from typing import Any

import msgspec

from cluster.etcd.answers import number_of
from cluster.etcd.errors import INVALID_ARGUMENT, EtcdError
from cluster.etcd.scans import ScannedNode
from cluster.services.access import ACCESS_SERVICE
from datapath.operations import Operation, Query, QueryResult, Result


class Backend:
    """What the calls of all services need. `max_value_size_bytes`: of a value or a transaction."""

    def __init__(self, node: ScannedNode, timeout_ms: int, max_value_size_bytes: int) -> None:
        self.node = node
        self.timeout_ms = timeout_ms
        self._max_value_size_bytes = max_value_size_bytes
        self._numbers: dict[tuple[str, ...], int] = {}
        self._own: tuple[str | None, bytes] = None, b""  # a cluster's id, and what headers say then

    async def execute(self, operation: Operation) -> Result:
        """Execute on the primary. Raises OperationError, EtcdError."""
        self._check_size(operation.args)
        return await self.node.execute(operation, self.timeout_ms)

    def _check_size(self, args: tuple[Any, ...]) -> None:
        if any(isinstance(arg, bytes) and len(arg) > self._max_value_size_bytes for arg in args):
            raise EtcdError(INVALID_ARGUMENT, "etcdserver: request is too large")

    async def query(self, query: Query) -> QueryResult:
        """Read. Raises OperationError."""
        return await self.node.query(query, self.timeout_ms)

    async def now(self) -> QueryResult:
        """Return the newest revision. Raises OperationError."""
        return await self.query(Query("changed_at", service=ACCESS_SERVICE))

    def member_number(self, node_id: str) -> int:
        """Return a member's number."""
        return self._number("member", self.node.views.cluster_id, node_id)

    def header(self, revision: int, epoch: int) -> msgspec.Raw:
        """Return the header of an answer: from which member, at which revision, in which term."""
        cluster_id = self.node.views.cluster_id
        if cluster_id != self._own[0]:
            own = b'"cluster_id":"%d","member_id":"%d"' % (
                self._number("cluster", cluster_id),
                self.member_number(self.node.node_id),
            )
            self._own = cluster_id, own
        numbers = self._own[1]
        if revision:
            numbers += b',"revision":"%d"' % revision
        if epoch:
            numbers += b',"raft_term":"%d"' % epoch
        return msgspec.Raw(b"{%b}" % numbers)

    def _number(self, *parts: str) -> int:
        found = self._numbers.get(parts)
        if found is None:
            found = self._numbers[parts] = number_of(*parts)
        return found
