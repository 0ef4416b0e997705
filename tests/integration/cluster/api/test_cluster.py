"""The cluster's resources, health and metrics."""

from __future__ import annotations

import asyncio
import json

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families

from cluster.api.settings import HttpSettings
from datapath.errors import NotPrimaryError, RejectedError
from tests.support.raw_http import fetch, kv
from tests.support.served import Local, Serve

JSON = {"Content-Type": "application/json"}


async def test_the_cluster_says_who_is_in_charge(base_url: str) -> None:
    reply = await fetch(base_url, "GET", "/v1/cluster")
    status = reply.json
    assert reply.status == 200
    assert status["primary"] in status["in_sync"]
    assert set(status["in_sync"]) <= set(status["nodes"])
    assert status["nodes"][status["primary"]]["state"] == "primary"
    assert str(status["epoch"]) == reply.headers["onecopy-epoch"]


async def test_a_handover_gives_the_new_view(base_url: str) -> None:
    status = (await fetch(base_url, "GET", "/v1/cluster")).json
    to = next(node for node in status["in_sync"] if node != status["primary"])
    body = json.dumps({"to": to}).encode()
    reply = await fetch(base_url, "POST", "/v1/cluster/handover", body, JSON)
    assert (reply.status, reply.json["primary"]) == (200, to)
    assert reply.json["epoch"] > status["epoch"]


async def test_a_handover_to_nobody_is_refused(base_url: str) -> None:
    reply = await fetch(base_url, "POST", "/v1/cluster/handover", b'{"to": "n99"}', JSON)
    assert (reply.status, reply.code) == (404, "unknown_node")
    assert reply.json["outcome"] == "not_applied"
    assert "n99" in reply.json["detail"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"{}", b'{"to": 2}', b'{"to": "n2", "now": true}', b'{"to": "\xff"}']
)
async def test_a_malformed_handover_is_refused(base_url: str, body: bytes) -> None:
    reply = await fetch(base_url, "POST", "/v1/cluster/handover", body, JSON)
    assert (reply.status, reply.code) == (400, "invalid_body")
    assert '{"to": "n2"}' in reply.json["detail"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_a_handover_that_a_web_page_could_send_is_refused(
    base_url: str, content_type: str
) -> None:
    before = (await fetch(base_url, "GET", "/v1/cluster")).json
    to = next(node for node in before["in_sync"] if node != before["primary"])
    body = json.dumps({"to": to}).encode()
    reply = await fetch(
        base_url, "POST", "/v1/cluster/handover", body, {"Content-Type": content_type}
    )
    assert (reply.status, reply.code) == (415, "unsupported_media_type")
    assert (await fetch(base_url, "GET", "/v1/cluster")).json["primary"] == before["primary"]


async def test_a_json_body_is_bounded(base_url: str) -> None:
    body = b'{"to": "' + b"n" * 70_000 + b'"}'
    reply = await fetch(base_url, "POST", "/v1/cluster/handover", body, JSON)
    assert (reply.status, reply.code) == (413, "value_too_large")


async def test_a_node_is_taken_out(local: Local) -> None:
    base_url = local.base_url
    status = (await fetch(base_url, "GET", "/v1/cluster")).json
    gone = next(node for node in status["nodes"] if node != status["primary"])
    reply = await fetch(base_url, "DELETE", f"/v1/cluster/nodes/{gone}")
    assert reply.status == 200
    assert gone not in [member["id"] for member in reply.json["members"]]
    assert gone not in reply.json["in_sync"]
    again = await fetch(base_url, "DELETE", f"/v1/cluster/nodes/{gone}")
    assert (again.status, again.json) == (200, reply.json), "to repeat it is harmless"
    never = await fetch(base_url, "DELETE", "/v1/cluster/nodes/n99")
    assert (never.status, never.code) == (404, "unknown_node")


async def test_a_move_to_what_is_no_address_names_the_field(local: Local) -> None:
    body, headers = b'{"raft": "10.0.0.2"}', {"Content-Type": "application/json"}
    reply = await fetch(local.base_url, "PATCH", "/v1/cluster/nodes/n3", body, headers)
    assert (reply.status, reply.code) == (400, "invalid_body")
    assert reply.json["detail"].startswith("raft: '10.0.0.2' is not host:port")


async def test_force_repeats_the_id(local: Local) -> None:
    target = "/v1/cluster/nodes/n3"
    for force in ("", "n2", "true", "1"):
        reply = await fetch(local.base_url, "DELETE", f"{target}?force={force}")
        assert (reply.status, reply.code) == (400, "invalid_parameter"), force
        assert "'n3'" in reply.json["detail"]
    assert local.node.removals == []
    assert (await fetch(local.base_url, "DELETE", f"{target}?force=n3")).status == 200
    ((node, force_given, asked_by),) = local.node.removals
    assert (node, force_given) == ("n3", True)
    assert asked_by.startswith("127.0.0.1 port ")


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "Via"])
async def test_what_comes_through_a_proxy_changes_no_members(local: Local, header: str) -> None:
    headers = {header: "127.0.0.1"}
    asked = await fetch(local.base_url, "DELETE", "/v1/cluster/nodes/n3", None, headers)
    assert (asked.status, asked.code) == (403, "admin_forbidden")
    assert asked.json["outcome"] == "not_applied"
    body = b'{"to": "n2"}'
    asked = await fetch(local.base_url, "POST", "/v1/cluster/handover", body, {**JSON, **headers})
    assert (asked.status, asked.code) == (403, "admin_forbidden")
    assert local.node.removals == []


