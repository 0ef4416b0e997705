"""Services over HTTP: calls, refusals, and every kind of request that is wrong in itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

from datapath.errors import OperationNotAppliedError, RejectedError
from tests.support.raw_http import Reply, fetch
from tests.support.served import Local

SHOP = "/v1/services/shop/"
JSON = {"Content-Type": "application/json"}


async def post(local: Local, method: str, body: object, **headers: str) -> Reply:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await fetch(local.base_url, "POST", SHOP + method, data, {**JSON, **headers})


async def test_an_operation_and_what_it_returns(local: Local) -> None:
    reply = await post(local, "reserve", {"item": "apple", "count": 2})
    assert reply.status == 200
    assert reply.json["result"] == {"item": "apple", "count": 2, "left": 98}
    assert reply.json["copies"] == 3
    assert reply.headers["onecopy-revision"] == str(reply.json["revision"])


async def test_an_operation_under_a_lock_that_is_lost_changes_nothing(local: Local) -> None:
    taken = await fetch(local.base_url, "POST", "/v1/locks/till", b'{"ttl_ms": 60000}', JSON)
    token = taken.json["token"]
    refused = await post(local, "reserve", {"item": "x", "count": 2}, **{"If-Lock": "till=99"})
    assert (refused.status, refused.code) == (412, "lock_lost")
    held = {"If-Lock": f"till={token}"}
    reply = await post(local, "reserve", {"item": "x", "count": 2}, **held)
    assert reply.json["result"]["left"] == 98
    malformed = await post(local, "reserve", {"item": "x", "count": 2}, **{"If-Lock": "till"})
    assert (malformed.status, malformed.code) == (400, "invalid_header")


async def test_a_query_by_get_and_by_post(local: Local) -> None:
    arguments = "%7B%22item%22:%22apple%20pie%22%7D"
    await post(local, "reserve", {"item": "apple pie", "count": 2})
    for reply in (
        await fetch(local.base_url, "GET", SHOP + "left?item=apple+pie&at_least=5"),
        await fetch(local.base_url, "GET", f"{SHOP}left?arguments={arguments}"),
        await fetch(local.base_url, "GET", SHOP + "left?item=apple%20pie&consistency=stale"),
        await post(local, "left?consistency=confirmed", {"item": "apple pie"}),
    ):
        assert (reply.status, reply.json["result"]) == (200, 98), reply


async def test_a_repeat_gets_the_first_answer_also_with_its_names_in_another_order(
    local: Local,
) -> None:
    key = {"Idempotency-Key": "K"}
    first = await post(local, "reserve", b'{"item": "x", "count": 2}', **key)
    again = await post(local, "reserve", b'{ "count":2, "item":"x" }', **key)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json == first.json
    other = await post(local, "reserve", {"item": "x", "count": 3}, **key)
    assert (other.status, other.code) == (422, "idempotency_key_reused")


async def test_a_refusal_of_the_services_own_is_409_with_its_code(local: Local) -> None:
    reply = await post(local, "reserve", {"item": "apple", "count": 101})
    assert (reply.status, reply.code) == (409, "sold_out")
    assert reply.json["outcome"] == "not_applied"
    assert reply.json["detail"] == "only 100 of apple are left"
    local.node.fail_with = RejectedError("timeout", "a code that others have, too")
    reply = await post(local, "reserve", {"item": "apple"})
    assert (reply.status, reply.code) == (409, "timeout")


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        (b"", 400, "invalid_body", "the arguments are not a JSON object"),
        (b"[1]", 400, "invalid_body", "the arguments are not a JSON object"),
        (b'{"item": "x"', 400, "invalid_body", "the arguments are not a JSON object"),
        (b'{"item": "\xff"}', 400, "invalid_body", "the arguments are not a JSON object"),
        (b'{"item": ' + b"[" * 60_000, 400, "invalid_body", "the arguments"),
        (b"{}", 400, "invalid_argument", "argument 'item' is missing; reserve takes: item, count"),
        (b'{"item": 5}', 400, "invalid_argument", "argument 'item': expected str, got int"),
        (b'{"item": "x", "count": "2"}', 400, "invalid_argument", "argument 'count': expected int"),
        (b'{"item": "x", "count": 2.5}', 400, "invalid_argument", "argument 'count'"),
        (b'{"item": "x", "size": 2}', 400, "invalid_argument", "there is no argument 'size'"),
        (b'{"item": "x", "count": 1e999}', 400, "invalid_body", "the arguments"),
    ],
)
async def test_wrong_arguments_are_named(
    local: Local, body: bytes, status: int, code: str, words: str
) -> None:
    reply = await post(local, "reserve", body)
    assert (reply.status, reply.code) == (status, code), reply
    assert words in reply.json["detail"]
    assert local.node.executed == 0


async def test_text_is_taken_for_numbers_where_that_is_asked_for(local: Local) -> None:
    reply = await post(local, "reserve?from_text=true", {"item": "x", "count": "2"})
    assert reply.json["result"]["count"] == 2


@pytest.mark.parametrize(
    ("method", "target", "status", "code"),
    [
        ("GET", SHOP + "reserve", 405, "method_not_allowed"),
        ("PUT", SHOP + "reserve", 405, "method_not_allowed"),
        ("GET", SHOP + "nothing", 404, "unknown_query"),
        ("GET", "/v1/services/none/left", 404, "unknown_service"),
        ("GET", SHOP, 404, "not_found"),
        ("GET", "/v1/services/shop", 404, "not_found"),
        ("GET", SHOP + "left/more", 404, "not_found"),
        ("GET", "/v1/services//get", 404, "not_found"),
        ("GET", "/v1/services/:leases/get", 404, "not_found"),
        ("GET", "/v1/services/%3Alocks/get", 404, "not_found"),
        ("GET", SHOP + ":start", 404, "not_found"),
        ("GET", SHOP + "%3Adifference", 404, "not_found"),
        ("GET", SHOP + "%ff", 404, "not_found"),
        ("GET", SHOP + "x" * 400, 404, "not_found"),
        ("GET", SHOP + "left", 400, "invalid_argument"),
        ("GET", SHOP + "left?item=x&item=y", 400, "invalid_parameter"),
        ("GET", SHOP + "left?item=x&size=2", 400, "invalid_argument"),
        ("GET", SHOP + "left?item=x&arguments=%7B%7D", 400, "invalid_parameter"),
        ("GET", SHOP + "left?arguments=x", 400, "invalid_body"),
        ("GET", SHOP + "left?item=x&at_least=many", 400, "invalid_argument"),
        ("GET", SHOP + "left?item=x&consistency=eventual", 400, "invalid_parameter"),
        ("GET", SHOP + "left?item=x&max_staleness_ms=5", 400, "invalid_parameter"),
        ("GET", "/v1/services?x=1", 400, "unknown_parameter"),
    ],
)
async def test_wrong_targets_are_refused(
    local: Local, method: str, target: str, status: int, code: str
) -> None:
    reply = await fetch(local.base_url, method, target)
    assert (reply.status, reply.code) == (status, code), reply


@pytest.mark.parametrize(
    ("target", "headers", "status", "code"),
    [
        ("reserve", {"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
        ("reserve?x=1", JSON, 400, "unknown_parameter"),
        ("reserve?consistency=stale", JSON, 400, "unknown_parameter"),
        ("left?ack=local", JSON, 400, "unknown_parameter"),
        ("reserve?ack=local&min_copies=2", JSON, 400, "invalid_parameter"),
        ("reserve?min_copies=9", JSON, 503, "not_enough_copies"),
        ("reserve", {**JSON, "Idempotency-Key": '"'}, 400, "invalid_header"),
        (":start", JSON, 404, "not_found"),
        ("nothing", JSON, 404, "unknown_operation"),
    ],
)
async def test_wrong_posts_are_refused(
    local: Local, target: str, headers: dict[str, str], status: int, code: str
) -> None:
    reply = await fetch(local.base_url, "POST", SHOP + target, b'{"item": "x"}', headers)
    assert (reply.status, reply.code) == (status, code), reply
    assert local.node.executed == 0


@pytest.mark.parametrize(
    ("code", "status"),
    [("service_failed", 500), ("service_timeout", 504), ("service_starting", 503),
     ("service_outdated", 503), ("too_large", 413), ("invalid_argument", 400)],
)  # fmt: skip
async def test_what_the_host_says_has_a_status_of_its_own(
    local: Local, code: str, status: int
) -> None:
    local.node.fail_with = OperationNotAppliedError(code, "so")
    reply = await post(local, "reserve", {"item": "x"})
    assert (reply.status, reply.code, reply.json["outcome"]) == (status, code, "not_applied")


async def test_the_list_of_services_and_their_metrics(local: Local) -> None:
    await post(local, "reserve", {"item": "x"})
    await post(local, "reserve", {"item": "x", "count": 1000})
    reply = await fetch(local.base_url, "GET", "/v1/services")
    (found,) = reply.json["services"]
    expected: dict[str, Any] = {
        "name": "shop", "version": 1, "operations": ["reserve"], "queries": ["left"],
        "timers": [], "difference": "",
    }  # fmt: skip
    assert expected.items() <= found.items()
    text = (await fetch(local.base_url, "GET", "/metrics")).body.decode()
    labels = 'method="reserve",outcome="{}",service="shop"'
    for outcome in ("ok", "refused"):
        assert f"onecopy_service_calls_total{{{labels.format(outcome)}}} 1.0" in text
    assert 'onecopy_service_version{service="shop"} 1.0' in text
