"""Transactions and range deletes over HTTP: what they do, what is refused of them, and where."""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest

from cluster.api.settings import HttpSettings
from cluster.api.txn import MIN_BODY_LIMIT_BYTES
from cluster.services import kv as kv_service
from cluster.services.txn import MAX_COMPARISONS, MAX_DELETED_KEYS, MAX_RANGES, MAX_STEPS
from tests.support.raw_http import Reply, fetch, kv
from tests.support.served import Serve

JSON = {"Content-Type": "application/json"}


async def ask(base_url: str, document: object, query: str = "", **headers: str) -> Reply:
    body = document if isinstance(document, bytes) else msgspec.json.encode(document)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await fetch(base_url, "POST", f"/v1/txn{query}", body, {**JSON, **named})


async def done(base_url: str, document: object, **headers: str) -> dict[str, Any]:
    reply = await ask(base_url, document, **headers)
    assert reply.status == 200, reply
    answer: dict[str, Any] = reply.json
    return answer


async def put(base_url: str, key: str, value: bytes = b"v") -> int:
    reply = await fetch(base_url, "PUT", kv(key), value)
    return int(reply.json["revision"])


async def test_all_changes_share_one_revision_and_reads_see_the_writes_before_them(
    base_url: str, prefix: str
) -> None:
    a, b, c = (prefix + name for name in "abc")
    before = await put(base_url, a, b"old")
    await put(base_url, b)
    answer = await done(
        base_url,
        {
            "if": [{"key": a, "revision": before}, {"key": c, "exists": False}],
            "then": [
                {"get": {"key": a}},
                {"put": {"key": a, "text": "new"}},
                {"put": {"key": c, "value": base64.b64encode(b"\xff").decode()}},
                {"delete": {"key": b}},
                {"get": {"key": a}},
                {"list": {"prefix": prefix}},
            ],
            "else": [{"get": {"key": b}}],
        },
    )
    assert answer["succeeded"] is True
    revision = answer["revision"]
    shown_a = {
        "key": a, "text": "new", "revision": revision, "create_revision": before, "version": 2,
    }  # fmt: skip
    shown_c = {
        "key": c, "value": "/w==", "revision": revision, "create_revision": revision, "version": 1,
    }  # fmt: skip
    assert answer["results"] == [
        {"get": {**shown_a, "text": "old", "revision": before, "version": 1}},
        {"put": {"created": False}},
        {"put": {"created": True}},
        {"delete": {"deleted": 1}},
        {"get": shown_a},
        {"list": {"items": [shown_a, shown_c], "cursor": None}},
    ]
    look = {"then": [{"get": {"key": a}}, {"get": {"key": c}}, {"list": {"prefix": prefix}}]}
    binary = await ask(base_url, look, Accept="application/msgpack")
    assert binary.headers["content-type"] == "application/msgpack"
    bytes_a = {**shown_a, "value": b"new"}
    del bytes_a["text"]
    bytes_c = {**shown_c, "value": b"\xff"}
    assert msgspec.msgpack.decode(binary.body)["results"] == [
        {"get": bytes_a},
        {"get": bytes_c},
        {"list": {"items": [bytes_a, bytes_c], "cursor": None}},
    ]
    read = await fetch(base_url, "GET", kv(a))
    assert (read.body, read.headers["etag"]) == (b"new", f'"{revision}"')
    assert read.headers["onecopy-create-revision"] == str(before)
    assert read.headers["onecopy-key-version"] == "2"
    assert (await fetch(base_url, "GET", kv(b))).status == 404
    assert (answer["epoch"], answer["copies"]) == (1, 3)


async def test_a_comparison_that_fails_carries_out_the_other_branch_alone(
    base_url: str, prefix: str
) -> None:
    key = prefix + "k"
    revision = await put(base_url, key)
    answer = await done(
        base_url,
        {
            "if": [{"key": key, "exists": True}, {"key": key, "revision": revision + 1}],
            "then": [{"put": {"key": key, "text": "never"}}],
            "else": [{"get": {"key": key}}, {"get": {"key": prefix + "none"}}],
        },
    )
    assert answer["succeeded"] is False
    assert answer["results"][0]["get"]["revision"] == revision
    assert answer["results"][1] == {"get": None}
    assert answer["revision"] >= revision
    assert (await fetch(base_url, "GET", kv(key))).body == b"v"


