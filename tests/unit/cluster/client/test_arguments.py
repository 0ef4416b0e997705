"""What the clients take: nothing is converted, and every refusal names the argument."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from cluster.client.aio import AsyncClient
from cluster.client.errors import InvalidRequestError
from cluster.client.results import RoleRights
from cluster.client.sync import Client
from cluster.groups.group_map import Group, GroupMap

NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing is sent there

TEXTS = [b"bytes", None, 5, 1.5, ["k"], {"a": 1}, object(), bytearray(b"k")]
OPTIONAL_TEXTS = [value for value in TEXTS if value is not None]
VALUES = [None, 5, 1.5, True, {"a": 1}, ["v"], bytearray(b"v"), memoryview(b"v"), object()]
NUMBERS = ["1", b"1", 1.5, True, [1]]
SECONDS: list[Any] = ["5", True, b"5"]
FLAGS = [None, 0, 1, "true", b""]

MAP = GroupMap(1, (Group("g1", ((0, 4095),)),))
WRONG: list[tuple[str, dict[str, Any], str, list[Any]]] = [
    ("put", {"key": "k", "value": b""}, "key", TEXTS),
    ("put", {"key": "k", "value": b""}, "value", VALUES),
    ("put", {"key": "k", "value": b""}, "if_revision", NUMBERS),
    ("put", {"key": "k", "value": b""}, "if_absent", FLAGS),
    ("put", {"key": "k", "value": b""}, "ack", TEXTS),
    ("put", {"key": "k", "value": b""}, "min_copies", [*NUMBERS, None]),
    ("put", {"key": "k", "value": b""}, "idempotency_key", TEXTS),
    ("put", {"key": "k", "value": b""}, "idempotency_after", NUMBERS),
    ("put", {"key": "k", "value": b""}, "timeout_ms", NUMBERS),
    ("get", {"key": "k"}, "key", TEXTS),
    ("get", {"key": "k"}, "consistency", TEXTS),
    ("get", {"key": "k", "consistency": "stale"}, "max_staleness_ms", NUMBERS),
    ("get", {"key": "k"}, "timeout_ms", NUMBERS),
    ("delete", {"key": "k"}, "key", TEXTS),
    ("delete", {"key": "k"}, "if_revision", NUMBERS),
    ("delete", {"key": "k"}, "ack", TEXTS),
    ("delete", {"key": "k"}, "min_copies", [*NUMBERS, None]),
    ("delete", {"key": "k"}, "idempotency_key", TEXTS),
    ("delete", {"key": "k"}, "idempotency_after", NUMBERS),
    ("delete", {"key": "k"}, "timeout_ms", NUMBERS),
    *(
        ("delete_range", {"prefix": "p"}, name, wrong)
        for name, wrong in (
            *((text, TEXTS) for text in ("prefix", "start", "end", "ack", "idempotency_key")),
            ("limit", [*NUMBERS, None]),
            ("cursor", [b"c", 5, ["c"]]),
            ("min_copies", [*NUMBERS, None]),
            ("idempotency_after", NUMBERS),
            ("timeout_ms", NUMBERS),
        )
    ),
    *(
        ("transact", {"document": "{}"}, name, wrong)
        for name, wrong in (
            ("document", VALUES),
            ("read_only", FLAGS),
            ("ack", TEXTS),
            ("min_copies", [*NUMBERS, None]),
            ("idempotency_key", TEXTS),
            ("idempotency_after", NUMBERS),
            ("timeout_ms", NUMBERS),
        )
    ),
    ("page", {}, "prefix", TEXTS),
    ("page", {}, "group", TEXTS),
    ("page", {}, "start", TEXTS),
    ("page", {}, "end", TEXTS),
    ("page", {}, "limit", [*NUMBERS, None]),
    ("page", {}, "cursor", [b"c", 5, ["c"]]),
    ("page", {}, "keys_only", FLAGS),
    ("page", {}, "consistency", TEXTS),
    ("page", {"consistency": "stale"}, "max_staleness_ms", NUMBERS),
    ("page", {}, "timeout_ms", NUMBERS),
    ("list", {}, "prefix", TEXTS),
    ("list", {}, "group", TEXTS),
    ("list", {}, "start", TEXTS),
    ("list", {}, "end", TEXTS),
    ("list", {}, "keys_only", FLAGS),
    ("list", {}, "consistency", TEXTS),
    ("list", {}, "page_size", [*NUMBERS, None]),
    ("service", {"service": "shop"}, "service", [None, 5, b"shop", object()]),
    ("service", {"service": "shop"}, "name", TEXTS),
    ("service", {"service": "shop"}, "ack", TEXTS),
    ("service", {"service": "shop"}, "timeout_ms", NUMBERS),
    ("status", {}, "timeout_ms", NUMBERS),
    ("groups", {}, "timeout_ms", NUMBERS),
    ("publish_groups", {}, "new_map", [5, b"{}", None]),
    ("publish_groups", {"new_map": MAP}, "timeout_ms", NUMBERS),
    ("digest", {"node": "n1"}, "node", TEXTS),
    ("digest", {"node": "n1"}, "timeout_ms", NUMBERS),
    ("watch", {}, "prefix", OPTIONAL_TEXTS),
    ("watch", {}, "key", OPTIONAL_TEXTS),
    ("watch", {}, "start", OPTIONAL_TEXTS),
    ("watch", {}, "end", OPTIONAL_TEXTS),
    ("watch", {"prefix": ""}, "after", NUMBERS),
    ("watch", {"prefix": ""}, "timeout_ms", NUMBERS),
    ("mirror", {}, "prefix", TEXTS),
    ("handover", {"to": "n1"}, "to", TEXTS),
    ("handover", {"to": "n1"}, "timeout_ms", NUMBERS),
    ("finish_upgrade", {}, "timeout_ms", NUMBERS),
    ("remove", {"node": "n1"}, "node", TEXTS),
    ("remove", {"node": "n1"}, "force", FLAGS),
    ("remove", {"node": "n1"}, "timeout_ms", NUMBERS),
    ("move", {"node": "n1"}, "node", TEXTS),
    ("move", {"node": "n1"}, "client", TEXTS),
    ("move", {"node": "n1"}, "peer", TEXTS),
    ("move", {"node": "n1"}, "raft", TEXTS),
    ("move", {"node": "n1"}, "timeout_ms", NUMBERS),
    ("put", {"key": "k", "value": b""}, "if_lock", [5, "jobs", ("jobs",), ["jobs", 7]]),
    ("put", {"key": "k", "value": b""}, "lease", TEXTS),
    ("delete", {"key": "k"}, "if_lock", [5, "jobs", ("jobs",), ["jobs", 7]]),
    ("lease", {}, "ttl", SECONDS),
    ("lease", {"ttl": 5}, "key", TEXTS),
    ("lease", {"ttl": 5}, "on_lost", [5, "x"]),
    ("lock", {"ttl": 5}, "name", TEXTS),
    ("lock", {"name": "k"}, "ttl", SECONDS),
    ("lock", {"name": "k", "ttl": 5}, "note", TEXTS),
    ("lock", {"name": "k", "ttl": 5}, "wait", SECONDS),
    ("lock", {"name": "k", "ttl": 5}, "on_lost", [5, "x"]),
    ("elect", {"ttl": 5}, "name", TEXTS),
    ("elect", {"name": "k"}, "ttl", SECONDS),
    ("elect", {"name": "k", "ttl": 5}, "value", TEXTS),
    ("elect", {"name": "k", "ttl": 5}, "wait", SECONDS),
    ("elect", {"name": "k", "ttl": 5}, "on_lost", [5, "x"]),
    ("leader", {}, "name", TEXTS),
    ("create_token", {"role": "r"}, "role", TEXTS),
    ("create_token", {"role": "r"}, "note", TEXTS),
    ("create_token", {"role": "r"}, "certificate", TEXTS),
    ("create_token", {"role": "r"}, "timeout_ms", NUMBERS),
    ("list_tokens", {}, "timeout_ms", NUMBERS),
    ("revoke_token", {"token_id": "t"}, "token_id", TEXTS),
    ("revoke_token", {"token_id": "t"}, "timeout_ms", NUMBERS),
    ("set_role", {"rights": RoleRights()}, "name", TEXTS),
    ("set_role", {"name": "r"}, "rights", [None, {"read": ["a"]}, "read"]),
    ("set_role", {"name": "r", "rights": RoleRights()}, "timeout_ms", NUMBERS),
    ("list_roles", {}, "timeout_ms", NUMBERS),
    ("delete_role", {}, "name", TEXTS),
    ("delete_role", {"name": "r"}, "timeout_ms", NUMBERS),
    ("observe", {}, "name", TEXTS),
    ("observe", {"name": "k"}, "after", NUMBERS),
    ("observe", {"name": "k"}, "timeout_ms", NUMBERS),
    ("release_lock", {"token": 5}, "name", TEXTS),
    ("release_lock", {"name": "k"}, "token", NUMBERS),
    ("grant_lease", {}, "ttl", SECONDS),
    ("grant_lease", {"ttl": 5}, "key", TEXTS),
    ("of", {}, "name", TEXTS),
    ("keep_lease_alive", {}, "lease", TEXTS),
    ("lease_info", {}, "lease", TEXTS),
    ("revoke_lease", {}, "lease", TEXTS),
    ("lease_page", {}, "after", OPTIONAL_TEXTS),
]
IMPOSSIBLE: list[tuple[str, dict[str, Any], str]] = [
    ("put", {"key": "", "value": b""}, "key"),
    ("put", {"key": "\ud800", "value": b""}, "key"),
    ("put", {"key": "x" * 481, "value": b""}, "key"),
    ("put", {"key": "k", "value": "\ud800"}, "value"),
    ("put", {"key": "k", "value": b"", "if_revision": 0}, "if_revision"),
    ("put", {"key": "k", "value": b"", "if_revision": -1}, "if_revision"),
    ("put", {"key": "k", "value": b"", "if_revision": 2**63}, "if_revision"),
    ("put", {"key": "k", "value": b"", "ack": "none"}, "ack"),
    ("put", {"key": "k", "value": b"", "min_copies": -1}, "min_copies"),
    ("put", {"key": "k", "value": b"", "min_copies": 256}, "min_copies"),
    ("put", {"key": "k", "value": b"", "timeout_ms": 0}, "timeout_ms"),
    ("put", {"key": "k", "value": b"", "idempotency_key": "x" * 256}, "idempotency key"),
    ("get", {"key": "k", "consistency": "eventual"}, "consistency"),
    ("get", {"key": "k", "max_staleness_ms": 5}, "max_staleness_ms"),
    ("get", {"key": "k", "consistency": "stale", "max_staleness_ms": -1}, "max_staleness_ms"),
    ("page", {"limit": 0}, "limit"),
    ("page", {"limit": 1001}, "limit"),
    ("page", {"prefix": "\ud800"}, "prefix"),
    ("page", {"group": "G 1"}, "group"),
    ("list", {"group": "-"}, "group"),
    ("list", {"page_size": 0}, "page_size"),
    ("list", {"consistency": "eventual"}, "consistency"),
    ("watch", {}, "say what to watch"),
    ("watch", {"prefix": "\ud800"}, "prefix"),
    ("watch", {"key": "k", "after": -1}, "after"),
    ("watch", {"key": "k", "timeout_ms": 0}, "timeout_ms"),
    ("mirror", {"prefix": "\ud800"}, "prefix"),
    ("lease", {"ttl": 0.5}, "ttl"),
    ("grant_lease", {"ttl": 0.5}, "ttl"),
    ("keep_lease_alive", {"lease": ""}, "lease"),
    ("lease_info", {"lease": "x"}, "lease"),
    ("revoke_lease", {"lease": "-1"}, "lease"),
    ("lease_page", {"after": "x"}, "after"),
    ("release_lock", {"name": "k", "token": 0}, "token"),
    ("observe", {"name": "k", "after": -1}, "after"),
    ("lock", {"name": "", "ttl": 5}, "name"),
    ("lock", {"name": "k", "ttl": 1e9}, "ttl"),
    ("lock", {"name": "k", "ttl": 5, "wait": -1}, "wait"),
    ("put", {"key": "k", "value": b"", "if_lock": ("k", 0)}, "if_lock"),
    ("digest", {"node": ""}, "node"),
    ("digest", {"node": "ftp://x"}, "endpoint"),
    ("publish_groups", {"new_map": GroupMap(1, ())}, "new_map"),
    ("handover", {"to": ""}, "to"),
    ("remove", {"node": ""}, "node"),
    ("move", {"node": "", "peer": "a:1"}, "node"),
]


class Both:
    """Calls a method of either client."""

    def __init__(self, client: AsyncClient | Client) -> None:
        self.client = client

    async def call(self, method: str, arguments: dict[str, Any]) -> None:
        found = getattr(self.client, method)(**arguments)
        if inspect.isawaitable(found):
            await found


@pytest.fixture(params=["asyncio", "plain"])
async def both(request: pytest.FixtureRequest) -> AsyncIterator[Both]:
    if request.param == "plain":
        plain = Client(NOWHERE, timeout_ms=50)
        yield Both(plain)
        await asyncio.to_thread(plain.close)
        return
    async with AsyncClient(NOWHERE, timeout_ms=50) as client:
        yield Both(client)


@pytest.mark.parametrize(("method", "good", "name", "wrong"), WRONG)
async def test_a_wrong_type_is_named(
    both: Both, method: str, good: dict[str, Any], name: str, wrong: list[Any]
) -> None:
    for value in wrong:
        with pytest.raises(TypeError, match=rf"\b{name} must be .*{type(value).__name__}"):
            await both.call(method, good | {name: value})


@pytest.mark.parametrize(("method", "arguments", "name"), IMPOSSIBLE)
async def test_an_impossible_value_is_named(
    both: Both, method: str, arguments: dict[str, Any], name: str
) -> None:
    with pytest.raises(InvalidRequestError, match=name):
        await both.call(method, arguments)


def test_every_argument_of_every_method_is_checked() -> None:
    tested = {(method, name) for method, _, name, _ in WRONG}
    for method, function in inspect.getmembers(AsyncClient, inspect.isfunction):
        if not method.startswith("_") and method not in {"close", "txn"}:
            names = set(inspect.signature(function).parameters) - {"self"}
            of_method = {name for tried, name in tested if tried == method}
            if "options" in names:  # of calls: those that put and get have as well
                assert of_method >= names - {"options"}
            else:
                assert of_method == names, method


def public(kind: type) -> dict[str, Any]:
    own = [vars(base) for base in reversed(kind.__mro__[:-1])]
    return {name: value for each in own for name, value in each.items() if not name.startswith("_")}


def test_both_clients_offer_the_same() -> None:
    assert public(AsyncClient).keys() == public(Client).keys()
    for name, value in public(AsyncClient).items():
        if inspect.isfunction(value):
            of_both = [
                inspect.signature(each[name]) for each in (public(AsyncClient), public(Client))
            ]
            assert of_both[0].parameters == of_both[1].parameters, name


@pytest.mark.parametrize("kind", [AsyncClient, Client])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("endpoints", value)
            for value in (5, b"http://a:1", [b"http://a:1"], [5], {"a:1": 1}, object())
        ),
        *(("timeout_ms", value) for value in ("5", 1.5, True, None)),
        *(("max_connections", value) for value in ("5", 1.5, True, None)),
        *(("discover", value) for value in (1, None, "no")),
        *(("cluster_id", value) for value in (1, None, b"id")),
    ],
)
def test_the_constructor_names_what_is_of_a_wrong_type(kind: Any, name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=name):
        kind(**{"endpoints": NOWHERE, name: value})


@pytest.mark.parametrize("kind", [AsyncClient, Client])
@pytest.mark.parametrize(
    ("name", "value"),
    [("endpoints", []), ("timeout_ms", 0), ("timeout_ms", -1), ("max_connections", 0)],
)
def test_the_constructor_names_what_is_impossible(kind: Any, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name.rstrip("s")):
        kind(**{"endpoints": NOWHERE, name: value})


def test_endpoints_may_come_from_anything_that_yields_them() -> None:
    def some() -> Iterator[str]:
        yield "a:1"
        yield "b:1"

    assert AsyncClient(some()).endpoints == ("http://a:1", "http://b:1")
