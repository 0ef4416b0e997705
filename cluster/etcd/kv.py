"""`/v3/kv`: etcd's reads, writes and transactions of keys."""

from __future__ import annotations

from cluster.etcd.answers import (
    Document,
    delete_fields,
    put_fields,
    range_fields,
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
from datapath.operations import Consistency, Operation, Query


class KvCalls:
    """The calls of the service KV."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def range(self, request: RangeRequest) -> Document:
        """Read a key or a range."""
        check_range(request)
        start, end = key_bounds(request.key, request.range_end)
        consistency: Consistency = "stale" if request.serializable else "linearizable"
        if is_key(start, end):
            result = await self._backend.query(Query("get", (start,), consistency))
            found = [] if result.value is None else [EtcdKey(start, *result.value)]
            count, revision, epoch = len(found), result.index, result.epoch
        else:
            limit = 0 if is_selective(request) or request.limit <= 0 else request.limit + 1
            if request.count_only:
                limit = 1
            asked = Scan(Span(start, end), limit, needs_no_values(request), consistency)
            found, count, revision, epoch = await scan(
                self._backend.node, asked, self._backend.timeout_ms
            )
        check_revision(request.revision, revision)
        chosen: FoundRange = select(request, found, count, more=count > len(found))
        return {"header": self._backend.header(revision, epoch), **range_fields(chosen)}

    async def put(self, request: PutRequest) -> Document:
        """Write a key."""
        if request.prev_kv or request.ignore_value or request.ignore_lease:
            return await self._carry_out(plan_put(request))
        check_put(request)
        backend = self._backend
        args = (request.key, request.value, None, False, stored_lease(request.lease))
        result = await backend.execute(Operation("put", args))
        return {"header": backend.header(result.index, result.epoch), **put_fields(())}

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
