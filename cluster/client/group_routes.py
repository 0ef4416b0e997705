"""Which group's nodes a call goes to, for a client that was given nodes of any group.

Where there are groups, nodes name the version of their map. It is asked for then, and each group is
talked to by a transport of its own: as a cluster, with its own id and its own revisions (G7). So a
call saves a hop, and what no node passes on, a watch, comes to its group at all.

A plain call never depends on that: as long as the map or a group's nodes cannot be had from here (a
proxy may stand in between), the node that is asked passes it on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import msgspec

from cluster.client.errors import ClientError, InvalidRequestError, UnavailableError
from cluster.client.exchange import Request
from cluster.client.requests import decode_reply
from cluster.client.retries import MEET, Transport
from cluster.groups.group_map import (
    Group,
    GroupMap,
    GroupMapError,
    GroupsDocument,
    SpansGroupsError,
    as_reached,
    check_map,
    may_replace_map,
    route,
)
from datapath.keyspaces import after_prefix

MAP_ASK_TIMEOUT_MS = 2000
"""How long the map is asked for."""
LEARN_INTERVAL_S = 1.0
"""How often it is asked for at most, in the background or since a group was out of reach."""
NameSpan = tuple[bytes, bytes | None]
"""Names from the first one up to the second (None: all that follow)."""
_ASK_MAP = Request("GET", "/v1/groups", waits=False)


class GroupRoutes:
    """One client's. `home` has the named nodes, of one group; `make` makes another one's transport.

    `follows`: False: only the named nodes are to be used. `by_tls`: the client uses TLS, so that no
    token of it goes out in plain text, whatever the map says (G5).
    """

    def __init__(
        self,
        home: Transport,
        make: Callable[[Group], Transport],
        *,
        follows: bool,
        by_tls: bool = False,
    ) -> None:
        self._by_tls = by_tls
        self.home = home
        self._make = make
        self._follows = follows
        self._map: GroupMap | None = None
        self._own = ""
        self._made: dict[Group, Transport] = {}
        self._learning: asyncio.Task[None] | None = None
        self._learn_due_at = 0.0

    async def close(self) -> None:
        """Close the transports of all groups."""
        if self._learning is not None:
            self._learning.cancel()
            await asyncio.wait([self._learning])
        for transport in (*self._made.values(), self.home):
            await transport.close()

    def near(self, key: str) -> Transport:
        """Return where a plain call on a key goes: to its group, if that is known to be there."""
        if not self.home.groups_version or not self._follows:
            return self.home
        now = asyncio.get_running_loop().time()
        asks = self._learning is not None and not self._learning.done()
        if self._is_behind and not asks and now >= self._learn_due_at:
            self._learn_due_at = now + LEARN_INTERVAL_S
            self._learning = asyncio.create_task(self._learn_quietly())
        group = self._other(*name_span(key))
        if group is None:
            return self.home
        transport = self._at(group)
        if transport.cluster_id and transport.endpoints.has_fresh(now):
            return transport
        transport.refresh_soon(after_failure=True)  # then its cluster is known
        return self.home

    async def of(self, start: bytes, end: bytes | None, *, meets: bool = True) -> Transport:
        """Return the transport of the group that has all names from `start` up to `end`.

        It is that of the named nodes where there are no groups, or the range is in none; they say
        so. `meets`: find out whether there are groups. Raises UnavailableError.
        """
        if not self._follows:
            return self.home
        if meets and self.home.revision is None:
            await self.home.call(MEET)
        if not self.home.groups_version:
            return self.home
        if self._is_behind:
            await self._learn()
        group = self._other(start, end)
        if group is None:
            return self.home
        if not self._at(group).endpoints.has_fresh(asyncio.get_running_loop().time()):
            with contextlib.suppress(ClientError):
                await self._learn()
            group = self._other(start, end) or group
        transport = self._at(group)
        if not transport.cluster_id:
            await self._meet(transport, group)
        return transport

    async def group_of(self, name: str) -> Group | None:
        """Return the group of a key, or of all keys below what ends with "/".

        None: it is that of the named nodes, or there are none. Raises InvalidRequestError
        "spans_groups", UnavailableError.
        """
        await self.home.call(MEET)
        if self._is_behind:
            await self._learn()
        if self._map is None:
            return None
        try:
            found = route(self._map, *name_span(name, below=name.endswith("/")))
        except SpansGroupsError as error:
            raise InvalidRequestError(str(error), code="spans_groups") from None
        if found.id != self._own and not found.endpoints:
            raise UnavailableError(
                f"the map names no node of group {found.id!r}: publish where it is with: onecopy "
                "groups publish",
                code="groups_unknown",
            )
        return None if found.id == self._own else found

    def may_lead_on(self, asked: Transport) -> bool:
        """Whether, after `asked` has said that this is another group's, `of` may know better."""
        return self._follows and (asked is not self.home or self._is_behind)

    # -- the map

    @property
    def _is_behind(self) -> bool:
        version = self.home.groups_version
        return bool(version) and (self._map is None or self._map.version < version)

    async def _learn(self) -> None:
        """Ask for the map, and take it if it is newer (G2). Raises ClientError."""
        reply = await self.home.call(_ASK_MAP, MAP_ASK_TIMEOUT_MS)
        found = decode_reply(_ASK_MAP, reply, GroupsDocument)
        self._own = found.own.id
        if found.map is None or may_replace_map(self._map, found.map):
            return
        try:
            check_map(found.map)
        except GroupMapError as error:
            raise UnavailableError(f"not a map of groups: {error}", code="bad_answer") from None
        self._map = msgspec.structs.replace(
            found.map, groups=tuple(map(self._reached, found.map.groups))
        )

    def _reached(self, group: Group) -> Group:
        urls = as_reached(group.endpoints, by_tls=self._by_tls)
        return msgspec.structs.replace(group, endpoints=urls)

    async def _learn_quietly(self) -> None:
        with contextlib.suppress(ClientError):
            await self._learn()

    def _other(self, start: bytes, end: bytes | None) -> Group | None:
        """Return the group of a range, if it is known to be another than the named nodes'."""
        if self._map is None:
            return None
        try:
            found = route(self._map, start, end)
        except SpansGroupsError:
            return None
        return None if found.id == self._own or not found.endpoints else found

    def _at(self, group: Group) -> Transport:
        """Return the transport of a group at its present endpoints; earlier ones stay open."""
        if group not in self._made:
            self._made[group] = self._make(group)
        return self._made[group]

    @staticmethod
    async def _meet(transport: Transport, group: Group) -> None:
        try:
            await transport.call(MEET, MAP_ASK_TIMEOUT_MS)
        except UnavailableError as error:
            raise UnavailableError(
                f"this belongs to group {group.id!r} at {', '.join(group.endpoints)}, which cannot "
                f"be reached from here ({error.detail}): start its nodes, name one that can be "
                "reached, or publish where they are with: onecopy groups publish",
                code=error.code,
            ) from None


def utf8(name: str) -> bytes:
    """Return a name's bytes; of one that no node takes, some that it cannot have."""
    return name.encode("utf-8", "surrogatepass")


def name_span(name: str, *, below: bool = False) -> NameSpan:
    """Return the range of one key, or of all keys `below` a prefix."""
    start = utf8(name)
    return start, after_prefix(start) if below else start + b"\0"
