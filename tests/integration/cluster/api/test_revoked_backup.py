"""A backup that is under way when the right to it goes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cluster.api.audit import Audit
from cluster.services.access import ACCESS_SERVICE
from cluster.services.access_guard import TokenGuard, draw_token
from datapath.errors import NotPrimaryError
from datapath.operations import BackupSource, Operation, Principal
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


async def test_without_a_primary_the_administrator_of_the_file_gets_a_whole_one(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its token may be newer than all that this node knows; and the audit log tells of it."""
    node, source, token, other = local_node(), InPieces(), draw_token(), draw_token()
    node.guard = TokenGuard(first=Principal(token.id, token.digest))
    node.audit = Audit(tmp_path / "audit.jsonl", "n1", time.monotonic)
    seed = Operation("seed", (other.id, other.digest), service=ACCESS_SERVICE)
    await node.execute(seed, 1000)
    node.fail_with = NotPrimaryError("no_primary", "nobody is there")

    async def backup(*_: object) -> BackupSource:
        return source

    monkeypatch.setattr(node, "backup", backup)
    local = await serve(None, node)
    source.may_go_on.set()
    bearer = {"Authorization": f"Bearer {token.text}"}
    target = "/v1/backup?consistency=stale"
    async with connect(local.base_url) as connection:
        connection.send_request("GET", target, None, bearer)
        head = await connection.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        rest = await connection.reader.readuntil(b"\r\n0\r\n\r\n")
    assert rest == b"5\r\nfirst\r\n6\r\nsecond\r\n0\r\n\r\n"
    [line] = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert f'"event":"admin","token":"{token.id}"' in line
    node.audit.close()
