"""Services: user code that runs once, on the primary; its writes are the delta.

A service is a class whose operations are methods marked with `operation` or `query`:

    class Counter(Service):
        @operation
        def add(self, tx: Transaction, name: str, amount: int) -> int:
            total = int(tx.get(name.encode()) or b"0") + amount
            tx.put(name.encode(), str(total).encode())
            return total

        @query
        def read(self, tx: ReadTransaction, name: str) -> int:
            return int(tx.get(name.encode()) or b"0")

Operations run one after another, in an order that all replicas share. They may read clocks, draw
random numbers and call other systems: only their writes are replicated. `async def` operations may
await; nothing else executes meanwhile, so keep them short. Keep state only in the transaction: an
instance's other state is lost at a failover. Arguments and results are what MessagePack can carry.
To refuse, raise `RejectedError`: the operation's writes are dropped.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, TypeVar

from datapath import keyspaces

SERVICE_NAME_PATTERN = "[a-z][a-z0-9_-]{0,30}"
"""What a service may be called."""

STORE_NAME = "kv"
"""What the store (/v1/kv) is called where services are named; no service is."""

Method = TypeVar("Method", bound=Callable[..., Any])


class ReadTransaction(Protocol):
    """A view of one keyspace of the state: ordered byte keys (1 to 500 bytes)."""

    def keyspace(self, which: int | str) -> ReadTransaction:
        """Return a view of the same state on other keys.

        Of a hosted service: those of another service by its name, or of the store ("kv"), where the
        configuration allows it. Of what is built in: a keyspace by its number
        (`datapath.keyspaces`). Raises ValueError for what is not open to this service.
        """

    def get(self, key: bytes) -> bytes | None:
        """Return the value under `key`, or None."""

    def range(self, start: bytes, end: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        """Return up to `limit` (key, value) pairs with start <= key < end, in key order.

        `end` None is no upper bound.
        """

    def page(
        self, start: bytes, end: bytes | None, limit: int, max_size_bytes: int
    ) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
        """Return some (key, value) pairs with start <= key < end, and where to go on, or None.

        There are at most `limit`, and none follows the one with which `max_size_bytes` are
        reached. There may be fewer, even none, although more follow: the work is bounded, also
        where many keys have just been deleted.
        """


class Transaction(ReadTransaction, Protocol):
    """The state as this operation sees it, its own writes included."""

    def keyspace(self, which: int | str) -> Transaction:
        """Return a view of the same transaction on other keys; see `ReadTransaction`."""

    @property
    def index(self) -> int:
        """The log index that this operation's delta will have: a revision."""

    @property
    def role(self) -> str:
        """The role that this operation is done for; "": none, there is no access control."""

    def put(self, key: bytes, value: bytes) -> None:
        """Write `value` under `key`."""

    def delete(self, key: bytes) -> None:
        """Remove `key`; nothing happens if it isn't there."""


def operation(method: Method) -> Method:
    """Mark a method of a service that may write."""
    method.__onecopy__ = "operation"  # type: ignore[attr-defined]
    return method


def query(method: Method) -> Method:
    """Mark a method of a service that only reads; it must not be `async`."""
    method.__onecopy__ = "query"  # type: ignore[attr-defined]
    return method


class Service:
    """Base class of services; collects the marked methods.

    `keyspace` is where its transactions begin. `scans` names the queries that may take a
    millisecond or more: they take turns. `async_operations` names those that are `async`.

    Of a service that is hosted (`cluster.services.hosting`): `name` is what it is called by, "" for
    its class's name in small letters; `version` is of what it stores, and rises by hand.
    """

    keyspace: ClassVar[int] = keyspaces.SERVICES
    scans: frozenset[str] = frozenset()
    name: str = ""
    version: int = 1

    @classmethod
    def service_name(cls) -> str:
        """Return what it is called by."""
        return cls.name or cls.__name__.lower()

    def migrate(self, tx: Transaction, from_version: int) -> None:
        """Make what is stored that of `version`; called once, before it serves.

        `from_version` is of what is stored; 0 if there is nothing yet. Raise to refuse.
        """

    def __init__(self) -> None:
        self.operations: dict[str, Callable[..., Any]] = {}
        self.queries: dict[str, Callable[..., Any]] = {}
        for name in dir(type(self)):
            kind = getattr(getattr(type(self), name), "__onecopy__", None)
            if kind == "operation":
                self.operations[name] = getattr(self, name)
            elif kind == "query":
                self.queries[name] = getattr(self, name)
        self.async_operations = frozenset(
            name for name, method in self.operations.items() if inspect.iscoroutinefunction(method)
        )

    def on_epoch_open(self, now_ms: float) -> None:
        """This node has become the primary: operations are executed here from now on."""

    def on_tick(self, now_ms: float) -> None:
        """Time has passed; called at each tick at which `due` is not asked.

        Only of services that have a `due`.
        """

    def due(self, tx: ReadTransaction, now_ms: float) -> tuple[str, tuple[Any, ...]] | None:
        """Return an operation (name, arguments) that the service wants executed now, or None.

        Asked on the primary at each tick, once the last one has been answered. `tx` is what has
        committed; the operation has to decide again. `now_ms` is of the replica's clock.
        """

    def on_done(self, value: Any) -> None:
        """What `due` asked for has committed, and returned `value`."""

    def counters(self) -> dict[str, float]:
        """Numbers of this node for metrics: name without prefix -> value."""
        return {}
