"""Keeps what a node knows of the groups: the first group's from its state, others' by asking it."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from cluster.api.groups import KnownGroups
from cluster.client.aio import AsyncClient
from cluster.client.errors import ClientError
from cluster.config.groups_section import GroupsSection
from cluster.groups.group_map import GroupMap, GroupMapError, decode_map
from cluster.services.groups import GROUPS_SERVICE, MAP_KEY
from datapath.errors import OperationError
from datapath.keyspaces import SERVICES
from datapath.node.gateway import Gateway
from datapath.operations import Query

logger = logging.getLogger(__name__)

MAP_LOOK_INTERVAL_S = 5.0
"""How often the map is looked at, by a node that hears of no change of it."""
MAP_RETRY_INTERVAL_S = 0.5
"""The same, while no map is known."""
MAP_TIMEOUT_MS = 2000


class MapFollower:
    """One node's. `groups` is its configuration's section."""

    def __init__(self, groups: GroupsSection, known: KnownGroups, gateway: Gateway) -> None:
        self._client: AsyncClient | None = None
        self._client_tls = known.tls
        self._groups = groups
        self._known = known
        self._gateway = gateway
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Look at the map again and again."""
        leave = None
        if self._known.guard.is_first:
            leave = self._gateway.observe(SERVICES, MAP_KEY, self._changed.set)
        try:
            while True:
                self._changed.clear()
                found = await self._look()
                if found is not None and self._known.learn(found):
                    logger.info("took up version %d of the map of groups", found.version)
                pause_s = MAP_RETRY_INTERVAL_S if self._known.map is None else MAP_LOOK_INTERVAL_S
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._changed.wait()
        finally:
            if leave is not None:
                leave()
            await self._close()

    async def _look(self) -> GroupMap | None:
        """Return the newest map that can be had now."""
        if not self._known.guard.is_first:
            return await self._ask() if self._groups.first else None
        try:
            found = await self._gateway.query(Query("map", service=GROUPS_SERVICE), MAP_TIMEOUT_MS)
            return None if found.value is None else decode_map(found.value)
        except (OperationError, GroupMapError):
            return None  # no primary now: what is known goes on

    async def _ask(self) -> GroupMap | None:
        tls = self._known.tls
        if tls is not self._client_tls:  # the files have changed
            await self._close()
        try:
            if self._client is None:
                self._client_tls = tls
                self._client = AsyncClient(
                    self._groups.first,
                    discover=False,
                    timeout_ms=MAP_TIMEOUT_MS,
                    cacert=tls.ca,
                    cert=tls.certificate,
                    key=tls.key,
                )
            return (await self._client.groups()).map
        except (ClientError, ValueError):
            return None

    async def _close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()
