"""What the API knows of rights: one table, which is the document's and the dispatch's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from cluster.api.access import caller_of
from cluster.api.answer import Answer
from cluster.api.audit import MAX_LINES_PER_S, Audit
from cluster.api.cors import let_read, preflight
from cluster.api.headers import Headers
from cluster.api.hosts import Hosts
from cluster.api.openapi_services import openapi_document
from cluster.api.problems import ProblemError
from cluster.api.route_rights import OPEN, ROUTE_RIGHTS, is_for_no_primary, right_for
from cluster.services.access_guard import draw_token
from cluster.services.rights import RIGHTS
from datapath.operations import ANONYMOUS, Principal

OPEN_PATHS = {"/livez", "/readyz", "/primary", "/openapi.json"}


def headers(*pairs: tuple[str, str]) -> Headers:
    return CIMultiDictProxy(CIMultiDict(pairs))


def test_every_operation_of_the_document_has_a_right_and_few_are_open() -> None:
    found: dict[str, set[str]] = {}
    for path, operations in openapi_document({})["paths"].items():
        for method, item in operations.items():
            if method != "parameters":
                found.setdefault(path, set()).add(method.upper())
                assert item["x-onecopy-right"] in {*RIGHTS, OPEN}
                is_open = path in OPEN_PATHS or (path == "/v1/groups" and method != "put")
                assert (item["x-onecopy-right"] == OPEN) == is_open
                assert bool(item["security"]) != is_open
    assert {path: methods - {"HEAD"} for path, methods in found.items()} == {
        path: set(methods) for path, methods in ROUTE_RIGHTS.items()
    }


def test_what_is_not_in_the_table_needs_the_right_admin() -> None:
    assert right_for("/v2/new", "GET") == "admin"
    assert right_for("/v1/kv/{key}", "PATCH") == "admin"
    assert right_for("/v1/kv/{key}", "HEAD") == "read"
    assert right_for("/v1/kv/{key}", "GET", "after=3") == "watch"


def test_two_requests_are_for_a_cluster_without_a_primary() -> None:
    node = "/v1/cluster/nodes/{id}"
    assert is_for_no_primary("/v1/backup", "GET", "timeout_ms=5&consistency=stale")
    assert is_for_no_primary(node, "DELETE", "force=n2")
    for template, method, query in (
        ("/v1/backup", "GET", ""),
        ("/v1/backup", "GET", "consistency=linearizable"),
        ("/v1/backup", "GET", "consistency=stale&consistency=stale"),
        ("/v1/digest", "GET", "consistency=stale"),
        (node, "DELETE", "timeout_ms=9"),
        (node, "PATCH", "force=n2"),
    ):
        assert not is_for_no_primary(template, method, query), (template, method, query)


def test_the_caller_is_who_the_header_names() -> None:
    token = draw_token()
    assert caller_of(headers(), None) == ANONYMOUS
    for scheme in ("Bearer", "bearer"):
        found = caller_of(headers(("Authorization", f"{scheme} {token.text}")), None)
        assert found == Principal(token.id, token.digest)


@pytest.mark.parametrize(
    "values",
    [("",), ("Bearer",), ("Bearer x",), ("Basic dTpw",), ("Bearer a", "Bearer b")],
)
def test_what_is_no_token_is_refused_and_not_repeated(values: tuple[str, ...]) -> None:
    with pytest.raises(ProblemError) as found:
        caller_of(headers(*(("Authorization", value) for value in values)), None)
    assert found.value.status == 401
    assert "dTpw" not in found.value.detail


def test_the_audit_log_is_bounded_private_and_has_no_query(tmp_path: Path) -> None:
    now = [0.0]
    path = tmp_path / "audit.jsonl"
    audit = Audit(path, "n1", lambda: now[0], lambda: 0.0)
    assert path.stat().st_mode & 0o077 == 0
    for _ in range(3 * MAX_LINES_PER_S):
        audit.refused("id", "127.0.0.1", "GET", "/v1/kv/k?secret=1", 401)
    audit.admin("id", "127.0.0.1", "DELETE", "/v1/tokens/x", 200)
    now[0] = 1.5
    audit.tick()
    audit.close()
    lines: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["event"] for line in lines].count("refused") == MAX_LINES_PER_S
    assert lines[-1]["suppressed"] == 2 * MAX_LINES_PER_S
    assert lines[-2]["path"] == "/v1/tokens/x"
    assert "secret" not in path.read_text()


def test_an_audit_log_that_cannot_be_written_is_told_now_and_then(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a full disk each refusal would be a traceback, in no form that a log has."""
    now = [0.0]
    audit = Audit(Path("/dev/full"), "n1", lambda: now[0], lambda: 0.0)
    for second in range(40):
        now[0] = float(second)
        audit.tick()
        audit.refused("id", "127.0.0.1", "GET", "/v1/kv/k", 401)
        audit.admin("id", "127.0.0.1", "DELETE", "/v1/tokens/x", 200)
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == "the audit log /dev/full cannot be written: No space left on device"
    assert any("were suppressed" in line for line in told)
    assert len(told) <= 4
    audit.close()
    assert capsys.readouterr().err == ""


def test_pages_of_named_origins_may_read_and_no_others() -> None:
    hosts = Hosts(origins=["https://tools.example"])
    ours = headers(("Origin", "https://tools.example"), ("Access-Control-Request-Method", "PUT"))
    theirs = headers(("Origin", "https://evil.example"), ("Access-Control-Request-Method", "PUT"))
    assert preflight("OPTIONS", theirs, hosts) is None
    assert preflight("OPTIONS", ours, Hosts()) is None
    assert preflight("GET", ours, hosts) is None
    answer = preflight("OPTIONS", ours, hosts)
    assert answer is not None
    assert b"Authorization" in answer.as_bytes(closes=False)
    for asked, may in ((ours, True), (theirs, False), (headers(), False)):
        answer = Answer(200, b"{}")
        let_read(answer, asked, hosts)
        assert (b"Allow-Origin: https://tools.example\r\n" in answer.as_bytes(closes=False)) == may
