"""The OpenAPI document against the live server: nothing documented that isn't so, nor left out.

Each documented answer is provoked and held against its description: status, content type, headers
and schema. `PROVOCATIONS` says how each problem code comes about.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode

import msgspec
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from cluster.api.groups import KnownGroups
from cluster.api.openapi_services import openapi_document
from cluster.api.problems import CODES, ProblemError
from cluster.api.schemas import ACCESS_CODES
from cluster.api.settings import HttpSettings
from cluster.api.txn import MIN_BODY_LIMIT_BYTES
from cluster.groups.group_map import MAX_MAP_BYTES, Group, GroupMap, encode_map
from cluster.services.access import ACCESS_SERVICE
from cluster.services.access_guard import draw_token
from cluster.services.hosting import Host
from cluster.services.rights import Role, encode_role
from cluster.services.txn import MAX_STEPS
from datapath.errors import (
    NotPrimaryError,
    OperationError,
    OperationNotAppliedError,
    OperationUnknownError,
    OverloadedError,
    PrimaryFullError,
    RejectedError,
)
from datapath.operations import Operation
from tests.support.doc_shop import Shop
from tests.support.local_node import LocalNode, local_node
from tests.support.raw_http import Reply, connect, fetch
from tests.support.served import Local, Serve

HOSTS = {"shop": Host("shop", Shop())}
DOCUMENT = openapi_document(HOSTS)
OF_METHODS = "/v1/services/shop/"
"""Where the paths of single methods stand: they are served by the path of all."""
METHODS = ("get", "head", "put", "post", "patch", "delete")
OPERATIONS = [
    (method, path)
    for path, item in DOCUMENT["paths"].items()
    for method in METHODS
    if method in item and not path.startswith(OF_METHODS)
]
TXN = b"""{
    "if": [{"key": "present", "version": {"gt": 0}}],
    "then": [{"put": {"key": "new", "text": "1"}}, {"get": {"key": "new"}},
             {"get": {"key": "none"}}, {"delete": {"prefix": "p"}}, {"list": {"prefix": "n"}}]
}"""
ACCESS_PATHS = ("/v1/tokens", "/v1/roles", "/v1/whoami")
ADMIN, NOBODY = draw_token(), draw_token()
"""An administrator's token, and one of the role "nobody", which may do nothing."""
EVERYTHING = Group("g1", ((0, 4095),), ("http://127.0.0.1:8101",))
SETTINGS = HttpSettings(max_value_size_bytes=70_000, body_timeout_ms=100)


class Ask(NamedTuple):
    """A request, to be spoilt in one way."""

    method: str
    target: str
    body: bytes | None
    headers: dict[str, str]

    def to(self, target: str) -> Ask:
        return self._replace(target=target)

    def query(self, **params: str) -> Ask:
        path, _, query = self.target.partition("?")
        return self.to(f"{path}?{urlencode({**dict(parse_qsl(query)), **params})}")

    def header(self, name: str, value: str) -> Ask:
        return self._replace(headers={**self.headers, name: value})


def is_stream(target: str) -> bool:
    path = target.partition("?")[0]
    return path == "/v1/watch" or path.endswith("/observe")


