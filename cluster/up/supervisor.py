"""`onecopy up`: a whole cluster of real processes on this machine, watched until Ctrl-C."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shlex
import signal
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import msgspec

from cluster.config.model import ClusterConfig
from cluster.up.directory import TOKEN_NAME, UpError
from cluster.up.display import Display, Row
from cluster.up.process import STOPPED, NodeProcess, own_file
from datapath.operations import ClusterStatus

TICK_S = 0.1
POLL_INTERVAL_S = 0.25
POLL_TIMEOUT_S = 0.4
STOP_TIMEOUT_S = 15.0

_decode_status = msgspec.json.Decoder(ClusterStatus).decode


class Up:
    """The processes of one cluster, and what is known about them."""

    def __init__(self, config: ClusterConfig, view: Display, *, restart: bool) -> None:
        self._config = config
        self._view = view
        logs = config.path.parent / "logs"
        self._processes = {
            node: NodeProcess(node, config.path, logs / f"{node}.log", restart=restart)
            for node in config.nodes
        }
        self._status: ClusterStatus | None = None
        self._stop_signals = 0
        self._hinted = False
        self._wake = asyncio.Event()

    async def run(self) -> int:
        """Run until a signal says stop, or no node can run; return the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)
        poller = asyncio.create_task(self._poll())
        try:
            for process in self._processes.values():
                process.start(loop.time())
            while not self._stop_signals:
                for process in self._processes.values():
                    process.tick(loop.time())
                self._show()
                if all(process.given_up for process in self._processes.values()):
                    break
                await self._pause(TICK_S)
        finally:
            poller.cancel()
            await asyncio.wait([poller])
            await self._stop_all()
            self._show()
        return 0 if self._stop_signals else 1

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
        self._status = None
        if self._stop_signals:
            self._view.say("stopping; the data is kept (Ctrl-C again: at once)")
        for process in self._processes.values():
            process.ask_to_stop()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + STOP_TIMEOUT_S
        killed = False
        running = list(self._processes.values())
        while running := [process for process in running if not process.has_ended()]:
            if not killed and (loop.time() >= deadline or self._stop_signals > 1):
                killed = True
                for process in running:
                    self._view.say(f"{process.node_id} has not stopped: killed")
                    process.kill()
            await asyncio.sleep(0.02)

    async def _poll(self) -> None:
        """Keep `_status` up to date."""
        timeout, headers = aiohttp.ClientTimeout(total=POLL_TIMEOUT_S), self._headers()
        authority = self._config.tls.ca
        tls = ssl.create_default_context(cafile=authority) if authority else True
        connector = aiohttp.TCPConnector(ssl=tls)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, headers=headers
        ) as session:
            while True:
                self._status = await self._ask_around(session)
                await asyncio.sleep(POLL_INTERVAL_S)

    def _headers(self) -> dict[str, str]:
        """Return what proves that it may ask for the status."""
        file = self._config.path.parent / TOKEN_NAME
        if self._config.access is None or not file.exists():
            return {}
        return {"Authorization": f"Bearer {file.read_text(encoding='utf-8').strip()}"}

    async def _ask_around(self, session: aiohttp.ClientSession) -> ClusterStatus | None:
        """Ask the last known primary, then the others, until one knows of a primary.

        If none does, what one of them knows; None if nobody answers.
        """
        primary = self._status.primary if self._status is not None else ""
        found: ClusterStatus | None = None
        for node in sorted(self._config.nodes, key=lambda item: item != primary):
            if self._processes[node].pid is None:
                continue
            status = await _ask(session, self._config.url(node))
            if status is not None and status.primary:
                return status
            found = found or status
        return found

    def _show(self) -> None:
        rows = [self._row(node) for node in self._config.nodes]
        status = self._status
        primary = (status.primary if status else "") or "none"
        epoch = f", epoch {status.epoch}" if status else ""
        title = f"{self._config.name}: primary {primary}{epoch}. Logs: {self._logs()}"
        self._view.show(title, rows)
        if status is not None and status.primary and not self._hinted:
            self._hinted = True
            url = f"{self._config.url(next(iter(self._config.nodes)))}/v1/kv/hello"
            curl = "curl"
            if authority := self._config.tls.ca:
                curl += f" --cacert {shlex.quote(os.path.relpath(authority))}"
            if self._config.access is not None:
                file = shlex.quote(os.path.relpath(self._config.path.parent / TOKEN_NAME))
                curl += f' -H "Authorization: Bearer $(cat {file})"'
            self._view.say(f"ready. Try: {curl} -X PUT --data-binary world {url}")
            self._view.say(f"       and: {curl} {url}")

    def _logs(self) -> str:
        return shlex.quote(os.path.relpath(self._config.path.parent / "logs"))

    def _row(self, node: str) -> Row:
        process = self._processes[node]
        url = self._config.url(node)
        if process.pid is None:
            if process.note == STOPPED:
                return Row(node=node, state=STOPPED, url=url)
            return Row(node=node, state="down", url=url, note=process.note)
        known = self._status.nodes.get(node) if self._status is not None else None
        if known is None or self._status is None:
            return Row(node=node, state="starting", url=url, pid=process.pid)
        return Row(
            node=node,
            state=known.state,
            url=url,
            pid=process.pid,
            in_sync=node in self._status.in_sync if known.role == "replica" else None,
            applied_index=known.applied_index,
            lag=known.lag,
        )


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


def run_up(config: ClusterConfig, view: Display, *, restart: bool) -> int:
    """Run the cluster until it is told to stop; return the exit code."""

    async def main() -> int:
        return await Up(config, view, restart=restart).run()

    return asyncio.run(main())
