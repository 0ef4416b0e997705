"""`/v3/kv`: etcd's reads, writes and transactions of keys."""

from __future__ import annotations

from binascii import b2a_base64
from typing import Any

from cluster.etcd.answers import (
    Document,
    delete_fields,
    range_fields,
    shown_lease,
    stored_lease,
)
from cluster.etcd.backend import Backend
from cluster.etcd.errors import compacted, future_revision
from cluster.etcd.messages import (
    CompactionRequest,
    DeleteRangeRequest,
    EtcdTxnRequest,
    PutRequest,
    RangeRequest,
)
from cluster.etcd.ranges import (
    EtcdKey,
    FoundRange,
    check_range,
    check_revision,
    is_key,
    is_selective,
    key_bounds,
    needs_no_values,
    select,
)
from cluster.etcd.scans import Scan, scan
from cluster.etcd.transactions import StepsPlan, check_put, plan_delete, plan_put, plan_txn
from cluster.services.txn import Txn, encode_txn
from datapath.execution.changes import Span
from datapath.operations import Consistency, Operation, Principal, Query, QueryResult, Result


class KvCalls:
    """The calls of the service KV."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def range(self, request: RangeRequest) -> Document:
        """Read a key or a range."""
        backend = self._backend
        query = self.key_query(request)
        if query is not None:
            return self.key_document(request, await backend.query(query))
        start, end = key_bounds(request.key, request.range_end)
        limit = 0 if is_selective(request) or request.limit <= 0 else request.limit + 1
        if request.count_only:
            limit = 1
        asked = Scan(Span(start, end), limit, needs_no_values(request), _consistency_of(request))
        found, count, revision, epoch = await scan(backend.node, asked, backend.timeout_ms)
        return self._range_document(request, found, count, revision, epoch)

    def key_query(self, request: RangeRequest, caller: Principal | None = None) -> Query | None:
        """Return how a range of one key is read; None: it is one of several. Raises EtcdError."""
        check_range(request)
        start, end = key_bounds(request.key, request.range_end)
        if not is_key(start, end):
            return None
        return Query("get", (start,), _consistency_of(request), caller=caller)

    def key_document(self, request: RangeRequest, result: QueryResult) -> Document:
        """Return the answer to a range of one key. Raises EtcdError."""
        found = [] if result.value is None else [EtcdKey(request.key, *result.value)]
        return self._range_document(request, found, len(found), result.index, result.epoch)

    def plain_answer(self, key: bytes, result: QueryResult) -> bytes:
        """Return the encoded `key_document` of a request that names a key and nothing else."""
        header: Any = self._backend.header(result.index, result.epoch)
        if result.value is None:
            return b'{"header":%b}' % header
        value, mod_revision, create_revision, version, lease = result.value
        return (
            b'{"header":%b,"kvs":[{"key":"%b","create_revision":"%d","mod_revision":"%d",'
            b'"version":"%d"%b%b}],"count":"1"}'
        ) % (
            header,
            b2a_base64(key, newline=False),
            create_revision,
            mod_revision,
            version,
            b',"value":"%b"' % b2a_base64(value, newline=False) if value else b"",
            b',"lease":"%d"' % shown_lease(lease) if lease else b"",
        )

    def _range_document(
        self, request: RangeRequest, found: list[EtcdKey], count: int, revision: int, epoch: int
    ) -> Document:
        check_revision(request.revision, revision)
        chosen: FoundRange = select(request, found, count, more=count > len(found))
        return {"header": self._backend.header(revision, epoch), **range_fields(chosen)}

    async def put(self, request: PutRequest) -> Document:
        """Write a key."""
        operation = self.key_put(request)
        if operation is None:
            return await self._carry_out(plan_put(request))
        return self.put_document(await self._backend.execute(operation))

    def key_put(self, request: PutRequest, caller: Principal | None = None) -> Operation | None:
        """Return the operation of a put; None: it takes a transaction. Raises EtcdError."""
        if request.prev_kv or request.ignore_value or request.ignore_lease:
            return None
        check_put(request)
        args = (request.key, request.value, None, False, stored_lease(request.lease))
        return Operation("put", args, caller=caller)

    def put_document(self, result: Result) -> Document:
        """Return the answer to a put."""
        return {"header": self._backend.header(result.index, result.epoch)}

    async def delete_range(self, request: DeleteRangeRequest) -> Document:
        """Remove a key or a range."""
        start, end = key_bounds(request.key, request.range_end)
        if request.prev_kv or not is_key(start, end):
            return await self._carry_out(plan_delete(request))
        backend = self._backend
        result = await backend.execute(Operation("delete", (start, None)))
        header = backend.header(result.index, result.epoch)
        return {"header": header, **delete_fields(int(result.value), ())}

    async def txn(self, request: EtcdTxnRequest) -> Document:
        """Carry out a transaction."""
        backend = self._backend
        plan = plan_txn(request, backend.node.commit_index)
        result = await backend.execute(Operation("txn", (encode_txn(plan.txn),)))
        header = backend.header(result.index, result.epoch)
        return {"header": header, **plan.read(result.value, result.index)}

    async def compact(self, request: CompactionRequest) -> Document:
        """Take note of nothing: history is kept as far back as the log goes, by its own bounds.

        What etcd would refuse is refused. Reads of older revisions are answered as compacted.
        """
        backend = self._backend
        known = await backend.now()
        if request.revision < 0:
            raise compacted()
        if request.revision > known.index:
            raise future_revision()
        return {"header": backend.header(known.index, known.epoch)}

    async def _carry_out(self, plan: StepsPlan) -> Document:
        backend = self._backend
        txn = Txn((), plan.steps)
        result = await backend.execute(Operation("txn", (encode_txn(txn),)))
        fields = plan.read(iter(result.value[1]), result.index)
        return {"header": backend.header(result.index, result.epoch), **fields}


def _consistency_of(request: RangeRequest) -> Consistency:
    return "stale" if request.serializable else "linearizable"