def good(method: str, path: str) -> Ask:
    target = path.replace("{key}", "present")
    if path.startswith(ACCESS_PATHS):
        return good_of_access(method, target)
    is_lease = path.startswith("/v1/leases")
    target = target.replace("{id}", "2" if is_lease else "n3")
    target = target.replace("{name}", "free" if method == "post" else "held")
    if "{name}" in path and method == "delete":
        return Ask("DELETE", f"{target}?token=3", None, {})
    if path.endswith("{id}/keepalive"):
        return Ask("POST", target, None, {})
    if method == "post" and (is_lease or "{name}" in path):
        body = b'{"leases": ["2"]}' if path.endswith("keepalive") else b'{"ttl_ms": 5000}'
        return Ask("POST", target, body, {"Content-Type": "application/json"})
    if "{method}" in path:
        if method == "post":
            target = target.replace("{service}/{method}", "shop/reserve")
            return Ask("POST", target, b'{"item": "x"}', {"Content-Type": "application/json"})
        target = target.replace("{service}/{method}", "shop/left")
        return Ask(method.upper(), target, None, {}).query(arguments='{"item": "x"}')
    if path == "/v1/txn":
        return Ask("POST", target, TXN, {"Content-Type": "application/json"})
    if (method, path) == ("delete", "/v1/kv"):
        return Ask("DELETE", f"{target}?prefix=p&start=p", None, {})
    if path == "/v1/watch":
        return Ask(method.upper(), f"{path}?start=p", None, {})
    if method == "post":
        return Ask(
            "POST",
            target,
            b"{}" if path.endswith("upgrade") else b'{"to": "n2"}',
            {"Content-Type": "application/json"},
        )
    if (method, path) == ("put", "/v1/groups"):
        body = encode_map(GroupMap(1, (EVERYTHING,)))
        return Ask("PUT", target, body, {"Content-Type": "application/json"})
    if method == "patch":
        moved = b'{"peer": "127.0.0.1:8999"}'
        return Ask("PATCH", target, moved, {"Content-Type": "application/json"})
    return Ask(method.upper(), target, b"x" if method == "put" else None, {})


def good_of_access(method: str, path: str) -> Ask:
    """Return a good request of tokens or roles: the role "unused" is there, and has no token."""
    target = path.replace("{id}", NOBODY.id)
    target = target.replace("{name}", "unused" if method == "delete" else "new")
    body = {"post": b'{"role": "nobody"}', "put": b'{"read": ["a"]}'}.get(method)
    headers = {"Authorization": f"Bearer {ADMIN.text}"}
    if body is not None:
        headers["Content-Type"] = "application/json"
    return Ask(method.upper(), target, body, headers)


def wrong_parameter(ask: Ask) -> Ask:
    if is_stream(ask.target):
        return ask.query(after="x")
    is_range = ask.target.partition("?")[0] == "/v1/kv"
    return ask.query(limit="0") if is_range else ask.query(timeout_ms="0")


def too_many(_ask: Ask) -> bytes:
    return msgspec.json.encode({"then": [{"get": {"key": "k"}}] * (MAX_STEPS + 1)})


def fails(error: OperationError | Exception) -> Callable[[Local], None]:
    def switch(local: Local) -> None:
        local.node.fail_with = error

    return switch


def unready(local: Local) -> None:
    local.node.ready = False


def without_a_lease(ask: Ask) -> Ask:
    path = ask.target.partition("?")[0]
    if path.startswith("/v1/leases"):
        return ask.to(path.replace("/2", "/99"))
    if path == "/v1/txn":
        put = {"put": {"key": "k", "text": "", "lease": "99"}}
        return ask._replace(body=msgspec.json.encode({"then": [put]}))
    if ask.method == "PUT":
        return ask.query(lease="99")
    return ask._replace(body=b'{"lease": "99"}')


def with_a_lock_that_is_lost(ask: Ask) -> Ask:
    path = ask.target.partition("?")[0]
    if path in {"/v1/locks/held", "/v1/elections/held"}:
        return ask.query(token="99")
    return ask.header("If-Lock", "held=99")


def with_a_bad_name(ask: Ask) -> Ask:
    path = ask.target.partition("?")[0]
    for kind in ("/v1/locks/", "/v1/elections/"):
        if path.startswith(kind):
            return ask.to(f"{kind}%00{'/observe' if is_stream(path) else ''}")
    return ask.header("If-Lock", "%00=1")


