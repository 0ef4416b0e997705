"""What a class offers, read from its annotations; what cannot be hosted is refused with the fix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from cluster.services.decorators import service_operation as operation
from cluster.services.decorators import service_query as query
from cluster.services.signatures import (
    ArgumentError,
    ServiceError,
    check_instance,
    read_signatures,
)
from cluster.services.timers import Timer, at, every
from datapath.service import ReadTransaction, Service, Transaction


class Item(msgspec.Struct):
    name: str
    count: int


class Shop(Service):
    """A shop."""

    @operation
    def reserve(self, tx: Transaction, item: Item, tags: list[str] | None = None) -> Item:
        """Take some off the stock."""
        return item

    @query
    def count(self, tx: ReadTransaction, name: str, at_least: int = 0) -> int:
        return at_least

    @every(minutes=5)
    def sweep(self, tx: Transaction) -> None: ...


def test_methods_with_their_kinds_and_summaries() -> None:
    found = read_signatures("shop", Shop)
    assert found.summary == "A shop."
    assert found.named("operation") == ("reserve",)
    assert found.named("query") == ("count",)
    assert found.methods["sweep"].timer == Timer(300_000)
    assert found.methods["reserve"].summary == "Take some off the stock."
    assert found.methods["reserve"].result is Item


def test_arguments_are_decoded_by_their_types() -> None:
    methods = read_signatures("shop", Shop).methods
    found = methods["reserve"].decode(b'{"item": {"name": "x", "count": 2}}')
    assert found == {"item": Item("x", 2), "tags": None}
    assert methods["count"].decode(b'{"name": "x", "at_least": "3"}', from_text=True) == {
        "name": "x",
        "at_least": 3,
    }


@pytest.mark.parametrize(
    ("method", "body", "complaint"),
    [
        ("count", b'{"name": 3}', "argument 'name': expected str, got int"),
        ("count", b"{}", "argument 'name' is missing; count takes: name, at_least"),
        ("count", b'{"name": "x", "size": 1}', "there is no argument 'size'; count takes: name"),
        ("count", b"[1]", "must be a JSON object of named arguments"),
        ("count", b"{", "the arguments are not a JSON object"),
        ("count", b'{"name": "x", "at_least": "3"}', "argument 'at_least': expected int, got str"),
        ("reserve", b'{"item": {"name": "x"}}', "argument 'count' is missing in argument 'item'"),
        (
            "reserve",
            b'{"item": {"name": "x", "count": "2"}}',
            "argument 'item.count': expected int",
        ),
        ("reserve", b'{"tags": ["x", 1]}', "argument 'tags[1]': expected str"),
    ],
)
def test_wrong_arguments_are_named(method: str, body: bytes, complaint: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        read_signatures("shop", Shop).methods[method].decode(body)
    assert complaint in str(caught.value)


def _make(function: Callable[..., Any], **more: Any) -> type[Service]:
    return type("Bad", (Service,), {"work": function, **more})


def _async_query() -> type[Service]:
    async def work(self: object, tx: object) -> None: ...

    return _make(query(work))


def _no_annotation() -> type[Service]:
    def work(self, tx, item) -> None: ...  # type: ignore[no-untyped-def]  # noqa: ANN001

    return _make(operation(work))


def _stars() -> type[Service]:
    def work(self: object, tx: object, **items: str) -> None: ...

    return _make(operation(work))


def _no_transaction() -> type[Service]:
    def work(self: object) -> None: ...

    return _make(operation(work))  # type: ignore[arg-type]


def _socket_argument() -> type[Service]:
    def work(self: object, tx: object, item: Callable[[], None]) -> None: ...

    return _make(operation(work))


def _socket_result() -> type[Service]:
    def work(self: object, tx: object) -> Callable[[], None]: ...  # type: ignore[empty-body]

    return _make(operation(work))


def _reserved() -> type[Service]:
    def work(self: object, tx: object, timeout_ms: int) -> None: ...

    return _make(query(work))


def _generator() -> type[Service]:
    def work(self: object, tx: object) -> Any:
        yield 1

    return _make(operation(work))


def _timer_with_argument() -> type[Service]:
    def work(self: object, tx: object, item: str) -> None: ...

    return _make(every(seconds=1)(work))


def _timer_and_operation() -> type[Service]:
    def work(self: object, tx: object) -> None: ...

    return _make(every(seconds=1)(operation(work)))


def _version_of_text() -> type[Service]:
    def work(self: object, tx: object) -> None: ...

    return _make(operation(work), version="2")


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (_async_query, "a query must not be async; write def"),
        (_no_annotation, "argument 'item' of Bad.work has no annotation, say item: str"),
        (_stars, "name each argument"),
        (_no_transaction, "takes no transaction"),
        (_socket_argument, "an argument is of a type that JSON cannot carry"),
        (_socket_result, "its result is of a type that JSON cannot carry"),
        (_reserved, "'timeout_ms' is a parameter of every read"),
        (_generator, "return a list instead of yielding"),
        (_timer_with_argument, "a timer takes the transaction alone"),
        (_timer_and_operation, "use @every or @at alone"),
        (_version_of_text, "version must be a whole number"),
        (lambda: type("Empty", (Service,), {}), "mark some with @operation or @query"),
    ],
)
def test_what_cannot_be_hosted_is_refused(
    make: Callable[[], type[Service]], complaint: str
) -> None:
    with pytest.raises(ServiceError) as caught:
        read_signatures("shop", make())
    assert complaint.replace("of Bad.work ", "") in str(caught.value)


def refusal_of(made: Callable[[], object]) -> str:
    with pytest.raises(ServiceError) as caught:
        made()
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "due", "counters", "on_done", "on_epoch_open", "service_name", "operations", "queries",
        "async_operations", "keyspace", "migrate", "name", "version", "scans",
    ],
)  # fmt: skip
@pytest.mark.parametrize("mark", [operation, query, every(seconds=1)])
def test_a_method_called_like_one_of_services_own_is_refused(name: str, mark: Any) -> None:
    def method(self: Any, tx: Any) -> None: ...

    taken = type("Taken", (Shop,), {name: mark(method)})
    below = type("Below", (taken,), {})
    assert f"has a {name!r} of its own" in refusal_of(lambda: read_signatures("shop", taken))
    assert f"has a {name!r} of its own" in refusal_of(lambda: read_signatures("shop", below))


@pytest.mark.parametrize(
    ("name", "item"),
    [
        ("counters", {}), ("counters", property(lambda _: {})), ("keyspace", 3), ("due", None),
        ("name", property(lambda _: "x")), ("version", lambda _: 2), ("migrate", 1),
        ("scans", staticmethod(len)), ("operations", classmethod(repr)), ("due", Shop),
    ],
)  # fmt: skip
def test_so_is_anything_else_of_such_a_name(name: str, item: object) -> None:
    taken = type("Taken", (Shop,), {name: item})
    assert f"Taken.{name}: onecopy.Service has" in refusal_of(lambda: read_signatures("s", taken))


def test_what_a_class_may_set_and_names_of_its_own_are_not_refused() -> None:
    class Good(Shop):
        name = "good"
        version = 3
        scans = frozenset({"count"})
        _counters = 1

        def __init__(self) -> None:
            super().__init__()
            self._due = self.stock = 1

        def migrate(self, tx: Transaction, from_version: int) -> None: ...

        def _on_done(self) -> None: ...

    check_instance(read_signatures("good", Good), Good())


@pytest.mark.parametrize(
    ("name", "item", "words"),
    [
        ("counters", {}, "has a 'counters' of its own"),
        ("due", 1, "has a 'due' of its own"),
        ("operations", {}, "has a 'operations' of its own"),
        ("queries", None, "has a 'queries' of its own"),
        ("version", 2, "set version in the class, not as self.version"),
        ("reserve", 2, "self.reserve hides the method 'reserve'"),
    ],
)
def test_an_attribute_of_such_a_name_is_refused(name: str, item: object, words: str) -> None:
    shop = Shop()
    setattr(shop, name, item)
    assert words in refusal_of(lambda: check_instance(read_signatures("shop", Shop), shop))


def test_names_that_others_have() -> None:
    def call(self: Any, tx: Any) -> None: ...

    taken = type("Taken", (Shop,), {"call": operation(call)})
    assert "clients have a 'call' of their own" in refusal_of(lambda: read_signatures("s", taken))
    assert "the store's own name" in refusal_of(lambda: read_signatures("kv", Shop))


@pytest.mark.parametrize("name", ["", "Shop", "shop/x", "1shop", "s" * 32, "shop\0"])
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(ServiceError, match="is no name for a service"):
        read_signatures(name, Shop)


@pytest.mark.parametrize("text", ["", "3:00", "24:00", "03:60", "03:00 "])
def test_a_time_of_day_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="time of day in UTC"):
        at(text)


def test_an_interval_that_is_none() -> None:
    for seconds in (0, 0.01, -1, 1e12):
        with pytest.raises(ValueError, match=r"from 0[.]1 seconds"):
            every(seconds=seconds)
