"""`onecopy up`: whole clusters of real processes on this machine, watched until Ctrl-C."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shlex
import signal
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import msgspec

from cluster.config.model import ClusterConfig
from cluster.up.directory import TOKEN_NAME, UpError
from cluster.up.display import Display, Row
from cluster.up.groups import publish_groups
from cluster.up.process import STOPPED, NodeProcess, own_file
from datapath.operations import ClusterStatus

TICK_S = 0.1
POLL_INTERVAL_S = 0.25
POLL_TIMEOUT_S = 0.4
STOP_TIMEOUT_S = 15.0

_decode_status = msgspec.json.Decoder(ClusterStatus).decode


class UpCluster:
    """The processes of one cluster, and what is known about them. `files`: where its token is."""

    def __init__(self, config: ClusterConfig, files: Path, *, restart: bool) -> None:
        self.config = config
        self.status: ClusterStatus | None = None
        self._files = files
        logs = config.path.parent / "logs"
        self.processes = {
            node: NodeProcess(node, config.path, logs / f"{node}.log", restart=restart)
            for node in config.nodes
        }

    def label(self, node: str) -> str:
        """Return a node's id as it is shown: with its group, where there are groups."""
        return f"{self.config.groups.id}/{node}" if self.config.groups is not None else node

    def token(self) -> str:
        """Return what proves that it may ask for the status, or ""."""
        file = self._files / TOKEN_NAME
        if self.config.access is None or not file.exists():
            return ""
        return file.read_text(encoding="utf-8").strip()

    async def poll(self) -> None:
        """Keep `status` up to date."""
        timeout, token = aiohttp.ClientTimeout(total=POLL_TIMEOUT_S), self.token()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        authority = self.config.tls.ca
        tls = ssl.create_default_context(cafile=authority) if authority else True
        connector = aiohttp.TCPConnector(ssl=tls)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, headers=headers
        ) as session:
            while True:
                self.status = await self._ask_around(session)
                await asyncio.sleep(POLL_INTERVAL_S)

    async def _ask_around(self, session: aiohttp.ClientSession) -> ClusterStatus | None:
        """Ask the last known primary, then the others, until one knows of a primary.

        If none does, what one of them knows; None if nobody answers.
        """
        primary = self.status.primary if self.status is not None else ""
        found: ClusterStatus | None = None
        for node in sorted(self.config.nodes, key=lambda item: item != primary):
            if self.processes[node].pid is None:
                continue
            status = await _ask(session, self.config.url(node))
            if status is not None and status.primary:
                return status
            found = found or status
        return found

    def describe(self) -> str:
        """Return its primary, with the epoch."""
        status = self.status
        if status is None:
            return "primary none"
        primary = self.label(status.primary) if status.primary else "none"
        return f"primary {primary}, epoch {status.epoch}"

    def rows(self) -> list[Row]:
        """Return its nodes as they are now."""
        return [self._row(node) for node in self.config.nodes]

    def _row(self, node: str) -> Row:
        process, label = self.processes[node], self.label(node)
        url = self.config.url(node)
        if process.pid is None:
            if process.note == STOPPED:
                return Row(node=label, state=STOPPED, url=url)
            return Row(node=label, state="down", url=url, note=process.note)
        known = self.status.nodes.get(node) if self.status is not None else None
        if known is None or self.status is None:
            return Row(node=label, state="starting", url=url, pid=process.pid)
        return Row(
            node=label,
            state=known.state,
            url=url,
            pid=process.pid,
            in_sync=node in self.status.in_sync if known.role == "replica" else None,
            applied_index=known.applied_index,
            lag=known.lag,
        )

    def hints(self) -> Iterator[str]:
        """Yield what to try first."""
        url = f"{self.config.url(next(iter(self.config.nodes)))}/v1/kv/hello"
        curl = "curl"
        if authority := self.config.tls.ca:
            curl += f" --cacert {shlex.quote(os.path.relpath(authority))}"
        if self.config.access is not None:
            file = shlex.quote(os.path.relpath(self._files / TOKEN_NAME))
            curl += f' -H "Authorization: Bearer $(cat {file})"'
        yield f"ready. Try: {curl} -X PUT --data-binary world {url}"
        yield f"       and: {curl} {url}"