TOO_LONG = {"/v1/txn": MIN_BODY_LIMIT_BYTES + 1, "/v1/groups": MAX_MAP_BYTES + 1}
SPOILT: dict[str, Callable[[Ask], Ask]] = {
    "invalid_key": lambda ask: ask.to("/v1/kv/%ff"),
    "key_too_long": lambda ask: ask.to("/v1/kv/" + "k" * 481),
    "unknown_parameter": lambda ask: ask.query(nonsense="1"),
    "invalid_parameter": wrong_parameter,
    "invalid_header": lambda ask: (
        ask.header("If-Match", "garbage")
        .header("Last-Event-ID", "x")
        .header("Idempotency-Key", '"')
    ),
    "invalid_cursor": lambda ask: ask.query(cursor="garbage"),
    "invalid_body": lambda ask: (
        ask.query(arguments="{") if "left" in ask.target else ask._replace(body=b"{")
    ),
    "unknown_role": lambda ask: (
        ask._replace(body=b'{"role": "none"}')
        if ask.method == "POST"
        else ask.to("/v1/roles/" + ("none" if ask.method == "DELETE" else "a%2Fb"))
    ),
    "unknown_token": lambda ask: ask.to("/v1/tokens/" + ADMIN.id[::-1]),
    "role_reserved": lambda ask: ask.to("/v1/roles/admin"),
    "role_in_use": lambda ask: ask.to("/v1/roles/nobody"),
    "unauthenticated": lambda ask: ask.header("Authorization", "Bearer nonsense"),
    "forbidden": lambda ask: ask.header("Authorization", f"Bearer {NOBODY.text}"),
    "access_starting": lambda ask: ask.header("Authorization", f"Bearer {ADMIN.text}"),
    "not_found": lambda ask: ask.to(
        OF_METHODS
        if "services" in ask.target
        else "/v1/roles/%ff"
        if "roles" in ask.target
        else "/v1/cluster/nodes/"
    ),
    "invalid_argument": lambda ask: (
        ask._replace(body=b'{"item": 3}') if ask.body else ask.query(arguments='{"item": 3}')
    ),
    "unknown_service": lambda ask: ask.to(ask.target.replace("shop", "none")),
    "unknown_operation": lambda ask: ask.to(OF_METHODS + "nothing"),
    "unknown_query": lambda ask: ask.to(OF_METHODS + "nothing"),
    "method_not_allowed": lambda ask: ask.to(OF_METHODS + "reserve"),
    "key_not_found": lambda ask: ask.to("/v1/kv/absent"),
    "precondition_failed": lambda ask: ask.header("If-Match", '"999"'),
    "unknown_host": lambda ask: ask.header("Host", "rebound.example"),
    "foreign_origin": lambda ask: ask.header("Sec-Fetch-Site", "cross-site"),
    "admin_forbidden": lambda ask: ask.header("X-Forwarded-For", "10.0.0.1"),
    "value_too_large": lambda ask: ask._replace(body=b"x" * TOO_LONG.get(ask.target, 70_001)),
    "txn_too_large": lambda ask: ask._replace(body=too_many(ask)),
    "unsupported_content_encoding": lambda ask: ask.header("Content-Encoding", "gzip"),
    "unsupported_media_type": lambda ask: ask.header("Content-Type", "text/plain"),
    "expectation_failed": lambda ask: ask.header("Expect", "nonsense"),
    "idempotency_key_reused": lambda ask: ask.header("Idempotency-Key", "used"),
    "lease_not_found": without_a_lease,
    "lock_lost": with_a_lock_that_is_lost,
    "invalid_name": with_a_bad_name,
    "lock_held": lambda ask: ask.to(ask.target.replace("/free", "/held")),
    "not_held": lambda ask: ask.to(ask.target.replace("/held", "/free")),
    "wrong_group": lambda ask: ask.header("Onecopy-Group", "g9"),
    "wrong_cluster": lambda ask: ask.header("Onecopy-Cluster", "another"),
    "cluster_unknown": lambda ask: ask.header("Onecopy-Cluster", "any"),
    "head_too_large": lambda ask: ask.header("X", "x" * 9000),
}
FAILING: dict[str, Callable[[Local], None]] = {
    "no_data": fails(RejectedError("no_data", "a witness")),
    "refused": fails(RejectedError("refused", "no")),
    "no_primary": fails(NotPrimaryError("no_primary", "none")),
    "not_primary": fails(NotPrimaryError("not_primary", "not here", "n2")),
    "stopping": fails(OperationNotAppliedError("stopping", "n1")),
    "overloaded": fails(OverloadedError("overloaded", "full")),
    "not_enough_copies": fails(OperationNotAppliedError("not_enough_copies", "few")),
    "unknown_outcome": fails(OperationUnknownError("unknown_outcome", "lost")),
    "unknown_node": fails(RejectedError("unknown_node", "n99")),
    "spans_groups": fails(OperationNotAppliedError("spans_groups", "two keys")),
    "is_primary": fails(RejectedError("is_primary", "n1")),
    "unsafe_removal": fails(RejectedError("unsafe_removal", "n3")),
    "membership_pending": fails(RejectedError("membership_pending", "n2")),
    "no_majority": fails(RejectedError("no_majority", "n1")),
    "upgrade_pending": fails(RejectedError("upgrade_pending", "n2")),
    "handover_failed": fails(OperationNotAppliedError("handover_failed", "no")),
    "lock_queue_full": fails(RejectedError("lock_queue_full", "1000 wait")),
    "last_admin": fails(RejectedError("last_admin", "nobody else may")),
    "too_many_tokens": fails(RejectedError("too_many_tokens", "10,000 of them")),
    "too_many_roles": fails(RejectedError("too_many_roles", "1,000 of them")),
    "lease_full": fails(RejectedError("lease_full", "1000 keys")),
    "too_many_leases": fails(RejectedError("too_many_leases", "a million")),
    "too_large": fails(OperationNotAppliedError("too_large", "no")),
    "idempotency_key_expired": fails(OperationUnknownError("idempotency_key_expired", "old")),
    "unknown_revision": fails(OperationUnknownError("unknown_revision", "ahead")),
    "service_timeout": fails(OperationNotAppliedError("service_timeout", "slow")),
    "service_starting": fails(OperationNotAppliedError("service_starting", "not yet")),
    "service_outdated": fails(OperationNotAppliedError("service_outdated", "old")),
    "service_failed": fails(OperationNotAppliedError("service_failed", "bug")),
    "timeout": fails(OperationUnknownError("timeout", "late")),
    "backup_running": fails(OverloadedError("backup_running", "wait")),
    "storage_full": fails(PrimaryFullError("storage_full", "full")),
    "internal_error": fails(RuntimeError("bug")),
}


