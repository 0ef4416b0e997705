"""The dashboard's files, and what the API has for it: changes of the view, the caller, a queue."""

from __future__ import annotations

import json
import re

import pytest

from cluster.api.route_rights import PAGES
from cluster.dashboard.files import load_files
from cluster.services.access import ACCESS_SERVICE
from cluster.services.access_guard import draw_token
from cluster.services.rights import Role, encode_role
from datapath.operations import Operation
from tests.support.local_node import LocalNode
from tests.support.raw_http import fetch
from tests.support.served import Local, Serve

JSON = {"Content-Type": "application/json"}
FILES = load_files()
MAX_SIZE_BYTES = 100_000
"""Of all files together: it is to be small."""
ELSEWHERE = re.compile(rb"(?:https?:)?//[a-z0-9]", re.IGNORECASE)
NAMESPACE = b"http://www.w3.org/2000/svg"


async def test_the_page_may_load_and_run_nothing_but_its_own_files(base_url: str) -> None:
    reply = await fetch(base_url, "GET", PAGES)
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(
        part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";")
    )
    assert policy.pop("require-trusted-types-for") == "'script'"
    own = {"script-src", "style-src", "img-src", "connect-src"}
    assert {name for name, value in policy.items() if value == "'self'"} == own
    assert {value for name, value in policy.items() if name not in own} == {"'none'"}
    assert reply.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", sorted(FILES))
async def test_each_file_is_served_once(base_url: str, name: str) -> None:
    reply = await fetch(base_url, "GET", PAGES + name)
    assert (reply.status, reply.body) == (200, FILES[name].body)
    known = {"If-None-Match": reply.headers["etag"]}
    again = await fetch(base_url, "GET", PAGES + name, None, known)
    assert (again.status, again.body) == (304, b"")
    head = await fetch(base_url, "HEAD", PAGES + name)
    assert (head.status, head.headers["content-length"]) == (200, str(len(reply.body)))


def test_the_files_are_few_and_name_nothing_elsewhere() -> None:
    assert sum(len(file.body) for file in FILES.values()) < MAX_SIZE_BYTES
    for name, file in FILES.items():
        found = ELSEWHERE.findall(file.body.replace(NAMESPACE, b""))
        assert not found, name
        for imported in re.findall(rb"from '\./([^']+)'", file.body):
            assert imported.decode() in FILES, name


async def test_the_path_without_its_slash_leads_to_the_page(base_url: str) -> None:
    reply = await fetch(base_url, "GET", "/ui")
    assert (reply.status, reply.headers["location"]) == (308, PAGES)


@pytest.mark.parametrize("path", ["/ui/none.js", "/ui/../pyproject.toml", "/ui//index.html"])
async def test_nothing_else_is_served(base_url: str, path: str) -> None:
    reply = await fetch(base_url, "GET", path)
    assert (reply.status, reply.code) == (404, "not_found")


async def test_a_file_is_only_read(base_url: str) -> None:
    reply = await fetch(base_url, "POST", PAGES, b"{}", JSON)
    assert (reply.status, reply.code) == (405, "method_not_allowed")


async def test_the_changes_of_the_view_tell_who_and_why(local: Local) -> None:
    before = await fetch(local.base_url, "GET", "/v1/cluster/views")
    assert before.json == {"views": []}
    body = json.dumps({"to": "n2"}).encode()
    await fetch(local.base_url, "POST", "/v1/cluster/handover", body, JSON)
    [step] = (await fetch(local.base_url, "GET", "/v1/cluster/views")).json["views"]
    assert (step["kind"], step["nodes"], step["primary"]) == ("handover", ["n2"], "n2")
    assert step["reason"].startswith("n1 handed over to n2")
    assert step["version"] == local.node.view.version


async def test_a_lock_shows_the_first_of_those_who_wait(local: Local) -> None:
    for number in range(3):
        wish = {"ttl_ms": 10_000, "note": f"host {number}", "wait_ms": 1 if number else 0}
        if number:
            lease = await fetch(local.base_url, "POST", "/v1/leases", b'{"ttl_ms": 10000}', JSON)
            del wish["ttl_ms"]
            wish |= {"lease": lease.json["lease"], "keep_place": True}
        await fetch(local.base_url, "POST", "/v1/locks/jobs", json.dumps(wish).encode(), JSON)
    held = (await fetch(local.base_url, "GET", "/v1/locks/jobs")).json
    assert (held["note"], held["waiting"]) == ("host 0", 2)
    assert [item["note"] for item in held["queue"]] == ["host 1", "host 2"]


# --- who asks


async def test_without_access_control_the_caller_may_do_everything(base_url: str) -> None:
    reply = await fetch(base_url, "GET", "/v1/whoami")
    assert reply.json == {
        "access_control": False, "token": "", "role": "", "rights": {"admin": True},
    }  # fmt: skip


async def test_without_access_control_a_proxys_caller_may_not_change_the_cluster(
    base_url: str,
) -> None:
    reply = await fetch(base_url, "GET", "/v1/whoami", None, {"Via": "1.1 proxy"})
    assert reply.status == 200
    assert "admin" not in reply.json["rights"]
    assert reply.json["rights"]["write"] == [""]


async def test_a_token_tells_its_role_and_nobody_elses(serve: Serve) -> None:
    local = await serve()
    app, admin = draw_token(), draw_token()
    role = Role(read=("app/",), call=("shop",))
    await grant(local.node, "seed", admin.id, admin.digest)
    await grant(local.node, "set_role", "app", encode_role(role))
    await grant(local.node, "create_token", app.id, app.digest, "app", "")
    local.node.guard.is_on = True
    reply = await fetch(local.base_url, "GET", "/v1/whoami", None, bearer(app.text))
    assert reply.json == {
        "access_control": True, "token": app.id, "role": "app",
        "rights": {"read": ["app/"], "call": ["shop"]},
    }  # fmt: skip
    assert reply.headers["cache-control"] == "no-store"
    reply = await fetch(local.base_url, "GET", "/v1/whoami", None, bearer(admin.text))
    assert (reply.json["role"], reply.json["rights"]) == ("admin", {"admin": True})
    refused = await fetch(local.base_url, "GET", "/v1/whoami")
    assert (refused.status, refused.code) == (401, "unauthenticated")
    page = await fetch(local.base_url, "GET", PAGES)
    assert page.status == 200  # else nobody could enter a token


async def test_a_caller_without_a_token_has_the_role_that_is_configured(serve: Serve) -> None:
    local, admin = await serve(), draw_token()
    await grant(local.node, "seed", admin.id, admin.digest)
    await grant(local.node, "set_role", "guest", encode_role(Role(read=("",))))
    local.node.guard.is_on, local.node.guard.anonymous = True, "guest"
    reply = await fetch(local.base_url, "GET", "/v1/whoami")
    assert reply.json == {
        "access_control": True, "token": "", "role": "guest", "rights": {"read": [""]},
    }  # fmt: skip


async def grant(node: LocalNode, method: str, *args: object) -> None:
    await node.execute(Operation(method, args, service=ACCESS_SERVICE), 1000)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}