COMPARISONS: list[tuple[dict[str, Any], bool]] = [
    ({"exists": True}, True),
    ({"exists": False}, False),
    ({"version": 2}, True),
    ({"version": {"eq": 1}}, False),
    ({"version": {"gt": 1, "lt": 3}}, True),
    ({"version": {"gt": 1, "lt": 2}}, False),
    ({"version": {"ne": 2}}, False),
    ({"revision": {"gt": 0}}, True),
    ({"create_revision": {"gt": 0}, "revision": {"lt": 1}}, False),
    ({"text": "m"}, True),
    ({"text": {"lt": "n", "gt": "l"}}, True),
    ({"text": {"lt": "m"}}, False),
    ({"text": {"ne": "m"}}, False),
    ({"value": "bQ=="}, True),
    ({"value": {"gt": "bQ=="}}, False),
    ({"lease": "0"}, True),
    ({"lease": {"ne": "0"}}, False),
    ({"lease": {"eq": "77"}}, False),
]
ABSENT: list[tuple[dict[str, Any], bool]] = [
    ({"exists": False}, True),
    ({"revision": 0}, True),
    ({"create_revision": 0, "version": 0}, True),
    ({"version": {"lt": 1}}, True),
    ({"text": {"ne": "m"}}, False),
    ({"value": {"lt": "bQ=="}}, False),
    ({"lease": "0"}, True),
]


@pytest.mark.parametrize(("given", "holds"), COMPARISONS, ids=map(str, COMPARISONS))
async def test_comparisons_of_a_key(
    base_url: str, prefix: str, given: dict[str, Any], holds: bool
) -> None:
    key = prefix + "k"
    await put(base_url, key, b"first")
    await put(base_url, key, b"m")
    asked = {"if": [{"key": key, **given}], "then": [{"get": {"key": key}}]}
    assert (await done(base_url, asked))["succeeded"] is holds


@pytest.mark.parametrize(("given", "holds"), ABSENT, ids=map(str, ABSENT))
async def test_comparisons_of_a_key_that_is_not_there(
    base_url: str, prefix: str, given: dict[str, Any], holds: bool
) -> None:
    asked = {"if": [{"key": prefix, **given}], "then": [{"get": {"key": prefix}}]}
    assert (await done(base_url, asked))["succeeded"] is holds


async def test_a_lock_that_nobody_holds_fails_its_comparison(base_url: str) -> None:
    asked = {"if": [{"lock": "jobs", "token": 77}], "then": [{"get": {"key": "k"}}]}
    assert (await done(base_url, asked))["succeeded"] is False


