"""The fast path of `/v1`: PUT, GET and DELETE of a key, and keep-alives of one lease."""

from __future__ import annotations

from cluster.api.access import caller_of
from cluster.api.fast_path import FastConnection, FastPathServer
from cluster.api.headers import Headers
from cluster.api.kv import KvHandlers
from cluster.api.leases import LeaseHandlers
from cluster.api.params import waits_for_change
from cluster.api.plain_head import KEYS, PLAIN
from cluster.api.problems import ProblemError


class FastKeys(FastConnection):
    """A connection whose plain requests are those on keys, and keep-alives."""

    __slots__ = ("_kv", "_leases")
    plain = PLAIN

    def __init__(self, server: FastPathServer, kv: KvHandlers, leases: LeaseHandlers) -> None:
        super().__init__(server)
        self._kv = kv
        self._leases = leases

    def _serve(self, method: str, target: str, headers: Headers, body: bytes) -> bool:
        key, _, query = target[len(KEYS) :].partition("?")
        judged = self._server.api.access.guard.is_on
        try:
            caller = caller_of(headers, self._transport) if judged else None
            if method == "GET":
                if query and waits_for_change(query):
                    return False  # the full path notices at once that the client has gone
                self._serve_read(method, target, self._kv.fast_read(key, query, headers, caller))
                return True
        except ProblemError:
            return False
        if method == "POST":
            write = self._leases.fast_keep_alive(target, headers, caller)
        else:
            write = self._kv.fast_write(method, key, query, headers, body, caller)
        if write is None or write.operation.caller is not caller:
            return False
        self._serve_write(method, target, write)
        return True
