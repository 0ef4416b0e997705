"""A cluster of real node processes: started, killed, paused, asked, and written to under watch.

    cluster = Cluster(tmp_path, replicas=2, witnesses=1)
    try:
        await cluster.start()
        async with Writer(cluster) as writer:
            await cluster.kill(await cluster.primary())
        await cluster.wait_converged()
        await writer.verify()
    finally:
        cluster.end()

Each node is `python -m cluster.cli.main serve` in a session of its own (see `forking`); what it
prints goes to a file. Nothing here waits for a fixed time: conditions are polled until a generous
deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar, overload

import msgspec

from cluster.certificates.authority import Authority
from cluster.certificates.hosts import LOOPBACK_HOSTS
from cluster.client.aio import AsyncClient
from cluster.client.errors import (
    ClientError,
    NotAppliedError,
    PreconditionFailedError,
    UnknownOutcomeError,
)
from cluster.services.access_guard import draw_token, hash_line
from datapath.operations import ClusterStatus, Digest
from tests.support.forking import Forked, fork
from tests.support.ports import free_address
from tests.support.raw_http import Reply, fetch

DEADLINE_S = 60.0
POLL_INTERVAL_S = 0.02
LOG_TAIL_LINES = 40
UNSUSPECTING = {
    "suspect_after_ms": 4000,
    "lease_duration_ms": 5000,
    "grace_period_ms": 6000,
    "ack_timeout_ms": 6000,
}
"""Timing for tests to which it matters that nobody is let go who stands still for a moment."""
SLOW_TO_SUSPECT = {
    "suspect_after_ms": 1000,
    "lease_duration_ms": 1250,
    "grace_period_ms": 1500,
    "ack_timeout_ms": 1500,
}
"""Timing for tests in which somebody is to be let go, and nobody else, also on a busy machine."""
SECRET = "a secret for tests, 32 bytes long"
ROOT = Path(__file__).resolve().parents[2]
ONECOPY: Sequence[str] = (sys.executable, "-m", "cluster.cli.main")

T = TypeVar("T")
Scalar = int | str


# -- waiting


@overload
async def wait_until(
    condition: Callable[[], Awaitable[T | None]], what: str, deadline_s: float = DEADLINE_S
) -> T: ...


@overload
async def wait_until(
    condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S
) -> bool: ...


async def wait_until(
    condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S
) -> Any:
    """Poll until the condition, a plain or an async function, gives something true; return that.

    Raises AssertionError that says `what` was waited for.
    """
    end = time.monotonic() + deadline_s
    while True:
        found = condition()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s:g} s: {what}")
        await asyncio.sleep(POLL_INTERVAL_S)


# -- one node


class NodeSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the configuration file says of a node."""

    role: str
    client: str
    peer: str
    raft: str
    data: Path
    client_bind: str = ""
    peer_bind: str = ""
    raft_bind: str = ""
    etcd: str = ""


def make_spec(role: str, data: Path, *, etcd: bool = False) -> NodeSpec:
    """Return a spec with free ports; `etcd`: one for etcd's clients too."""
    return NodeSpec(
        role=role,
        client=free_address(),
        peer=free_address(),
        raft=free_address(),
        data=data,
        etcd=free_address() if etcd else "",
    )