async def prepare(local: Local, headers: dict[str, str]) -> None:
    """Make a key, the lease 2, and a lock that is held under the token 3."""
    await fetch(local.base_url, "PUT", "/v1/kv/present", b"x", headers)
    json = {"Content-Type": "application/json"}
    ttl = b'{"ttl_ms": 600000}'
    await fetch(local.base_url, "POST", "/v1/leases", ttl, json)
    await fetch(local.base_url, "POST", "/v1/locks/held", ttl, json)


async def control_access(local: Local, *, seeded: bool = True) -> None:
    """Let the node judge its callers from now on."""
    if seeded:
        roles = [(name, encode_role(Role())) for name in ("nobody", "unused")]
        token = (NOBODY.id, NOBODY.digest, "nobody", "")
        steps: list[tuple[str, tuple[object, ...]]] = [("seed", (ADMIN.id, ADMIN.digest))]
        steps += [("set_role", role) for role in roles]
        for method, args in [*steps, ("create_token", token)]:
            await local.node.execute(Operation(method, args, service=ACCESS_SERVICE), 1000)
    local.node.guard.is_on = True


def ends(code: str) -> Callable[[Local, Ask], Ask]:
    def switch(local: Local, ask: Ask) -> Ask:
        local.api.streams.end(ProblemError(code, "no more"))
        return ask.query(after="0")

    return switch


def forgets(local: Local, ask: Ask) -> Ask:
    local.node.first_index = 9
    return ask.query(after="1")


def has_no_room(local: Local, ask: Ask) -> Ask:
    local.api.streams.max_watchers = 0
    return ask.query(after="0")


