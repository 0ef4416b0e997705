"""`GET /v1/backup`: the whole state at one revision, streamed (B1).

The answer has begun before it is known whether it can be completed: what ends early says so in its
last block, and a connection that breaks leaves out the end. So does one whose caller's right goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from typing import cast

from aiohttp import HttpVersion10
from aiohttp.web import BaseRequest

from cluster.api.access import ApiAccess
from cluster.api.admin import check_admin_of
from cluster.api.answer import BYTES, Answer, drain, server_of, transport_of
from cluster.api.headers import revision_line
from cluster.api.params import BACKUP_PARAMS, parse_query
from cluster.api.settings import HttpSettings
from cluster.services.rights import Need
from datapath.operations import BackupSource, Node

logger = logging.getLogger(__name__)

PIECE_TIMEOUT_S = 60.0
"""A client that has not taken a piece (about 512 KiB, before compression) by then is cut off."""


class BackupHandler:
    """The handler of backups."""

    def __init__(self, node: Node, settings: HttpSettings, access: ApiAccess) -> None:
        self._node = node
        self._settings = settings
        self._access = access

    async def get(self, request: BaseRequest, query: str, identity: bytes) -> Answer:
        """GET /v1/backup."""
        asked_by = check_admin_of(request, self._node, self._access, self._settings.admin_from)
        options = parse_query(query, BACKUP_PARAMS)
        source = await self._node.backup(
            options.get("consistency", "linearizable"),
            options.get("timeout_ms", self._settings.request_timeout_ms),
        )
        logger.info("backup of revision %d, requested by %s", source.revision, asked_by)
        access, caller = self._access, self._access.current()

        def may_go_on() -> bool:
            return (
                caller is None
                or access.here(caller, Need("admin")) is None
                or self._node.is_configured_admin(caller)
            )

        return StreamedAnswer(source, identity + revision_line(source.revision), may_go_on)


class StreamedAnswer(Answer):
    """A backup, a piece at a time as the client takes them; the bytes held are one piece's."""

    def __init__(self, source: BackupSource, headers: bytes, may_go_on: Callable[[], bool]) -> None:
        """`may_go_on`: whether who asked for it still has the right, as far as this node knows."""
        super().__init__(200, b"", BYTES, headers)
        self._may_go_on = may_go_on
        self._source = source

    async def send(self, request: BaseRequest, *, closes: bool) -> None:
        """Send everything. Raises ConnectionResetError if the client has gone, or is too slow."""
        try:
            await self._send(request, closes=closes)
        finally:
            await self._source.close()

    async def _send(self, request: BaseRequest, *, closes: bool) -> None:
        transport = transport_of(request)
        in_chunks = request.version != HttpVersion10
        transport.write(self.head_of_chunks() if in_chunks else self.head_until_close())
        share = server_of(request).memory.hold(0, transport.abort)
        pieces = cast("AsyncGenerator[bytes, None]", self._source.pieces())
        try:
            async with contextlib.aclosing(pieces):
                async for piece in pieces:
                    transport_of(request)
                    if not self._may_go_on():  # A1
                        transport.abort()
                        raise ConnectionResetError("the right to this backup has gone")
                    transport.writelines(
                        (b"%x\r\n" % len(piece), piece, b"\r\n") if in_chunks else (piece,)
                    )
                    share.resize(transport.get_write_buffer_size())
                    share.moved()
                    async with asyncio.timeout(PIECE_TIMEOUT_S):
                        await drain(request, transport, share)
            if in_chunks:
                transport.write(b"0\r\n\r\n")
        except TimeoutError:
            transport.abort()
            raise ConnectionResetError("the client reads its backup too slowly") from None
        finally:
            share.resize(0)
        if closes or not in_chunks:
            transport.close()
