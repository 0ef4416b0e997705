"""What is in the audit log: each change that was allowed, and of strangers so much and no more."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.api.audit import MAX_LINES_PER_S, Audit
from cluster.services.access import ACCESS_SERVICE
from cluster.services.access_guard import NewToken, TokenGuard, draw_token
from datapath.errors import NotPrimaryError
from datapath.operations import Operation
from tests.support.local_node import local_node
from tests.support.raw_http import Reply, connect, fetch
from tests.support.served import Local, Serve

ROLE = b'{"read": ["app/"]}'
JSON = {"Content-Type": "application/json"}

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def admin() -> NewToken:
    return draw_token()


@pytest.fixture
async def guarded(serve: Serve, admin: NewToken, tmp_path: Path) -> AsyncIterator[Local]:
    node = local_node()
    node.guard = TokenGuard()
    node.audit = Audit(tmp_path / "audit.jsonl", "n1", time.monotonic)
    await node.execute(
        Operation("seed", (admin.id, admin.digest), service=ACCESS_SERVICE), timeout_ms=1000
    )
    yield await serve(None, node)
    node.audit.close()


@pytest.fixture
def lines(tmp_path: Path) -> Lines:
    def read() -> list[dict[str, Any]]:
        text = (tmp_path / "audit.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    return read


async def ask(guarded: Local, admin: NewToken, *request: Any) -> Reply:
    method, target, body = request
    bearer = {"Authorization": f"Bearer {admin.text}", **JSON}
    return await fetch(guarded.base_url, method, target, body, bearer)


async def test_a_change_is_noted_however_its_target_is_written(
    guarded: Local, admin: NewToken, lines: Lines
) -> None:
    path = "/v1/roles/app"
    for number, target in enumerate(
        (path, f"{path}?timeout_ms=900", guarded.base_url + path, f"https://t{path}?timeout_ms=9"),
        1,
    ):
        assert (await ask(guarded, admin, "PUT", target, ROLE)).status in {200, 201}
        told = [(line["event"], line["token"], line["method"], line["path"]) for line in lines()]
        assert told == number * [("admin", admin.id, "PUT", path)], target
    for number, target in enumerate(("/v1/backup", f"{guarded.base_url}/v1/backup"), 1):
        assert (await ask(guarded, admin, "GET", target, None)).status == 200
        assert [line["path"] for line in lines()].count("/v1/backup") == number, target


async def test_what_is_read_is_not_noted(guarded: Local, admin: NewToken, lines: Lines) -> None:
    for target in ("/v1/tokens", "/v1/roles", "/v1/leases", "/v1/cluster"):
        assert (await ask(guarded, admin, "GET", target, None)).status == 200
    assert lines() == []


async def test_strangers_write_no_more_than_their_share(guarded: Local, lines: Lines) -> None:
    """What was refused before anybody asked who it was is no change, and has no line."""

    async def send(method: str, target: str, host: str, expected: int) -> None:
        async with connect(guarded.base_url) as connection:
            connection.send_request(method, target, b"", {"Host": host, **JSON})
            assert (await connection.receive()).status == expected, (method, target)

    for method, target, host, expected in (
        ("PATCH", "/v1/tokens", "t", 405),
        ("POST", "/v1/tokens", "elsewhere.example", 421),
        ("POST", "/v1/tokens-and-more", "t", 404),
        ("DELETE", "/v1/roles/app/", "elsewhere.example", 421),
        ("PUT", "/v1/cluster/handover", "t", 405),
        ("POST", "/v1/backup", "t", 405),
    ):
        await send(method, target, host, expected)
    assert lines() == []
    guarded.node.fail_with = NotPrimaryError("no_primary", "cut off")
    await send("POST", "/v1/tokens", "t", 503)  # who asks could not be judged
    assert lines() == []
    guarded.node.fail_with = None
    for _ in range(MAX_LINES_PER_S + 20):
        await send("POST", "/v1/tokens", "t", 401)
    assert {line["event"] for line in lines()} <= {"refused", "suppressed"}


async def test_a_token_where_its_id_belongs_is_told_to_nobody(
    guarded: Local, admin: NewToken, lines: Lines, tmp_path: Path
) -> None:
    """A2: a token is easily taken for its id."""
    other = draw_token()
    for method, target, bearer in (
        ("DELETE", f"/v1/tokens/{other.text}", admin),
        ("DELETE", f"/v1/tokens/{other.text[:-9]}", admin),
        ("GET", f"/v1/kv/{other.text}", draw_token()),
        ("PUT", f"/v1/roles/{other.text}", admin),
    ):
        reply = await ask(guarded, bearer, method, target, ROLE if method == "PUT" else None)
        assert reply.status >= 400
        assert other.text[21:30] not in reply.body.decode(), target
    assert len(lines()) >= 3
    text = (tmp_path / "audit.jsonl").read_text()
    assert f"oct_{other.id}_" in text, "whose it is may be told"
    assert other.text[21:30] not in text