class Up:
    """The clusters that run together: one, or one for each group."""

    def __init__(self, clusters: Sequence[UpCluster], data: Path, view: Display) -> None:
        self._clusters = clusters
        self._data = data
        self._view = view
        self._processes = [
            process for cluster in clusters for process in cluster.processes.values()
        ]
        self._stop_signals = 0
        self._hinted = False
        self._published = len(clusters) == 1
        self._wake = asyncio.Event()

    async def run(self) -> int:
        """Run until a signal says stop, or no node can run; return the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)
        helpers = [loop.create_task(cluster.poll()) for cluster in self._clusters]
        if not self._published:
            helpers.append(loop.create_task(self._publish()))
        try:
            for process in self._processes:
                process.start(loop.time())
            while not self._stop_signals:
                for process in self._processes:
                    process.tick(loop.time())
                self._show()
                if all(process.given_up for process in self._processes):
                    break
                await self._pause(TICK_S)
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.wait(helpers)
            await self._stop_all()
            self._show()
        return 0 if self._stop_signals else 1

    async def _publish(self) -> None:
        """Publish where the groups are, as soon as the first of them can take it."""
        first = self._clusters[0]
        configs = [cluster.config for cluster in self._clusters]
        while not self._published:
            self._published = await publish_groups(configs, first.token())
            await asyncio.sleep(POLL_INTERVAL_S)

    def _on_signal(self) -> None:
        self._stop_signals += 1
        self._wake.set()

    async def _pause(self, seconds: float) -> None:
        self._wake.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _stop_all(self) -> None:
        """SIGTERM to all; SIGKILL after fifteen seconds, or at the second Ctrl-C."""
        for cluster in self._clusters:
            cluster.status = None
        if self._stop_signals:
            self._view.say("stopping; the data is kept (Ctrl-C again: at once)")
        for process in self._processes:
            process.ask_to_stop()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + STOP_TIMEOUT_S
        killed = False
        running = self._processes
        while running := [process for process in running if not process.has_ended()]:
            if not killed and (loop.time() >= deadline or self._stop_signals > 1):
                killed = True
                for process in running:
                    self._view.say(f"{process.node_id} has not stopped: killed")
                    process.kill()
            await asyncio.sleep(0.02)

    def _show(self) -> None:
        clusters = self._clusters
        rows = [row for cluster in clusters for row in cluster.rows()]
        told = "; ".join(cluster.describe() for cluster in clusters)
        logs = "logs" if len(clusters) == 1 else "*/logs"
        where = shlex.quote(os.path.relpath(self._data)) + f"/{logs}"
        self._view.show(f"{clusters[0].config.name}: {told}. Logs: {where}", rows)
        ready = all(cluster.status and cluster.status.primary for cluster in clusters)
        if ready and self._published and not self._hinted:
            self._hinted = True
            for hint in clusters[0].hints():
                self._view.say(hint)


async def _ask(session: aiohttp.ClientSession, url: str) -> ClusterStatus | None:
    try:
        async with session.get(f"{url}/v1/cluster") as response:
            body = await response.read()
            return _decode_status(body) if response.status == 200 else None
    except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError):
        return None


@contextmanager
def sole_runner(data: Path) -> Iterator[None]:
    """Hold the lock of a cluster's directory. Raises UpError if another `onecopy up` has it."""
    with open(data / "up.lock", "a+", encoding="ascii", opener=own_file) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read(20).strip() or "unknown"
            raise UpError(f"{data} is in use by another onecopy up (process {owner})") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def run_up(configs: Sequence[ClusterConfig], data: Path, view: Display, *, restart: bool) -> int:
    """Run the clusters until they are told to stop; return the exit code."""

    async def main() -> int:
        clusters = [UpCluster(config, data, restart=restart) for config in configs]
        return await Up(clusters, data, view).run()

    return asyncio.run(main())
