"""The soak's cluster: nodes that fail on command, and are restarted when they end by themselves."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path

import msgspec

from cluster.client import AsyncClient, ClientError
from tests.faults.control import FaultyNodes
from tests.support.cluster import Cluster, NodeSpec, wait_until
from tests.support.partitions import Network
from tests.support.small_disk import mount_small_disk, unmount
from tests.support.toxiproxy import ToxiproxyServer

HEAL_DEADLINE_S = 90.0
SMALL_DISK_BYTES = 256 * 1024 * 1024
MAX_LOG_BYTES = 16 * 1024 * 1024
LIMITS = {
    "log_segment_size_bytes": 4 * 1024 * 1024,
    "log_retention_bytes": 8 * 1024 * 1024,
    "overlay_flush_bytes": 2 * 1024 * 1024,
    "client_table_bytes": 4_194_304,
}
_ENDED_BY_US = {0, -signal.SIGKILL}


class NotHealedError(AssertionError):
    """The cluster did not come back after a fault was lifted."""


class Places(Network):
    """The links between places: the ids that the nodes had at first."""

    def __init__(self, cluster: Cluster, server: ToxiproxyServer) -> None:
        super().__init__(cluster, server)
        self._places = list(cluster.specs)

    @property
    def nodes(self) -> list[str]:
        return list(self._places)


class SoakCluster(Cluster):
    """A cluster whose nodes are restarted, as a supervisor would, when they end by themselves.

    `restarts` tells what ended with code 1 while it might; `surprises` what ended though it should
    not have. Nodes under `may_end` may. `disk` is the small disk that one replica lives on.
    """

    def __init__(self, directory: Path, *, witness: bool) -> None:
        self.network: Places | None = None
        self._server: ToxiproxyServer | None = None
        self.disk: Path | None = _small_disk(directory / "disk")
        data = {"n2": self.disk / "n2"} if self.disk else None
        super().__init__(
            directory,
            replicas=2 if witness else 3,
            witnesses=int(witness),
            limits=LIMITS,
            data=data,
        )
        self.may_end: set[str] = set()
        self.restarts: list[str] = []
        self.surprises: list[str] = []
        self.faults = FaultyNodes(self)
        self._number = len(self.replicas)

    def use_network(self, server: ToxiproxyServer) -> None:
        """Have all links lead through proxies; before the nodes start."""
        server.start()
        self._server = server
        self.network = Places(self, server)

    def check_alive(self) -> None:
        """Restart what has ended by itself; called whenever something is waited for."""
        for node in self.specs:
            process = self.nodes[node]
            code = process.exit_code
            if code is None or code in _ENDED_BY_US:
                continue
            last = (process.log().splitlines() or ["nothing"])[-1]
            told = f"{node} ended with exit code {code}, and said: {last}"
            if code == 1 and node in self.may_end:
                self.restarts.append(told)
            else:
                self.surprises.append(told)
                raise NotHealedError(told)
            self.launch(node)

    def launch(self, *nodes: str) -> None:
        """Start processes; what they print is kept within bounds."""
        for node in nodes or tuple(self.specs):
            log = self.nodes[node].log_path
            if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
                log.replace(log.with_suffix(".log.old"))
        super().launch(*nodes)

    async def heal(self) -> None:
        """See that all nodes run and reach each other, and all replicas are in sync."""
        if self.network is not None:
            await self.network.heal()
        for node, process in self.nodes.items():
            if node in self.specs and process.paused:
                process.resume()
        for node in self.may_end & set(self.specs):
            process = self.nodes[node]
            if process.running and " CRITICAL " in process.log():
                await process.wait_exit()  # it has failed, and is on its way out
        self.check_alive()
        down = [node for node in self.specs if not self.nodes[node].running]
        if down:
            self.launch(*down)
        try:
            for node in self.specs:  # else the in-sync set may still be the one before a kill
                await self.wait_started(node)
            await self.wait_in_sync(*self.replicas, deadline_s=HEAL_DEADLINE_S)
        except NotHealedError:
            raise
        except AssertionError as error:
            raise NotHealedError(f"not healed: {error}") from error
        self.may_end.clear()

    async def replace(self, old: str) -> str:
        """Replace a replica by a new one with an empty disk, at the same addresses."""
        self._number += 1
        new = f"n{self._number}"
        await self.kill(old)
        started = time.monotonic()
        while True:
            try:
                async with self._client_but(old) as client:
                    await client.remove(old)
                break
            except ClientError:
                if time.monotonic() - started > HEAL_DEADLINE_S:
                    raise NotHealedError(f"{old} could not be removed") from None
        spec = self.specs[old]
        fresh = msgspec.structs.replace(spec, data=spec.data.with_name(new))
        self._rename(old, new, fresh)
        self._add_process(new)
        self.faults.add(new)
        self.write_config()
        shutil.rmtree(spec.data, ignore_errors=True)
        self.launch(new)
        return new

    def _client_but(self, node: str) -> AsyncClient:
        return self.client(*(other for other in self.running if other != node))

    def _rename(self, old: str, new: str, spec: NodeSpec) -> None:
        self.specs = {
            (new if node == old else node): (spec if node == old else item)
            for node, item in self.specs.items()
        }
        self.routes = {
            (new if source == old else source, new if target == old else target): route
            for (source, target), route in self.routes.items()
        }

    async def newest_primary(self) -> str:
        """Return who serves as the primary; waits for one."""

        async def serving() -> str | None:
            self.check_alive()
            return await self.serving()

        return await wait_until(serving, "a primary serves", HEAL_DEADLINE_S)

    def disk_bytes(self) -> int:
        """Return how much all that the cluster keeps takes up."""
        total = 0
        for root, _, names in os.walk(self.directory):
            for name in set(names) - {"ballast"}:
                with contextlib.suppress(OSError):
                    total += (Path(root) / name).stat().st_blocks * 512
        return total

    def end(self) -> None:
        """End every process, and take the small disk away."""
        super().end()
        if self._server is not None:
            self._server.end()
        if self.disk is not None:
            unmount(self.disk)
            self.disk = None


def _small_disk(path: Path) -> Path | None:
    """Mount a disk that can be filled, where that is permitted."""
    path.mkdir(parents=True, exist_ok=True)
    try:
        mount_small_disk(path, SMALL_DISK_BYTES)
    except OSError:
        return None
    return path
