"""`POST /v1/txn`: conditions, and two lists of operations; one is carried out whole (T1)."""

from __future__ import annotations

import msgspec
from aiohttp.web import BaseRequest

from cluster.api.answer import JSON, MSGPACK, Answer
from cluster.api.body import read_json
from cluster.api.headers import (
    accepts_msgpack,
    idempotency_after,
    idempotency_key,
    if_lock,
    refuse_conditions,
    written_lines,
)
from cluster.api.params import write_options
from cluster.api.settings import HttpSettings
from cluster.api.txn_documents import parse_txn, txn_answer
from cluster.services.groups import WrongGroupError
from cluster.services.txn import encode_txn
from datapath.operations import Node, Operation

MIN_BODY_LIMIT_BYTES = 4 * 1024 * 1024
"""How large a transaction may be at least; more where a single value may be larger than half."""

_encode = {JSON: msgspec.json.encode, MSGPACK: msgspec.msgpack.encode}


class TxnHandlers:
    """The handler of transactions."""

    def __init__(self, node: Node, settings: HttpSettings) -> None:
        self._node = node
        self._settings = settings
        self._limit_bytes = max(MIN_BODY_LIMIT_BYTES, 2 * settings.max_value_size_bytes)
        self._transactions = {True: 0, False: 0}

    def numbers(self) -> dict[str, float]:
        """Return counts for metrics: how many were carried out, and how many of them by `else`."""
        then, other = self._transactions[True], self._transactions[False]
        return {"transactions_total": then + other, "transactions_else_total": other}

    async def txn(self, request: BaseRequest, query: str) -> Answer:
        """POST /v1/txn."""
        options = write_options(query)
        headers = request.headers
        refuse_conditions(headers, "conditions of a transaction stand in its `if`")
        key, first_after = idempotency_key(headers), idempotency_after(headers)
        lock = if_lock(headers)
        body = await read_json(request, self._limit_bytes, self._settings.body_timeout_ms)
        asked = parse_txn(body, self._settings.max_value_size_bytes)
        operation = Operation(
            "txn",
            (encode_txn(asked),),
            key,
            options.ack,
            options.min_copies,
            first_after,
            if_lock=lock,
        )
        timeout_ms = options.timeout_ms or self._settings.request_timeout_ms
        try:
            result = await self._node.execute(operation, timeout_ms)
        except WrongGroupError as error:
            error.body = body
            raise
        local = options.ack == "local"
        content_type = MSGPACK if accepts_msgpack(headers) else JSON
        answer = txn_answer(asked, result, local=local, binary=content_type == MSGPACK)
        self._transactions[answer.succeeded] += 1
        lines = written_lines(result, self._node.views.cluster_id, local=local)
        return Answer(200, _encode[content_type](answer), content_type, lines)
