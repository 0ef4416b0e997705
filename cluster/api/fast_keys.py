"""The fast path of `/v1`: PUT, GET and DELETE of a key, and keep-alives of one lease."""

from __future__ import annotations

from cluster.api.access import caller_named
from cluster.api.fast_path import FastConnection, FastPathServer
from cluster.api.groups import KnownGroups
from cluster.api.kv import KvHandlers, Request
from cluster.api.leases import LeaseHandlers
from cluster.api.params import waits_for_change
from cluster.api.plain_head import KEYS, PLAIN, HeaderBlock
from cluster.api.problems import ProblemError

_KEYS_LENGTH = len(KEYS)


class FastKeys(FastConnection):
    """A connection whose plain requests are those on keys, and keep-alives."""

    __slots__ = ("_groups", "_kv", "_leases")
    plain = PLAIN

    def __init__(
        self,
        server: FastPathServer,
        kv: KvHandlers,
        leases: LeaseHandlers,
        groups: KnownGroups | None,
    ) -> None:
        super().__init__(server)
        self._groups = groups
        self._kv = kv
        self._leases = leases

    def _parse(self, method: str, target: str, block: HeaderBlock, body: bytes) -> Request | None:
        key, _, query = target[_KEYS_LENGTH:].partition("?")
        headers, caller = block.headers, None
        if self._server.api.access.guard.is_on:
            caller = caller_named(block.authorization, self._transport)
            if caller is None:
                return None
        try:
            if method == "GET":
                if query and waits_for_change(query):
                    return None  # the full path notices at once that the client has gone
                read = self._kv.fast_read(key, query, headers, caller)
                if self._groups is not None and self._groups.is_passed_on(read.query):
                    return None
                return read
        except ProblemError:
            return None
        if method == "POST":
            write = self._leases.fast_keep_alive(target, caller)
        else:
            write = self._kv.fast_write(method, key, query, headers, body, caller)
        if write is None or write.operation.caller is not caller:
            return None
        if self._groups is not None and self._groups.is_passed_on(write.operation):
            return None
        return write