WRONG: list[tuple[object, str]] = [
    (b"{", "truncated"),
    ([], "$"),
    ({}, "$"),
    ({"then": []}, "$"),
    ({"then": [{}]}, "$.then[0]"),
    ({"then": [{"put": {"key": "a", "text": ""}, "get": {"key": "a"}}]}, "$.then[0]"),
    ({"then": [{"put": {"key": "a"}}]}, "$.then[0].put"),
    ({"then": [{"put": {"key": "a", "text": "", "value": ""}}]}, "$.then[0].put"),
    ({"then": [{"put": {"text": ""}}]}, "$.then[0].put"),
    ({"then": [{"put": {"key": "", "text": ""}}]}, "$.then[0].put.key"),
    ({"then": [{"put": {"key": "k" * 481, "text": ""}}]}, "$.then[0].put.key"),
    ({"then": [{"put": {"key": "a", "value": "!"}}]}, "$.then[0].put.value"),
    ({"then": [{"put": {"key": "a", "text": 1}}]}, "$.then[0].put.text"),
    ({"then": [{"put": {"key": "a", "text": "x" * 70_001}}]}, "$.then[0].put"),
    ({"else": [{"put": {"key": "a", "text": "", "ttl": 1}}]}, "$.else[0].put"),
    ({"else": [{"delete": {}}]}, "$.else[0].delete"),
    ({"else": [{"delete": {"prefix": ""}}]}, "$.else[0].delete"),
    ({"else": [{"delete": {"key": "a", "prefix": "b"}}]}, "$.else[0].delete"),
    ({"else": [{"delete": {"end": "é" * 241}}]}, "$.else[0].delete.end"),
    ({"then": [{"get": {}}]}, "$.then[0].get"),
    ({"then": [{"list": {"limit": 0}}]}, "$.then[0].list.limit"),
    ({"then": [{"list": {"limit": 1001}}]}, "$.then[0].list.limit"),
    ({"if": [{}], "then": [{"get": {"key": "a"}}]}, "$.if[0]"),
    ({"if": [{"key": "a"}], "then": [{"get": {"key": "a"}}]}, "$.if[0]"),
    ({"if": [{"exists": True}], "then": [{"get": {"key": "a"}}]}, "$.if[0]"),
    ({"if": [{"key": "a", "revison": 4}], "then": [{"get": {"key": "a"}}]}, "$.if[0]"),
    ({"if": [{"key": "a", "revision": -1}], "then": [{"get": {"key": "a"}}]}, "$.if[0].revision"),
    ({"if": [{"key": "a", "revision": {}}], "then": [{"get": {"key": "a"}}]}, "$.if[0].revision"),
    ({"if": [{"key": "a", "text": {"le": ""}}], "then": [{"get": {"key": "a"}}]}, "$.if[0].text"),
    ({"if": [{"key": "a", "lease": "x"}], "then": [{"get": {"key": "a"}}]}, "$.if[0].lease"),
    ({"if": [{"lock": "a"}], "then": [{"get": {"key": "a"}}]}, "$.if[0]"),
    ({"if": [{"lock": "a", "token": 1, "key": "b"}], "then": [{"get": {"key": "a"}}]}, "$.if[0]"),
    ({"if": [{"key": "b", "version": 1, "token": 1}], "then": [{"get": {"key": "a"}}]}, "$.if[0]"),
    ({"then": [{"put": {"key": "a", "text": ""}}, {"put": {"key": "a", "text": ""}}]}, "$.then[1]"),
    ({"then": [{"delete": {"key": "a"}}, {"put": {"key": "a", "text": ""}}]}, "$.then[1]"),
    ({"then": [{"put": {"key": "ab", "text": ""}}, {"delete": {"prefix": "a"}}]}, "$.then[1]"),
    ({"then": [{"delete": {"start": "a", "end": "c"}}, {"delete": {"start": "b"}}]}, "$.then[1]"),
    ({"then": [{"delete": {"start": "a"}}, {"delete": {"key": "z"}}]}, "$.then[1]"),
]  # fmt: skip


@pytest.mark.parametrize(("document", "path"), WRONG, ids=map(str, range(len(WRONG))))
async def test_what_is_wrong_is_refused_with_its_path(
    serve: Serve, document: object, path: str
) -> None:
    local = await serve(HttpSettings(max_value_size_bytes=70_000))
    reply = await ask(local.base_url, document)
    assert (reply.status, reply.json["code"]) == (400, "invalid_body"), reply
    assert reply.json["outcome"] == "not_applied"
    assert path == "truncated" or f"`{path}" in reply.json["detail"] or path == "$", reply
    assert local.node.executed == 0


GET: dict[str, Any] = {"get": {"key": "k"}}
TOO_LARGE: list[tuple[dict[str, Any], str]] = [
    ({"then": [GET] * (MAX_STEPS + 1)}, f"{MAX_STEPS} operations"),
    ({"then": [GET], "else": [GET] * (MAX_STEPS + 1)}, "$.else"),
    ({"if": [{"key": "k", "exists": True}] * (MAX_COMPARISONS + 1), "then": [GET]}, "$.if"),
    ({"then": [{"list": {"prefix": "a"}}] * (MAX_RANGES + 1)}, f"{MAX_RANGES} lists"),
]


@pytest.mark.parametrize(("document", "named"), TOO_LARGE, ids=["then", "else", "if", "ranges"])
async def test_what_is_too_much_is_refused_by_its_bound(
    serve: Serve, document: dict[str, Any], named: str
) -> None:
    local = await serve()
    reply = await ask(local.base_url, document)
    assert (reply.status, reply.json["code"]) == (413, "txn_too_large"), reply
    assert named in reply.json["detail"]
    assert local.node.executed == 0