class NodeProcess:
    """One node's process, over its restarts; `log_path` holds what all of them printed."""

    def __init__(self, node: str, log_path: Path) -> None:
        self.node = node
        self.log_path = log_path
        self.command: Sequence[str] = ONECOPY
        self._popen: subprocess.Popen[bytes] | Forked | None = None
        self._log_start = 0
        self.paused = False

    @property
    def running(self) -> bool:
        """Whether the process is there (paused counts)."""
        return self._popen is not None and self._popen.poll() is None

    @property
    def pid(self) -> int:
        assert self._popen is not None, f"{self.node} was never started"
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        return None if self._popen is None else self._popen.poll()

    def start(self, config: Path, *extra: str) -> None:
        assert not self.running, f"{self.node} is running"
        self._reap()
        self._log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
        arguments = ["serve", "--config", str(config), "--node", self.node, *extra]
        # A test run that is killed leaves no nodes behind, which would slow the next.
        if self.command is ONECOPY and sys.platform == "linux":
            self._popen = fork(self.node, arguments, self.log_path)
        else:
            log: IO[bytes]
            with self.log_path.open("ab") as log:
                self._popen = subprocess.Popen(
                    [*self.command, *arguments, "--supervised-by", str(os.getpid())],
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        self.paused = False

    def signal(self, number: int) -> None:
        """Send a signal; the process need not be there any more."""
        if self._popen is not None:
            self._popen.send_signal(number)  # does nothing once it has been reaped

    def pause(self) -> None:
        self.signal(signal.SIGSTOP)
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        self.signal(signal.SIGCONT)

    async def wait_exit(self, deadline_s: float = DEADLINE_S) -> int:
        """Wait for the end, and return the exit code."""
        await wait_until(lambda: not self.running, f"{self.node} ends", deadline_s)
        code = self.exit_code
        assert code is not None
        return code

    async def kill(self) -> None:
        """End it as by kill -9."""
        self.signal(signal.SIGKILL)
        await self.wait_exit()
        self.paused = False

    async def terminate(self, deadline_s: float = DEADLINE_S) -> int:
        """Ask it to stop, and return its exit code."""
        self.signal(signal.SIGTERM)
        return await self.wait_exit(deadline_s)

    def log(self) -> str:
        """Return what the newest process has printed."""
        with self.log_path.open("rb") as file:
            file.seek(self._log_start)
            return file.read().decode(errors="replace")

    def rss_bytes(self) -> int:
        """Return the resident memory, as the kernel counts it."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def end(self) -> None:
        """Make sure that the process is gone; for cleaning up, without an event loop."""
        if self._popen is not None and self._popen.poll() is None:
            self._popen.kill()
        self._reap()

    def _reap(self) -> None:
        if self._popen is not None:
            self._popen.wait()
            self._popen = None

    def tail(self) -> str:
        """Return the last lines of all that was printed."""
        text = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        return "\n".join(text.splitlines()[-LOG_TAIL_LINES:])


# -- the cluster


class Cluster:
    """Node processes with one configuration file, in a directory of their own.

    Replicas are n1, n2, …, witnesses w1, w2, …. `limits` and `timing` fill their sections;
    `routes` maps (source, target) to {"peer": …, "raft": …}. `tls`: with certificates of an
    authority in `certs`; `tls_section` holds the fields.
    """

    def __init__(
        self,
        directory: Path,
        *,
        replicas: int = 3,
        witnesses: int = 0,
        limits: Mapping[str, Scalar] | None = None,
        timing: Mapping[str, Scalar] | None = None,
        routes: Mapping[tuple[str, str], Mapping[str, str]] | None = None,
        secret: str = SECRET,
        name: str = "test",
        reads: str = "leased",
        data: Mapping[str, Path] | None = None,
        access: Mapping[str, str] | None = None,
        archive: Mapping[str, Scalar] | None = None,
        tls: bool = False,
        etcd: bool = False,
        groups: Mapping[str, object] | None = None,
    ) -> None:
        """`access`: fields of [access]; the first administrator's token is drawn."""
        self.token = draw_token() if access is not None else None
        self.access = dict(access or {})
        self.archive = dict(archive or {})
        self.groups = dict(groups or {})
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.name = name
        self.secret = secret
        self.reads = reads
        self.limits = dict(limits or {})
        self.timing = dict(timing or {})
        self.routes = {pair: dict(route) for pair, route in (routes or {}).items()}
        ids = [(f"n{number + 1}", "replica") for number in range(replicas)]
        ids += [(f"w{number + 1}", "witness") for number in range(witnesses)]
        places = data or {}
        self.specs = {
            node: make_spec(role, places.get(node, directory / "data" / node), etcd=etcd)
            for node, role in ids
        }
        self.configs: dict[str, Path] = {}  # a node that is to read another file
        self.config_path = directory / "cluster.toml"
        self.nodes: dict[str, NodeProcess] = {}
        for node in self.specs:
            self._add_process(node)
        self.authority = Authority(directory / "certs")
        self.tls_section: dict[str, Scalar] = {}
        if tls:
            self.authority.create()
            for node in self.specs:
                self.authority.issue_node(node, LOOPBACK_HOSTS)
            self.tls_section = {
                "ca": "certs/ca.crt",
                "certificate": "certs/{node}.crt",
                "key": "certs/{node}.key",
                "client_ca": "certs/ca.crt",
                "crl": "certs/ca.crl",
            }
        self.write_config()

    @property
    def cacert(self) -> str:
        """The file by which clients recognise the nodes; "": there is no TLS."""
        return str(self.authority.directory / "ca.crt") if "ca" in self.tls_section else ""

    def _add_process(self, node: str) -> None:
        self.nodes[node] = NodeProcess(node, self.directory / f"{node}.log")

    # -- configuration

    def write_config(self, path: Path | None = None, *, secret: str | None = None) -> Path:
        """Write the configuration file (again) after a change."""
        path = path or self.config_path
        lines = ["[cluster]", f"name = {json.dumps(self.name)}", f'reads = "{self.reads}"']
        if secret := (self.secret if secret is None else secret):
            lines.append(f"secret = {json.dumps(secret)}")
        for node, spec in self.specs.items():
            lines.append(f"[nodes.{node}]")
            lines += [
                f"{field} = {json.dumps(str(value))}"
                for field, value in msgspec.structs.asdict(spec).items()
                if value  # an empty one is as good as none, and older releases may not know it
            ]
        for (source, target), route in self.routes.items():
            lines.append(f"[routes.{source}.{target}]")
            lines += [f"{field} = {json.dumps(value)}" for field, value in route.items()]
        sections: tuple[tuple[str, Mapping[str, Scalar]], ...] = (
            ("timing", self.timing),
            ("limits", self.limits),
            ("tls", self.tls_section),
        )
        for section, values in sections:
            lines.append(f"[{section}]")
            lines += [f"{field} = {json.dumps(value)}" for field, value in values.items()]
        if self.archive:
            lines.append("[archive]")
            lines += [f"{field} = {json.dumps(value)}" for field, value in self.archive.items()]
        if self.groups:
            lines.append("[groups]")
            lines += [f"{field} = {json.dumps(value)}" for field, value in self.groups.items()]
        if self.token is not None:
            lines += ["[access]", f'admin_token_hash = "{hash_line(self.token)}"']
            lines += [f"{field} = {json.dumps(value)}" for field, value in self.access.items()]
        path.write_text("\n".join(lines) + "\n")
        path.chmod(0o600)
        return path

    def replace_node(self, old: str, new: str) -> None:
        """Give a node a new id, new ports and a new data directory, in the configuration file."""
        spec = make_spec(self.specs[old].role, self.directory / "data" / new)
        self.specs = {
            (new if node == old else node): (spec if node == old else item)
            for node, item in self.specs.items()
        }
        self._add_process(new)
        self.write_config()

    @property
    def replicas(self) -> list[str]:
        return [node for node, spec in self.specs.items() if spec.role == "replica"]

    @property
    def running(self) -> list[str]:
        """The nodes whose processes are there, paused ones left out."""
        return [
            node for node in self.specs if self.nodes[node].running and not self.nodes[node].paused
        ]

    def data(self, node: str) -> Path:
        return self.specs[node].data

    def url(self, node: str) -> str:
        return f"http{'s' if self.cacert else ''}://{self.specs[node].client}"

    def others(self, *nodes: str) -> list[str]:
        """Return the replicas but these."""
        return [node for node in self.replicas if node not in nodes]

    # -- processes

    def launch(self, *nodes: str) -> None:
        """Start the processes of these nodes (default: all), and wait for nothing."""
        for node in nodes or tuple(self.specs):
            self.nodes[node].start(self.configs.get(node, self.config_path))

    async def start(self, *nodes: str, in_sync: bool = True) -> None:
        """Start nodes; wait until a primary serves, all running replicas are in sync, and vote."""
        self.launch(*nodes)
        await self.primary()
        if in_sync:
            await self.wait_in_sync()
            await self._wait_voting()
        for node in nodes or tuple(self.specs):
            await self.wait_started(node)

    async def wait_started(self, node: str) -> None:
        """Wait until a node says that all of it runs: it may be in sync a moment earlier."""

        def said_so() -> bool:
            self.check_alive()
            return " started: http" in self.nodes[node].log()

        await wait_until(said_so, f"{node} has started")

    async def _wait_voting(self) -> None:
        """Wait until each running member has its vote: a new one gets it after its data."""

        async def voting() -> bool:
            status = await self._status_of_primary()
            return status is not None and all(
                status.nodes[each].votes for each in self.running if each in status.nodes
            )

        await wait_until(voting, "every running member votes")

    async def kill(self, *nodes: str) -> None:
        """End these nodes as by kill -9, all at once."""
        for node in nodes:
            self.nodes[node].signal(signal.SIGKILL)
        for node in nodes:
            await self.nodes[node].kill()

    async def stop(self, *nodes: str) -> dict[str, int]:
        """Ask these nodes (default: all that run) to stop; return their exit codes."""
        chosen = nodes or tuple(self.running)
        for node in chosen:
            self.nodes[node].signal(signal.SIGTERM)
        return {node: await self.nodes[node].wait_exit() for node in chosen}

    def end(self) -> None:
        """End every process, whatever its state. Needs no event loop."""
        for process in self.nodes.values():
            process.end()

    def tails(self) -> str:
        """Return the last lines of every node's log."""
        parts = []
        for node, process in self.nodes.items():
            state = "running" if process.running else f"exit code {process.exit_code}"
            parts.append(f"---- {node} ({state}): {process.log_path}\n{process.tail()}")
        return "\n".join(parts)

    # -- asking

    async def fetch(
        self,
        node: str,
        method: str,
        target: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        """Send one request to one node, on a connection of its own. Raises OSError and the like.

        Where there is access control it is the administrator's, unless `headers` say whose.
        """
        if self.token is not None and "Authorization" not in (headers or {}):
            headers = {"Authorization": f"Bearer {self.token.text}", **(headers or {})}
        return await fetch(self.url(node), method, target, body, headers)

    async def try_fetch(self, node: str, target: str) -> Reply | None:
        """GET from one node; None if it does not answer."""
        try:
            return await self.fetch(node, "GET", target)
        except (OSError, EOFError, TimeoutError):
            return None

    async def status(self, node: str) -> ClusterStatus | None:
        """Return what one node says of the cluster; None if it does not answer."""
        reply = await self.try_fetch(node, "/v1/cluster")
        if reply is None or reply.status != 200:
            return None
        return msgspec.json.decode(reply.body, type=ClusterStatus)

    async def digest(self, node: str) -> Digest | None:
        """Scan one node's store; None if it does not answer."""
        reply = await self.try_fetch(node, "/v1/digest")
        if reply is None or reply.status != 200:
            return None
        return msgspec.json.decode(reply.body, type=Digest)

    async def metric(self, node: str, name: str) -> float:
        """Return one of the node's numbers, by its name without the prefix."""
        reply = await self.fetch(node, "GET", "/metrics")
        for line in reply.body.decode().splitlines():
            if line.startswith(f"onecopy_{name} "):
                return float(line.split(" ")[1])
        raise AssertionError(f"{node} has no metric onecopy_{name}")

    def client(
        self,
        *nodes: str,
        timeout_ms: int = 20_000,
        max_connections: int = 64,
        discover: bool = True,
        token: str | None = None,
    ) -> AsyncClient:
        """Return a client of these nodes (default: all); use it as a context manager."""
        urls = [self.url(node) for node in nodes or tuple(self.specs)]
        return self.client_at(
            *urls,
            timeout_ms=timeout_ms,
            max_connections=max_connections,
            discover=discover,
            token=token,
        )

    def client_at(
        self,
        *urls: str,
        timeout_ms: int = 20_000,
        max_connections: int = 64,
        discover: bool = False,
        token: str | None = None,
    ) -> AsyncClient:
        """Return a client of these URLs, which recognises the cluster's nodes."""
        if token is None:
            token = "" if self.token is None else self.token.text
        return AsyncClient(
            urls,
            timeout_ms=timeout_ms,
            max_connections=max_connections,
            discover=discover,
            token=token,
            cacert=self.cacert,
        )

    # -- waiting for states

    async def serving(self) -> str | None:
        """Return the node that serves as the primary now, if one does."""
        for node in self.running:
            if self.specs[node].role == "replica":
                reply = await self.try_fetch(node, "/primary")
                if reply is not None and reply.status == 200:
                    return node
        return None

    async def primary(self, *, besides: str = "", deadline_s: float = DEADLINE_S) -> str:
        """Wait for a primary that serves (another than `besides`)."""

        async def found() -> str | None:
            self.check_alive()
            node = await self.serving()
            return None if node == besides else node

        return await wait_until(found, "a primary serves", deadline_s)

    def check_alive(self) -> None:
        """Fail at once if a process has ended by itself with an error."""
        for node in self.specs:
            process = self.nodes[node]
            code = process.exit_code
            if code not in {None, 0, -signal.SIGKILL}:
                last = (process.log().splitlines() or ["nothing"])[-1]
                raise AssertionError(f"{node} ended with exit code {code}, and said: {last}")

    async def _status_of_primary(self) -> ClusterStatus | None:
        """Return what the node that serves says of the cluster; None: none does now."""
        self.check_alive()
        node = await self.serving()
        return None if node is None else await self.status(node)

    async def wait_in_sync(self, *nodes: str, deadline_s: float = DEADLINE_S) -> ClusterStatus:
        """Wait until the in-sync set is just these replicas (default: those that run)."""
        wanted = set(nodes or (node for node in self.running if node in self.replicas))

        async def agreed() -> ClusterStatus | None:
            status = await self._status_of_primary()
            return status if status is not None and set(status.in_sync) == wanted else None

        return await wait_until(agreed, f"in sync are {sorted(wanted)}", deadline_s)

    async def wait_converged(self, *nodes: str, deadline_s: float = DEADLINE_S) -> Digest:
        """Wait until these replicas (default: those that run) are in sync with equal digests.

        Without a writer at work; returns the digest.
        """
        chosen = list(nodes or (node for node in self.running if node in self.replicas))
        await self.wait_in_sync(*chosen, deadline_s=deadline_s)
        seen: dict[str, tuple[int, str] | None] = {}

        async def equal() -> Digest | None:
            self.check_alive()
            digests = [await self.digest(node) for node in chosen]
            for node, found in zip(chosen, digests, strict=True):
                seen[node] = (found.applied_index, found.digest) if found else None
            return digests[0] if len(set(seen.values())) == 1 else None

        try:
            return await wait_until(equal, "equal digests", deadline_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; last seen: {seen}") from None


# -- writing under watch


def value_of(key: str, size_bytes: int) -> bytes:
    """Return the value that a `Writer` writes under `key`: to be had again from the key alone."""
    seed = f"{key}|".encode()
    return (seed * (size_bytes // len(seed) + 1))[:size_bytes]


class Ack(msgspec.Struct, frozen=True, gc=False):
    """An acknowledged write: when it was asked for and answered (monotonic clock, seconds)."""

    asked_s: float
    answered_s: float
    epoch: int
    copies: int


class Writer:
    """Writes in the background, through `cluster.client.aio`, and remembers every outcome.

    Each of `tasks` writers makes new keys, one after the other, each with "only if absent": an
    acknowledgement that is lost, a write that is applied twice, and an untruthful "not applied"
    all show. `verify` compares the outcomes with what the cluster holds.
    """

    def __init__(
        self,
        cluster: Cluster,
        *nodes: str,
        name: str = "w",
        tasks: int = 4,
        pause_s: float = 0.004,
        size_bytes: int = 100,
        timeout_ms: int = 20_000,
    ) -> None:
        self.cluster = cluster
        self.name = name
        self.size_bytes = size_bytes
        self.acknowledged: dict[str, Ack] = {}
        self.unknown: dict[str, UnknownOutcomeError] = {}
        self.refused: dict[str, NotAppliedError] = {}
        self._pause_s = pause_s
        self._count = tasks
        self._client = cluster.client(*nodes, timeout_ms=timeout_ms)
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    async def __aenter__(self) -> Self:
        self.begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.end()

    def begin(self) -> None:
        self._tasks = [asyncio.create_task(self._write(number)) for number in range(self._count)]

    def stop_soon(self) -> None:
        """Begin no more writes."""
        self._stopping = True

    async def end(self) -> None:
        """Let every write under way come to its outcome, and stop."""
        self._stopping = True
        tasks, self._tasks = self._tasks, []
        try:
            await asyncio.gather(*tasks)
        except asyncio.CancelledError:
            if (own := asyncio.current_task()) and own.cancelling():
                raise
        finally:
            await self._client.close()

    @property
    def retries(self) -> int:
        return self._client.retries

    async def _write(self, number: int) -> None:
        count = 0
        while not self._stopping:
            key = f"{self.name}/{number}/{count:08}"
            count += 1
            asked = time.monotonic()
            try:
                result = await self._client.put(key, value_of(key, self.size_bytes), if_absent=True)
                ack = Ack(asked, time.monotonic(), result.epoch, result.copies)
                self.acknowledged[key] = ack
            except UnknownOutcomeError as error:
                self.unknown[key] = error
            except PreconditionFailedError as error:
                raise AssertionError(f"{key} was there before it was written: {error}") from error
            except NotAppliedError as error:
                self.refused[key] = error
                await asyncio.sleep(0.05)
            await asyncio.sleep(self._pause_s)

    def check_healthy(self) -> None:
        """Raise what ended a writing task, if something did."""
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()

    async def progress(self, count: int = 20, deadline_s: float = DEADLINE_S) -> None:
        """Wait until `count` more writes, asked for from now on, are acknowledged."""
        start = time.monotonic()

        def enough() -> bool:
            self.check_healthy()
            recent = reversed(self.acknowledged.values())
            found = 0
            for ack in recent:
                if ack.answered_s < start:
                    break
                found += ack.asked_s >= start
                if found >= count:
                    return True
            return False

        await wait_until(enough, f"{count} more writes are acknowledged", deadline_s)

    def longest_gap_s(self, since_s: float = 0.0) -> float:
        """Return the longest time without an acknowledgement from `since_s` (monotonic) on."""
        times: list[float] = []
        for ack in reversed(self.acknowledged.values()):
            if ack.answered_s < since_s:
                break
            times.append(ack.answered_s)
        times.reverse()
        if since_s:
            times.insert(0, since_s)
        return max(later - earlier for earlier, later in itertools.pairwise(times))

    def unserved(self) -> Iterable[ClientError]:
        """Return the outcomes that were no success."""
        return [*self.unknown.values(), *self.refused.values()]

    async def verify(self, *nodes: str) -> None:
        """Compare every outcome with what these nodes (default: all replicas that run) hold.

        Reads each node's own copy ("stale"): wait for convergence first.
        """
        running = (node for node in self.cluster.running if node in self.cluster.replicas)
        for node in nodes or tuple(running):
            held = await self.held(node)
            lost = [key for key in self.acknowledged if key not in held]
            wrong = [key for key, value in held.items() if value != value_of(key, self.size_bytes)]
            undone = [(key, error) for key, error in self.refused.items() if key in held]
            stray = [
                key
                for key in held
                if not (key in self.acknowledged or key in self.unknown or key in self.refused)
            ]
            assert not lost, f"{node} has lost {len(lost)} acknowledged writes: {lost[:5]}"
            assert not wrong, f"{node} holds {len(wrong)} wrong values: {wrong[:5]}"
            assert not undone, f"{node} holds {len(undone)} writes called not applied: {undone[:5]}"
            assert not stray, f"{node} holds {len(stray)} keys that nobody wrote: {stray[:5]}"

    async def held(self, node: str) -> dict[str, bytes]:
        """Return this writer's keys and values as one node holds them itself."""
        async with self.cluster.client(node, discover=False) as client:
            found: dict[str, bytes] = {}
            async for item in client.list(f"{self.name}/", consistency="stale"):
                found[item.key] = item.value
            return found


# -- small things


@contextlib.contextmanager
def listening(address: str) -> Iterator[None]:
    """Hold a port, as a foreign program would."""
    host, _, port = address.rpartition(":")
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # old connections linger
        holder.bind((host, int(port)))
        holder.listen()
        yield


def problem_of(reply: Reply) -> dict[str, Any]:
    """Return a problem document's members."""
    assert reply.headers["content-type"] == "application/problem+json", reply
    document: dict[str, Any] = reply.json
    return document