WATCHES = ("/v1/watch", "/v1/kv/{key}", "/v1/elections/{name}/observe")
WATCH_CODES: dict[str, Callable[[Local, Ask], Ask]] = {
    "revision_compacted": forgets,
    "future_revision": lambda _, ask: ask.query(after="1000000"),
    "too_many_watchers": has_no_room,
    "not_acceptable": lambda _, ask: ask.header("Accept", "application/json"),
    "not_ready": ends("not_ready"),
    "stopping": ends("stopping"),
}


def node_for(path: str, code: str = "") -> LocalNode | None:
    """Return a node with groups where that is what is asked for; None: any."""
    if path != "/v1/groups":
        return None
    node = local_node()
    if code != "not_found":
        node.groups = KnownGroups(EVERYTHING)
    return node


async def provoke(serve: Serve, method: str, path: str, code: str) -> Reply:
    """Make the request of `method` and `path` be answered with `code`."""
    local = await serve(SETTINGS, node_for(path, code))
    await prepare(local, {"Idempotency-Key": "used"})
    if code in ACCESS_CODES or (path.startswith(ACCESS_PATHS) and code != "access_off"):
        await control_access(local, seeded=code != "access_starting")
    ask = good(method, path)
    if code in WATCH_CODES and path in WATCHES:
        return await send(local, WATCH_CODES[code](local, ask))
    if is_stream(path) and code in FAILING:
        ask = ask.query(after="1000000")  # so that it asks the primary
    if code == "not_ready" or (path, code) == ("/primary", "not_primary"):
        local.node.ready = False
    elif code in FAILING:
        FAILING[code](local)
    elif path == "/v1/groups" and code == "precondition_failed":
        assert (await send(local, ask)).status == 200
        elsewhere = msgspec.structs.replace(EVERYTHING, endpoints=("http://127.0.0.1:9101",))
        ask = ask._replace(body=encode_map(GroupMap(1, (elsewhere,))))
    elif path == "/v1/groups" and code == "not_found":
        pass  # the node has none
    elif code in SPOILT:
        ask = SPOILT[code](ask)
        if code == "cluster_unknown":
            local.node.view = msgspec.structs.replace(local.node.view, cluster_id="")
        if code == "idempotency_key_reused" and path in {"/v1/txn", "/v1/kv/{key}", "/v1/kv"}:
            other = b'{"then": [{"get": {"key": "k"}}]}' if method == "post" else b"other"
            ask = ask._replace(body=other if method in {"put", "post"} else None)
    if code == "malformed_request":
        ask = ask.header("Content-Length", "x")._replace(body=None)
    if code == "request_timeout":
        ask = ask.header("Content-Length", "9")._replace(body=None)
    if code == "too_many_connections":
        crowded = await serve(HttpSettings(max_connections=1, reserved_connections=0))
        async with connect(crowded.base_url) as first:
            first.send_request("GET", "/livez")
            await first.receive()
            async with connect(crowded.base_url) as second:
                return await second.receive()
    return await send(local, ask)


async def send(local: Local, ask: Ask) -> Reply:
    async with connect(local.base_url) as connection:
        connection.send_request(*ask)
        receiving = asyncio.create_task(connection.receive(head_only=ask.method == "HEAD"))
        streams = local.api.streams
        while is_stream(ask.target) and not receiving.done():
            if streams.count:
                streams.end(ProblemError("stopping", "the test has seen it"))
            await asyncio.sleep(0.001)
        return await receiving


