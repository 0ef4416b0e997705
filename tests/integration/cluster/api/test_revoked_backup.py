"""A backup that is under way when the right to it goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from cluster.services.access import ACCESS_SERVICE
from cluster.services.access_guard import TokenGuard, draw_token
from datapath.operations import BackupSource, Operation
from tests.support.local_node import local_node
from tests.support.raw_http import connect
from tests.support.served import Serve


class InPieces(BackupSource):
    """Gives one piece, and a second one when it may."""

    revision = epoch = 1

    def __init__(self) -> None:
        self.may_go_on = asyncio.Event()
        self.is_closed = False

    async def pieces(self) -> AsyncIterator[bytes]:
        yield b"first"
        await self.may_go_on.wait()
        yield b"second"

    async def close(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize("is_revoked", [False, True])
async def test_a_backup_ends_with_the_right_to_it(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, *, is_revoked: bool
) -> None:
    """A1: a token that was stolen, and is revoked, takes no more of what there is."""
    node, source = local_node(), InPieces()
    node.guard = TokenGuard()
    tokens = draw_token(), draw_token()
    for token in tokens:
        seed = Operation("seed", (token.id, token.digest), service=ACCESS_SERVICE)
        await node.execute(seed, 1000)

    async def backup(*_: object) -> BackupSource:
        return source

    monkeypatch.setattr(node, "backup", backup)
    local = await serve(None, node)
    async with connect(local.base_url) as connection:
        bearer = {"Authorization": f"Bearer {tokens[0].text}"}
        connection.send_request("GET", "/v1/backup", None, bearer)
        await connection.reader.readuntil(b"first\r\n")
        if is_revoked:
            revoke = Operation("revoke_token", (tokens[0].id,), service=ACCESS_SERVICE)
            await node.execute(revoke, 1000)
        source.may_go_on.set()
        if not is_revoked:
            assert await connection.reader.readuntil(b"0\r\n\r\n") == b"6\r\nsecond\r\n0\r\n\r\n"
            return
        try:
            rest = await connection.reader.read(1000)
        except ConnectionResetError:
            rest = b""
    assert rest == b"", "neither more nor an end"
    assert source.is_closed
