"""Clients of all groups of a deployment: `AsyncGroupedClient`; without asyncio, `GroupedClient`.

    async with AsyncGroupedClient("http://127.0.0.1:8101") as deployment:
        await deployment.put("orders/7", b"new")
        orders = await deployment.of("orders/")  # an ordinary client of that group
        lease = await orders.lease(ttl_ms=5000)

Each key's group is a cluster of its own: whatever has no call here is asked of the group's client.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Generic, Protocol, Self, TypeVar

from cluster.client.aio import AsyncClient
from cluster.client.arguments import check_endpoints
from cluster.client.endpoints import DEFAULT_ENDPOINTS
from cluster.client.errors import (
    ClientError,
    InvalidRequestError,
    NotAppliedError,
    UnavailableError,
    WrongClusterError,
)
from cluster.client.results import DeleteResult, GetResult, PutResult
from cluster.client.sync import Client
from cluster.groups.group_map import (
    Group,
    GroupMap,
    GroupsDocument,
    SpansGroupsError,
    may_replace_map,
    route,
)
from cluster.groups.relay import as_reached
from datapath.keyspaces import after_prefix

MAP_ASK_TIMEOUT_MS = 2000
"""How long one node is asked for the map."""


class _Closable(Protocol):
    def close(self) -> Any:
        """Close it."""


_T = TypeVar("_T")
ClientT = TypeVar("ClientT", bound=_Closable)


class _Routes(Generic[ClientT]):
    """Which client is for which key. Pure but for `make`, which sends nothing."""

    def __init__(
        self,
        seeds: tuple[str, ...],
        make: Callable[[tuple[str, ...]], ClientT],
        *,
        uses_tls: bool = False,
    ) -> None:
        """`uses_tls`: whether the clients that are made know certificates."""
        self._by_tls = uses_tls or all(url.startswith("https:") for url in seeds)
        self.map: GroupMap | None = None
        self._seeds = seeds
        self._make = make
        self._clients: dict[Group, ClientT] = {}

    def sources(self) -> Iterator[str]:
        """Yield the nodes to ask for the map, those that keep it first."""
        keepers = self._reached(self.map.first) if self.map is not None else ()
        yield from dict.fromkeys((*keepers, *self._seeds))

    def learn(self, found: GroupsDocument) -> bool:
        """Take a newer map (G2); False: it is none."""
        if found.map is None or may_replace_map(self.map, found.map):
            return False
        self.map = found.map
        return True

    def group_of(self, name: str) -> Group:
        """Return the group of a key, or of all keys below what ends with "/" or has a tag."""
        assert self.map is not None
        start = name.encode()
        try:
            return route(
                self.map, start, after_prefix(start) if name.endswith("/") else start + b"\0"
            )
        except SpansGroupsError as error:
            raise InvalidRequestError(str(error), code="spans_groups") from None

    def client(self, group: Group) -> ClientT:
        """Return the client of a group at its present endpoints; earlier ones stay open."""
        if group not in self._clients:
            if not group.endpoints:
                detail = f"the map names no endpoints of group {group.id!r}: publish another"
                raise UnavailableError(detail, code="groups_unknown")
            self._clients[group] = self._make(self._reached(group))
        return self._clients[group]

    def _reached(self, group: Group) -> tuple[str, ...]:
        return as_reached(group.endpoints, by_tls=self._by_tls)

    def clients(self) -> list[ClientT]:
        """Return all that were made."""
        return list(self._clients.values())


def is_misrouted(error: NotAppliedError) -> bool:
    """G3: whether a newer map may help; nothing was applied."""
    return isinstance(error, UnavailableError | WrongClusterError) or error.code == "wrong_group"


def _unknown(problem: ClientError | None) -> UnavailableError:
    told = problem.detail if problem is not None else "publish one: onecopy groups publish"
    return UnavailableError(f"no node knows a map of the groups: {told}", code="groups_unknown")


class AsyncGroupedClient:
    """A client of all groups. Use it as an async context manager, or call `close`."""

    def __init__(self, endpoints: str | Iterable[str] = DEFAULT_ENDPOINTS, **options: Any) -> None:
        """Name nodes of any groups; `options` are those of `AsyncClient`, for each group alike."""
        self._options = options
        uses_tls = bool(options.get("cacert") or options.get("cert"))
        self._routes = _Routes(check_endpoints(endpoints), self._client_at, uses_tls=uses_tls)
        self._asking = asyncio.Lock()

    def _client_at(self, endpoints: Iterable[str]) -> AsyncClient:
        return AsyncClient(endpoints, **self._options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the clients of all groups."""
        for client in self._routes.clients():
            await client.close()

    async def groups(self) -> GroupMap:
        """Return the map in use. Raises UnavailableError "groups_unknown" where there is none."""
        if self._routes.map is None:
            await self._refresh()
        assert self._routes.map is not None
        return self._routes.map

    async def of(self, name: str) -> AsyncClient:
        """Return the client of a key's group; of a prefix's, if it ends with "/".

        It is closed with this one. Raises InvalidRequestError "spans_groups".
        """
        await self.groups()
        return self._routes.client(self._routes.group_of(name))

    async def put(self, key: str, value: bytes | str, **options: Any) -> PutResult:
        """Write a key: `AsyncClient.put` of its group."""
        return await self._call(key, lambda client: client.put(key, value, **options))

    async def get(self, key: str, **options: Any) -> GetResult | None:
        """Read a key: `AsyncClient.get` of its group."""
        return await self._call(key, lambda client: client.get(key, **options))

    async def delete(self, key: str, **options: Any) -> DeleteResult:
        """Remove a key: `AsyncClient.delete` of its group."""
        return await self._call(key, lambda client: client.delete(key, **options))

    async def _call(self, key: str, call: Callable[[AsyncClient], Awaitable[_T]]) -> _T:
        client = await self.of(key)
        try:
            return await call(client)
        except NotAppliedError as error:
            if not is_misrouted(error):
                raise
            await self._refresh()
            moved = await self.of(key)
            if moved is client:
                raise
            return await call(moved)

    async def _refresh(self) -> None:
        """Ask for a newer map. Raises UnavailableError where none is known."""
        async with self._asking:
            problem: ClientError | None = None
            for url in self._routes.sources():
                options = {**self._options, "timeout_ms": MAP_ASK_TIMEOUT_MS, "discover": False}
                try:
                    async with AsyncClient(url, **options) as client:
                        if self._routes.learn(await client.groups()):
                            return
                except ClientError as error:
                    problem = error
            if self._routes.map is None:
                raise _unknown(problem)