def resolve(part: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in part:
        return part
    _, *names = part["$ref"].split("/")
    found: Any = DOCUMENT
    for name in names:
        found = found[name]
    resolved: dict[str, Any] = found
    return resolved


def closed(schemas: dict[str, Any]) -> dict[str, Any]:
    """Return the schemas without leave for members that are not described."""
    return {name: {"additionalProperties": False, **schema} for name, schema in schemas.items()}


def check(reply: Reply, method: str, path: str) -> None:
    """Hold an answer against what the document says of its status."""
    responses = DOCUMENT["paths"][path][method]["responses"]
    assert str(reply.status) in responses, reply
    response = responses[str(reply.status)]
    for name, reference in response["headers"].items():
        header = resolve(reference)
        value = reply.headers.get(name.lower())
        assert value is not None or not header.get("required"), (name, reply)
        if value is not None:
            typed: object = int(value) if header["schema"].get("type") == "integer" else value
            Draft202012Validator(header["schema"]).validate(typed)
    if "content" not in response:
        assert reply.body == b""
        return
    content_type = reply.headers["content-type"].partition(";")[0]
    assert content_type in response["content"], reply
    if content_type.endswith("json") and content_type != "application/x-ndjson":
        schema = {
            **response["content"][content_type]["schema"],
            "components": {"schemas": closed(DOCUMENT["components"]["schemas"])},
        }
        checker = Draft202012Validator.FORMAT_CHECKER
        Draft202012Validator(schema, format_checker=checker).validate(reply.json)


def test_the_document_is_valid_openapi() -> None:
    validate(DOCUMENT)


async def test_it_is_served(base_url: str) -> None:
    reply = await fetch(base_url, "GET", "/openapi.json")
    assert reply.json == DOCUMENT


async def test_every_route_is_documented_and_every_documented_route_served(local: Local) -> None:
    documented = {
        path: {method.upper() for method in METHODS if method in item}
        for path, item in DOCUMENT["paths"].items()
    }
    documented = {
        path: methods for path, methods in documented.items() if not path.startswith(OF_METHODS)
    }
    assert documented == {path: set(methods) for path, methods in local.api.routes().items()}


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
async def test_success_is_as_documented(serve: Serve, method: str, path: str) -> None:
    local = await serve(None, node_for(path))
    await prepare(local, {})
    if path.startswith(ACCESS_PATHS):
        await control_access(local)
    ask = good(method, path)
    answers = [await send(local, ask)]
    if (method, path) == ("put", "/v1/roles/{name}"):
        answers.append(await send(local, ask))
    if "{key}" in path:
        if method == "put":
            answers.append(await send(local, ask.to("/v1/kv/new")))
            answers.append(await send(local, ask.to("/v1/kv/new?ack=local")))
        elif method == "delete":
            answers.append(await send(local, ask))
        else:
            answers.append(await send(local, ask.header("If-None-Match", "*")))
        if method in {"get", "head"}:
            answers.append(await send(local, ask.query(after="0")))
    if is_stream(path):
        answers.append(await send(await serve(), ask.header("Accept", "application/x-ndjson")))
    if path == "/v1/kv" and method == "get":
        answers.append(await send(local, ask.query(limit="1", keys_only="true")))
    if path == "/metrics":
        answers.append(await send(local, ask.header("Accept", "application/openmetrics-text")))
    for reply in answers:
        check(reply, method, path)
    succeeded = {
        status for status in DOCUMENT["paths"][path][method]["responses"] if status < "400"
    }
    assert {str(reply.status) for reply in answers} == succeeded


async def test_each_method_of_a_service_is_as_documented(serve: Serve) -> None:
    local = await serve()
    asks = {
        "reserve": [Ask("POST", OF_METHODS + "reserve", b'{"item": "x", "count": 2}', {})],
        "left": [
            Ask("POST", OF_METHODS + "left", b'{"item": "x"}', {}),
            Ask("GET", OF_METHODS + "left?item=x", None, {}),
        ],
    }
    for name, item in DOCUMENT["paths"].items():
        if name.startswith(OF_METHODS):
            for ask in asks.pop(name.removeprefix(OF_METHODS)):
                reply = await send(local, ask.header("Content-Type", "application/json"))
                assert reply.status == 200, reply
                check(reply, ask.method.lower(), name)
            assert "head" in item or name.endswith("reserve")
    assert not asks


HARMLESS = ("/v1/services", "/livez", "/readyz", "/primary", "/openapi.json", "/metrics",
            "/v1/groups")  # fmt: skip
"""Nothing in these calls what could fail."""


def documented_codes() -> list[tuple[str, str, str]]:
    """Return (method, path, code) for every documented problem, by GET's examples for HEAD."""
    found = []
    for method, path in OPERATIONS:
        shown = "get" if method == "head" else method
        for status, response in DOCUMENT["paths"][path][shown]["responses"].items():
            problem = response.get("content", {}).get("application/problem+json", {})
            for code, example in problem.get("examples", {}).items():
                assert example["value"]["status"] == int(status)
                if code != "internal_error" or path not in HARMLESS:
                    found.append((method, path, code))
    return found


@pytest.mark.parametrize(("method", "path", "code"), documented_codes())
async def test_every_documented_problem_comes_as_documented(
    serve: Serve, method: str, path: str, code: str
) -> None:
    reply = await provoke(serve, method, path, code)
    assert reply.status == CODES[code].status
    if method != "head" or code in {"malformed_request", "head_too_large", "too_many_connections"}:
        return_code = reply.code if reply.body else code
        assert return_code == code
    if reply.body and method == "head":
        return  # refused before the method was known: it comes with a body
    check(reply, method, path)


KINDS = "Rejected|NotPrimary|NotApplied|UnknownOutcome|Overloaded|StorageFull|Operation"
INTERNAL = {
    "unknown_call",  # between nodes
    "lost_disk",
    "disk_queue_full",  # between the engine and its disk
    "lease_exists",  # etcd's gateway alone lets clients choose
}


def test_every_code_in_the_program_is_documented() -> None:
    used = set()
    for path in (*Path("cluster/api").glob("*.py"), *Path("cluster/services").glob("*.py")):
        used |= set(re.findall(r'(?:Problem|Error)\(\s*"([a-z_]+)"', path.read_text()))
    for path in Path("datapath").rglob("*.py"):
        used |= set(re.findall(rf'(?:{KINDS})Error\(\s*"([a-z_]+)"', path.read_text()))
    assert used, "the tests run in the project's root"
    assert used - INTERNAL <= set(CODES)
    provoked = {code for _, _, code in documented_codes()}
    # 404 and 405 come where the document has no path or method to say it at.
    assert provoked | {"method_not_allowed"} == set(CODES)
    for code in CODES:
        assert f"`{code}`" in DOCUMENT["info"]["description"]


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
async def test_every_documented_parameter_is_taken(serve: Serve, method: str, path: str) -> None:
    local = await serve()
    operation = DOCUMENT["paths"][path][method]
    for parameter in operation.get("parameters", []):
        ask = good(method, path)
        value = example_of(parameter)
        if is_stream(path):
            local = await serve()
            value = "0" if parameter["name"] == "Last-Event-ID" else value or "q"
            ask = ask.to(path) if parameter["name"] in {"key", "start"} else ask
        if parameter["in"] == "query":
            extra = {"consistency": "stale"} if parameter["name"] == "max_staleness_ms" else {}
            if parameter["name"] == "after" and path.endswith("}"):  # it waits for a change
                extra = {"timeout_ms" if "{key}" in path else "wait_ms": "1"}
            if (method, parameter["name"]) == ("delete", "lease"):
                ask = ask.to(ask.target.partition("?")[0])
            ask = ask.query(**{parameter["name"]: value}, **extra)
        elif parameter["in"] == "header":
            value = local.node.views.cluster_id if parameter["name"] == "Onecopy-Cluster" else value
            ask = ask.header(parameter["name"], value)
        reply = await send(local, ask)
        assert reply.status in {200, 201, 304, 404, 409, 412}, (parameter, reply)


def example_of(parameter: dict[str, Any]) -> str:
    schema = parameter["schema"]
    if "example" in parameter:
        return str(parameter["example"])
    if schema.get("type") == "boolean":
        return "true"
    return str(schema.get("default") or schema.get("minimum", schema.get("examples", [""])[0]))