async def test_as_much_as_may_be_is_taken(base_url: str, prefix: str) -> None:
    puts = [{"put": {"key": f"{prefix}{n}", "text": "x"}} for n in range(MAX_STEPS)]
    conditions = [{"key": f"{prefix}0", "exists": False}] * MAX_COMPARISONS
    answer = await done(base_url, {"if": conditions, "then": puts})
    assert answer["results"] == [{"put": {"created": True}}] * MAX_STEPS
    lists = [{"list": {"prefix": prefix, "limit": 1}}] * MAX_RANGES
    assert len((await done(base_url, {"then": lists}))["results"]) == MAX_RANGES


async def test_a_body_over_its_limit_is_refused(base_url: str) -> None:
    reply = await ask(base_url, b" " * (MIN_BODY_LIMIT_BYTES + 1))
    assert (reply.status, reply.json["code"]) == (413, "value_too_large")


async def test_what_reads_or_deletes_too_much_changes_nothing(
    base_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_service, "MAX_RESULT_SIZE_BYTES", 100)
    monkeypatch.setattr(kv_service, "MAX_DELETED_KEYS", 3)
    for number in range(4):
        await put(base_url, f"{prefix}{number}", bytes(70))
    write = {"put": {"key": prefix + "w", "text": "x"}}
    gets = [{"get": {"key": f"{prefix}{number}"}} for number in range(3)]
    listed = [{"list": {"prefix": prefix}}, {"list": {"prefix": prefix}}]
    for steps in (gets, listed, [{"delete": {"prefix": prefix + "0"}}, *gets]):
        reply = await ask(base_url, {"then": [write, *steps]})
        assert (reply.status, reply.json["code"]) == (413, "txn_too_large"), reply
    delete = {"delete": {"start": prefix, "end": prefix + "9"}}
    reply = await ask(base_url, {"then": [write, delete]})
    assert (reply.status, reply.json["code"]) == (413, "txn_too_large"), reply
    assert (await fetch(base_url, "GET", kv(prefix + "w"))).status == 404
    assert (await fetch(base_url, "GET", kv(prefix + "0"))).status == 200
    delete["delete"]["start"] = prefix + "1"
    answer = await done(base_url, {"then": [delete]})
    assert answer["results"] == [{"delete": {"deleted": 3}}]


async def test_a_list_goes_on_with_its_cursor(base_url: str, prefix: str) -> None:
    for number in range(3):
        await put(base_url, f"{prefix}{number}")
    answer = await done(base_url, {"then": [{"list": {"prefix": prefix, "limit": 2}}]})
    (listed,) = answer["results"]
    cursor = listed["list"]["cursor"]
    rest = await fetch(base_url, "GET", f"/v1/kv?{urlencode({'cursor': cursor})}")
    assert [item["key"] for item in rest.json["items"]] == [prefix + "2"]
    keys = await done(base_url, {"then": [{"list": {"prefix": prefix, "keys_only": True}}]})
    shown = {"key", "revision", "create_revision", "version"}
    assert [set(item) for item in keys["results"][0]["list"]["items"]] == [shown] * 3


async def test_a_repeat_under_one_key_is_carried_out_once(base_url: str, prefix: str) -> None:
    document = {"then": [{"put": {"key": prefix, "text": "1"}}, {"get": {"key": prefix}}]}
    first = await ask(base_url, document, Idempotency_Key=prefix)
    again = await ask(base_url, document, Idempotency_Key=prefix)
    assert again.json == first.json
    assert again.headers["idempotent-replayed"] == "true"
    other = await ask(base_url, {"then": [GET]}, Idempotency_Key=prefix)
    assert (other.status, other.json["code"]) == (422, "idempotency_key_reused")


async def test_ack_and_copies_are_as_everywhere(base_url: str, prefix: str) -> None:
    document = {"then": [{"put": {"key": prefix, "text": "1"}}]}
    reply = await ask(base_url, document, "?ack=local")
    assert (reply.json["ack"], "onecopy-revision" in reply.headers) == ("local", False)
    reply = await ask(base_url, document, "?min_copies=9")
    assert (reply.status, reply.json["code"]) == (503, "not_enough_copies")
    reply = await ask(base_url, document, "?min_copy=9")
    assert (reply.status, reply.json["code"]) == (400, "unknown_parameter")