async def test_the_primary_is_not_taken_out(base_url: str) -> None:
    primary = (await fetch(base_url, "GET", "/v1/cluster")).json["primary"]
    reply = await fetch(base_url, "DELETE", f"/v1/cluster/nodes/{primary}")
    assert (reply.status, reply.code) == (409, "is_primary")
    assert reply.json["outcome"] == "not_applied"


async def test_a_handover_to_the_primary_is_refused(base_url: str) -> None:
    primary = (await fetch(base_url, "GET", "/v1/cluster")).json["primary"]
    body = json.dumps({"to": primary}).encode()
    reply = await fetch(base_url, "POST", "/v1/cluster/handover", body, JSON)
    assert (reply.status, reply.code) == (409, "handover_failed")


@pytest.mark.parametrize("raw_id", ["", "a/b", "%2f", "%ff"])
async def test_what_is_no_node(base_url: str, raw_id: str) -> None:
    reply = await fetch(base_url, "DELETE", f"/v1/cluster/nodes/{raw_id}")
    assert (reply.status, reply.code) == (404, "not_found")


async def test_the_digest_follows_the_data(base_url: str, prefix: str) -> None:
    before = (await fetch(base_url, "GET", "/v1/digest")).json
    assert (await fetch(base_url, "GET", "/v1/digest")).json == before
    revision = (await fetch(base_url, "PUT", kv(prefix), b"x")).json["revision"]
    after = before
    async with asyncio.timeout(10):
        while after["applied_index"] < revision:  # a backup learns of it a moment later
            after = (await fetch(base_url, "GET", "/v1/digest")).json
    assert set(after) == {"node", "applied_index", "digest"}
    assert after["digest"] != before["digest"]


async def test_a_witness_has_no_digest(local: Local) -> None:
    local.node.fail_with = RejectedError("no_data", "n1 is a witness")
    reply = await fetch(local.base_url, "GET", "/v1/digest")
    assert (reply.status, reply.code) == (404, "no_data")


async def test_health_of_a_serving_primary(base_url: str) -> None:
    for target in ("/livez", "/readyz"):
        assert (await fetch(base_url, "GET", target)).status == 200
        assert (await fetch(base_url, "HEAD", target)).status == 200


async def test_health_without_a_quorum(local: Local) -> None:
    local.node.ready = False
    local.node.fail_with = NotPrimaryError("no_primary", "none")
    assert (await fetch(local.base_url, "GET", "/livez")).status == 200
    ready = await fetch(local.base_url, "GET", "/readyz")
    assert (ready.status, ready.code) == (503, "not_ready")
    assert ready.headers["retry-after"] == "1"
    primary = await fetch(local.base_url, "GET", "/primary")
    assert (primary.status, primary.code) == (503, "not_primary")


async def test_primary_is_200_on_the_primary_only(local: Local) -> None:
    there = await fetch(local.base_url, "GET", "/primary")
    assert (there.status, there.json) == (200, {"primary": "n1", "epoch": 1})
    await local.node.handover("n2", 1000)
    elsewhere = await fetch(local.base_url, "GET", "/primary")
    assert (elsewhere.status, elsewhere.json["primary"]) == (503, "n2")


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_metrics_count_requests_and_show_the_nodes_numbers(
    base_url: str, prefix: str
) -> None:
    before = samples((await fetch(base_url, "GET", "/metrics")).body.decode())
    for _ in range(3):
        await fetch(base_url, "PUT", kv(prefix), b"x")
    await fetch(base_url, "PUT", "/v1/kv/", b"x")
    reply = await fetch(base_url, "GET", "/metrics")
    after = samples(reply.body.decode())
    assert reply.headers["content-type"].startswith("text/plain; version=")

    def rise(name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return after[key] - before.get(key, 0)

    assert rise("onecopy_http_requests_total", method="PUT", status="2xx") == 3
    assert rise("onecopy_http_requests_total", method="PUT", status="4xx") == 1
    name = "onecopy_http_request_duration_seconds"
    assert rise(f"{name}_count", method="PUT") == 4
    assert rise(f"{name}_bucket", method="PUT", le="+Inf") == 4
    assert 0 < rise(f"{name}_sum", method="PUT") < 4
    assert after[("onecopy_http_open_connections", ())] >= 1
    assert after[("process_resident_memory_bytes", ())] > 0
    assert any(name == "onecopy_build_info" for name, _ in after)


async def test_metrics_take_in_the_nodes_counters(local: Local) -> None:
    await fetch(local.base_url, "PUT", "/v1/kv/a", b"x")
    text = (await fetch(local.base_url, "GET", "/metrics")).body.decode()
    assert samples(text)[("onecopy_operations_total", ())] == 1
    assert "# TYPE onecopy_operations_total counter" in text
    assert "# TYPE onecopy_applied_index gauge" in text


async def test_openmetrics_on_request(base_url: str) -> None:
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    reply = await fetch(base_url, "GET", "/metrics", None, accept)
    assert reply.headers["content-type"].startswith("application/openmetrics-text")
    names = {family.name for family in parse_openmetrics(reply.body.decode())}  # type: ignore[no-untyped-call]
    assert "onecopy_http_requests" in names


async def test_the_access_log_is_off_unless_asked_for(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    quiet = await serve()
    await fetch(quiet.base_url, "PUT", "/v1/kv/some-key", b"some-value")
    assert "some-key" not in caplog.text
    loud = await serve(HttpSettings(access_log=True))
    await fetch(loud.base_url, "PUT", "/v1/kv/some-key", b"some-value")
    assert "PUT /v1/kv/some-key 201" in caplog.text
    assert "some-value" not in caplog.text
