"""The fast path of etcd's gateway: puts of a key, and reads of one."""

from __future__ import annotations

import re
from typing import Any

from cluster.api.answer import JSON, Answer
from cluster.api.fast_path import FastConnection, FastPathServer
from cluster.api.headers import Headers
from cluster.api.kv import KeyRead, KeyWrite
from cluster.etcd.answers import encode
from cluster.etcd.auth import etcd_caller
from cluster.etcd.errors import EtcdError
from cluster.etcd.kv import KvCalls
from cluster.etcd.messages import PutRequest, RangeRequest, read_message
from datapath.operations import ANONYMOUS


class EtcdFastKeys(FastConnection):
    """A connection whose plain requests are puts and ranges of one key.

    What a message asks for beyond that (`prev_kv`, say) is the full path's to answer.
    """

    __slots__ = ("_kv", "_timeout_ms")
    plain = re.compile(rb"POST /v3(?:beta)?/kv/(?:put|range) HTTP/1\.1\r\n")

    def __init__(self, server: FastPathServer, kv: KvCalls, timeout_ms: int) -> None:
        super().__init__(server)
        self._kv = kv
        self._timeout_ms = timeout_ms

    def _serve(self, method: str, target: str, headers: Headers, body: bytes) -> bool:
        kv, judged = self._kv, self._server.api.access.is_on
        try:
            caller = etcd_caller(headers, self._transport) if judged else None
            if caller == ANONYMOUS:
                return False  # refused there in words of its own
            if target.endswith("put"):
                put = read_message(PutRequest, body)
                operation = kv.key_put(put, caller)
                if operation is None:
                    return False
                write = KeyWrite(
                    operation, self._timeout_ms, lambda result: _answer(kv.put_document(result))
                )
                self._serve_write(method, target, write)
                return True
            read = read_message(RangeRequest, body)
            query = kv.key_query(read, caller)
            if query is None:
                return False
        except EtcdError:
            return False
        self._serve_read(
            method,
            target,
            KeyRead(query, self._timeout_ms, lambda result: _answer(kv.key_document(read, result))),
        )
        return True


def _answer(document: dict[str, Any]) -> Answer:
    return Answer(200, encode(document), JSON)
