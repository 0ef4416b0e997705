"""A node inside one's own asyncio program: `async with onecopy.Node(config, "n1", …) as node:`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster.config.file import load_config
from cluster.config.model import ClusterConfig, ConfigError
from cluster.node.process import EXIT_FAILED, NodeRuntime, open_node
from cluster.node.settings import load_hosts
from cluster.services.hosting import Host
from datapath.service import Service


class EmbeddedNode:
    """Runs one node of a cluster on the running event loop, from `async with` to its end.

    `config` is the configuration file or what `load_config` made of it. `services` are instances,
    hosted under their names beside those of the file; every node of the cluster needs the same.
    What the program does on the event loop delays the node: keep the loop free, as for any server.
    Entering waits until the node has joined its cluster and listens to clients, which it does as
    soon as a majority of the nodes runs. Raises what keeps it from that: ConfigError,
    DataDirectoryError, OSError; RuntimeError where a node fails while it runs.
    """

    def __init__(
        self, config: ClusterConfig | Path | str, node: str, *, services: Iterable[Service] = ()
    ) -> None:
        self.config = config if isinstance(config, ClusterConfig) else load_config(config)
        if node not in self.config.nodes:
            known = ", ".join(self.config.nodes)
            problem = f"there is no such node; there are: {known}"
            raise ConfigError(self.config.path, f"nodes.{node}", problem)
        self.node_id = node
        self._hosts = load_hosts(self.config, node)
        for service in services:
            name = service.service_name()
            if name in self._hosts:
                raise ConfigError(
                    self.config.path, f"services.{name}", "is hosted already: give it another name"
                )
            self._hosts[name] = Host(name, service)
        self._stack = contextlib.AsyncExitStack()
        self._process: NodeRuntime | None = None
        self._running: asyncio.Task[int] | None = None

    @property
    def url(self) -> str:
        """Where this node's HTTP API is, for a client."""
        return self.config.url(self.node_id)

    async def __aenter__(self) -> Self:
        process = await self._stack.enter_async_context(
            open_node(self.config, self.node_id, self._hosts)
        )
        self._process = process
        self._running = asyncio.create_task(process.run(owns_process=False))
        started = asyncio.create_task(process.started.wait())
        try:
            await asyncio.wait({self._running, started}, return_when=asyncio.FIRST_COMPLETED)
            if self._running.done():
                self._check(self._running.result())
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        finally:
            started.cancel()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        process, running = self._process, self._running
        try:
            if process is not None and running is not None:
                process.end()
                code = await asyncio.shield(running) if error is None else None
                if code is None:
                    await asyncio.wait({running})
                else:
                    self._check(code)
        finally:
            await self._stack.aclose()

    async def wait_ended(self) -> None:
        """Wait until the node ends by itself: it has failed. Raises RuntimeError."""
        if self._running is None:
            raise RuntimeError("the node has not been started: use async with")
        self._check(await asyncio.shield(self._running))

    def _check(self, code: int) -> None:
        if code == EXIT_FAILED:
            raise RuntimeError(f"node {self.node_id} has failed: its log says why")
