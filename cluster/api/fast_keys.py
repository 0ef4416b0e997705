"""The fast path of `/v1`: PUT, GET and DELETE of a key, and keep-alives of one lease."""

from __future__ import annotations

from cluster.api.access import caller_named
from cluster.api.fast_path import FastConnection, FastPathServer
from cluster.api.groups import KnownGroups
from cluster.api.kv import KeyCall, KeyWrite, KvHandlers
from cluster.api.leases import LeaseHandlers
from cluster.api.params import decode_key, put_options, waits_for_change, write_options
from cluster.api.plain_head import KEYS, PLAIN, HeaderBlock
from cluster.api.plain_line import PlainLine, PlainLines
from cluster.api.problems import ProblemError

_KEYS_LENGTH = len(KEYS)


def plain_lines(kv: KvHandlers) -> PlainLines:
    """Return the lines that the fast path of `/v1` serves."""

    def read(method: str, target: str) -> PlainLine | None:
        if method == "POST":
            return PlainLine(method, target)
        raw_key, _, query = target[_KEYS_LENGTH:].partition("?")
        try:
            if method == "GET":
                if waits_for_change(query):
                    return None  # the full path notices at once that the client has gone
                return PlainLine(method, target, read=kv.plain_read(raw_key, query))
            key = decode_key(raw_key)
            if method == "PUT":
                return PlainLine(method, target, key, put=put_options(query))
            return PlainLine(method, target, key, delete=write_options(query))
        except ProblemError:
            return None

    return PlainLines(PLAIN, read)


class FastKeys(FastConnection):
    """A connection whose plain requests are those on keys, and keep-alives."""

    __slots__ = ("_groups", "_kv", "_leases")

    def __init__(
        self,
        server: FastPathServer,
        lines: PlainLines,
        kv: KvHandlers,
        leases: LeaseHandlers,
        groups: KnownGroups | None,
    ) -> None:
        super().__init__(server, lines)
        self._groups = groups
        self._kv = kv
        self._leases = leases

    def _parse(self, line: PlainLine, block: HeaderBlock, body: bytes) -> KeyCall | None:
        kv, headers, caller = self._kv, block.headers, None
        if self._server.api.access.guard.is_on:
            caller = caller_named(block.authorization, self._transport)
            if caller is None:
                return None
        if (read := line.read) is not None:
            if headers or caller is not None:
                read = kv.read_for(read, headers, caller)
            if self._groups is not None and self._groups.is_passed_on(read.query):
                return None
            return read
        write: KeyWrite | None
        try:
            if line.put is not None:
                write = kv.fast_put(line.key, line.put, headers, body, caller)
            elif line.delete is not None:
                write = kv.fast_delete(line.key, line.delete, headers, caller)
            else:
                write = self._leases.fast_keep_alive(line.target, caller)
        except ProblemError:
            return None
        if write is None or write.operation.caller is not caller:
            return None
        if self._groups is not None and self._groups.is_passed_on(write.operation):
            return None
        return write
