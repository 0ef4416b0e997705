"""The fast path of etcd's gateway: puts of a key, and reads of one."""

from __future__ import annotations

import binascii
import functools
import re
from typing import Any

from cluster.api.answer import JSON, Answer
from cluster.api.fast_path import FastConnection, FastPathServer
from cluster.api.kv import KeyCall, KeyRead, KeyWrite
from cluster.api.plain_head import HeaderBlock
from cluster.api.plain_line import PlainLine, PlainLines
from cluster.etcd.answers import encode
from cluster.etcd.auth import etcd_caller_named
from cluster.etcd.errors import EtcdError
from cluster.etcd.kv import KvCalls
from cluster.etcd.messages import PutRequest, RangeRequest, read_message
from datapath.operations import ANONYMOUS

_PLAIN_BODY = re.compile(
    rb'\{"key": ?"([A-Za-z0-9+/]+={0,2})"(?:, ?"value": ?"([A-Za-z0-9+/]+={0,2})")?\}'
)
_LINES = PlainLines(re.compile(rb"POST /v3(?:beta)?/kv/(?:put|range) HTTP/1\.1"), PlainLine)


class EtcdFastKeys(FastConnection):
    """A connection whose plain requests are puts and ranges of one key.

    What a message asks for beyond that (`prev_kv`, say) is the full path's to answer.
    """

    __slots__ = ("_kv", "_timeout_ms")

    def __init__(self, server: FastPathServer, kv: KvCalls, timeout_ms: int) -> None:
        super().__init__(server, _LINES)
        self._kv = kv
        self._timeout_ms = timeout_ms

    def _parse(self, line: PlainLine, block: HeaderBlock, body: bytes) -> KeyCall | None:
        kv, caller = self._kv, None
        if self._server.api.access.is_on:
            caller = etcd_caller_named(block.authorization, self._transport)
            if caller is None or caller == ANONYMOUS:
                return None  # refused there in words of its own
        try:
            if line.target.endswith("put"):
                operation = kv.key_put(_put_request(body), caller)
                if operation is None:
                    return None
                return KeyWrite(
                    operation, self._timeout_ms, lambda result: _answer(kv.put_document(result))
                )
            read, is_plain = _range_request(body)
            query = kv.key_query(read, caller)
            if query is None:
                return None
        except EtcdError:
            return None
        return KeyRead(
            query,
            self._timeout_ms,
            (lambda result: Answer(200, kv.plain_answer(read.key, result), JSON))
            if is_plain
            else (lambda result: _answer(kv.key_document(read, result))),
        )


def _answer(document: dict[str, Any]) -> Answer:
    return Answer(200, encode(document), JSON)


def _put_request(body: bytes) -> PutRequest:
    """Read a put: the form that most clients send without a JSON parser. Raises EtcdError."""
    plain = _PLAIN_BODY.fullmatch(body)
    if plain is not None and plain[2] is not None:
        try:
            return PutRequest(key=_strict(plain[1]), value=_strict(plain[2]))
        except ValueError:
            pass
    return read_message(PutRequest, body)


def _range_request(body: bytes) -> tuple[RangeRequest, bool]:
    """Read a range, likewise; and whether it names a key and nothing else. Raises EtcdError."""
    plain = _PLAIN_BODY.fullmatch(body)
    if plain is not None and plain[2] is None:
        try:
            return RangeRequest(key=_strict(plain[1])), True
        except ValueError:
            pass
    return read_message(RangeRequest, body), False


_strict = functools.partial(binascii.a2b_base64, strict_mode=True)