@pytest.mark.parametrize("name", ["If-Match", "If-None-Match"])
async def test_conditions_in_headers_are_refused(base_url: str, name: str) -> None:
    for reply in (
        await ask(base_url, {"then": [GET]}, **{name.replace("-", "_"): "*"}),
        await fetch(base_url, "DELETE", "/v1/kv?prefix=a", None, {name: "*"}),
    ):
        assert (reply.status, reply.json["code"]) == (400, "invalid_header")
        assert name in reply.json["detail"]


# -- DELETE /v1/kv


async def delete(base_url: str, **params: object) -> Reply:
    return await fetch(base_url, "DELETE", f"/v1/kv?{urlencode(params)}")


async def test_a_range_is_deleted_in_parts(base_url: str, prefix: str) -> None:
    for number in range(5):
        await put(base_url, f"{prefix}{number}")
    first = await delete(base_url, prefix=prefix, limit=2)
    assert (first.status, first.json["deleted"]) == (200, 2)
    left = await fetch(base_url, "GET", f"/v1/kv?{urlencode({'prefix': prefix})}")
    assert [item["key"][-1] for item in left.json["items"]] == ["2", "3", "4"]
    assert left.json["revision"] >= first.json["revision"]
    rest = await delete(base_url, cursor=first.json["cursor"])
    assert (rest.json["deleted"], rest.json["cursor"]) == (3, None)
    none = await delete(base_url, prefix=prefix)
    assert (none.json["deleted"], none.json["cursor"]) == (0, None)
    assert none.json["revision"] >= rest.json["revision"]


async def test_start_and_end_bound_what_is_deleted(base_url: str, prefix: str) -> None:
    for number in range(5):
        await put(base_url, f"{prefix}{number}")
    reply = await delete(base_url, start=prefix + "1", end=prefix + "3")
    assert reply.json["deleted"] == 2
    left = await fetch(base_url, "GET", f"/v1/kv?{urlencode({'prefix': prefix})}")
    assert [item["key"][-1] for item in left.json["items"]] == ["0", "3", "4"]


@pytest.mark.parametrize("params", [{}, {"prefix": ""}, {"start": "", "end": ""}, {"limit": 5}])
async def test_everything_is_never_deleted_by_accident(
    base_url: str, prefix: str, params: dict[str, Any]
) -> None:
    await put(base_url, prefix)
    listed = await fetch(base_url, "GET", "/v1/kv?limit=1")
    for found in (params, {"cursor": listed.json["cursor"]} if listed.json["cursor"] else {}):
        reply = await delete(base_url, **found)
        assert (reply.status, reply.json["code"]) == (400, "invalid_parameter"), reply
    assert (await fetch(base_url, "GET", kv(prefix))).status == 200


async def test_a_repeated_range_delete_deletes_nothing_more(base_url: str, prefix: str) -> None:
    for number in range(3):
        await put(base_url, f"{prefix}{number}")
    target = f"/v1/kv?{urlencode({'prefix': prefix, 'limit': 1})}"
    headers = {"Idempotency-Key": prefix}
    first = await fetch(base_url, "DELETE", target, None, headers)
    again = await fetch(base_url, "DELETE", target, None, headers)
    assert again.json == first.json
    assert (await delete(base_url, prefix=prefix)).json["deleted"] == 2


@pytest.mark.parametrize("limit", [0, MAX_DELETED_KEYS + 1])
async def test_the_limit_is_bounded(base_url: str, limit: int) -> None:
    reply = await delete(base_url, prefix="p", limit=limit)
    assert (reply.status, reply.json["code"]) == (400, "invalid_parameter")


async def test_they_are_counted(base_url: str, prefix: str) -> None:
    async def numbers() -> dict[str, float]:
        text = (await fetch(base_url, "GET", "/metrics")).body.decode()
        lines = (line.split() for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in lines if "{" not in name}

    before = await numbers()
    await done(base_url, {"then": [{"put": {"key": prefix, "text": "1"}}]})
    await done(base_url, {"if": [{"key": prefix, "version": 9}], "then": [GET]})
    await delete(base_url, prefix=prefix)
    after = await numbers()
    names = ("transactions_total", "transactions_else_total", "range_deleted_keys_total")
    grown = [after[f"onecopy_{name}"] - before[f"onecopy_{name}"] for name in names]
    assert grown == [2, 1, 1]