class GroupedClient:
    """The same, without asyncio: a `Client` for each group. Use it as a context manager."""

    def __init__(self, endpoints: str | Iterable[str] = DEFAULT_ENDPOINTS, **options: Any) -> None:
        """Name nodes of any groups; `options` are those of `Client`, for each group alike."""
        self._options = options
        uses_tls = bool(options.get("cacert") or options.get("cert"))
        self._routes = _Routes(check_endpoints(endpoints), self._client_at, uses_tls=uses_tls)
        self._lock = threading.RLock()

    def _client_at(self, endpoints: Iterable[str]) -> Client:
        return Client(endpoints, **self._options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the clients of all groups."""
        with self._lock:
            for client in self._routes.clients():
                client.close()

    def groups(self) -> GroupMap:
        """Return the map in use; see `AsyncGroupedClient.groups`."""
        with self._lock:
            if self._routes.map is None:
                self._refresh()
            assert self._routes.map is not None
            return self._routes.map

    def of(self, name: str) -> Client:
        """Return the client of a key's or a prefix's group; see `AsyncGroupedClient.of`."""
        with self._lock:
            self.groups()
            return self._routes.client(self._routes.group_of(name))

    def put(self, key: str, value: bytes | str, **options: Any) -> PutResult:
        """Write a key: `Client.put` of its group."""
        return self._call(key, lambda client: client.put(key, value, **options))

    def get(self, key: str, **options: Any) -> GetResult | None:
        """Read a key: `Client.get` of its group."""
        return self._call(key, lambda client: client.get(key, **options))

    def delete(self, key: str, **options: Any) -> DeleteResult:
        """Remove a key: `Client.delete` of its group."""
        return self._call(key, lambda client: client.delete(key, **options))

    def _call(self, key: str, call: Callable[[Client], _T]) -> _T:
        client = self.of(key)
        try:
            return call(client)
        except NotAppliedError as error:
            if not is_misrouted(error):
                raise
            self._refresh()
            moved = self.of(key)
            if moved is client:
                raise
            return call(moved)

    def _refresh(self) -> None:
        with self._lock:
            problem: ClientError | None = None
            for url in self._routes.sources():
                options = {**self._options, "timeout_ms": MAP_ASK_TIMEOUT_MS, "discover": False}
                try:
                    with Client(url, **options) as client:
                        if self._routes.learn(client.groups()):
                            return
                except ClientError as error:
                    problem = error
            if self._routes.map is None:
                raise _unknown(problem)
