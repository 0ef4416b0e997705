"""Server processes: started in sessions of their own, ended by process id, waited for by asking."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench.accounting import Servers
from bench.render import bearer
from bench.spec import Caller
from tests.support.go_tools import ToolError, built

DEADLINE_S = 30.0
POLL_S = 0.01
PORT_FIRST, PORT_END = 5000, 9900
LOG_TAIL_BYTES = 2000
ROOT = Path(__file__).resolve().parents[2]
NOBODY = Caller()
_given_out: set[int] = set()


class BenchError(Exception):
    """The bench cannot go on; the message says why."""


class MissingPeerError(BenchError):
    """A peer is not installed; the message says how to get it."""


def free_address() -> str:
    """Return 127.0.0.1 and a port that nobody listens on, below those that the kernel gives out."""
    draw = random.Random()
    for _ in range(10_000):
        port = draw.randrange(PORT_FIRST, PORT_END)
        if port in _given_out:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given_out.add(port)
        return f"127.0.0.1:{port}"
    raise BenchError("no free port")


def wait_until(
    condition: Callable[[], Any],
    what: str,
    deadline_s: float = DEADLINE_S,
    poll_s: float = POLL_S,
) -> Any:
    """Poll until the condition gives something true; return that. Raises BenchError."""
    end = time.monotonic() + deadline_s
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise BenchError(f"not within {deadline_s:g} s: {what}")
        time.sleep(poll_s)


class Process:
    """One server process; what it prints goes to `log_path`."""

    def __init__(
        self, name: str, command: list[str], log_path: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.command = command
        self.log_path = log_path
        self._env = {**os.environ, **env} if env else None
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id. Raises BenchError if it was never started."""
        if self._popen is None:
            raise BenchError(f"{self.name} was never started")
        return self._popen.pid

    @property
    def running(self) -> bool:
        """Whether it is there; a stopped one is."""
        return self._popen is not None and self._popen.poll() is None

    def start(self) -> None:
        """Start it (again)."""
        self.end()
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._popen = subprocess.Popen(
                self.command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env,
                start_new_session=True,
            )

    def signal(self, number: int) -> None:
        """Send a signal, if it is there."""
        if self.running and self._popen is not None:
            self._popen.send_signal(number)

    def end(self) -> None:
        """Kill it and wait until it is gone."""
        if self._popen is not None:
            self.signal(signal.SIGKILL)
            self._popen.wait()

    def stop(self, deadline_s: float = DEADLINE_S) -> None:
        """Ask it to end, and wait."""
        if self._popen is not None:
            self.signal(signal.SIGTERM)
            try:
                self._popen.wait(deadline_s)
            except subprocess.TimeoutExpired:
                self.end()

    def check(self) -> None:
        """Raise BenchError if it has ended by itself."""
        if not self.running:
            tail = self.log_path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
            raise BenchError(f"{self.name} has ended; it said:\n{tail}")


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What the report says of a server: version, command of each process, what an ack means."""

    name: str
    version: str
    commands: list[str]
    durability: str


class Peer:
    """A server or a cluster under measurement. Subclasses fill `processes` and the methods."""

    name = ""
    api: Any = ""
    durability = ""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.directory.mkdir(parents=True, exist_ok=True)
        self.processes: dict[str, Process] = {}
        self.caller = NOBODY
        """As whom it is asked."""

    @property
    def servers(self) -> Servers:
        """All its processes that run, and where they keep their data."""
        running = [process.pid for process in self.processes.values() if process.running]
        return Servers(running, self.directory)

    def start(self) -> None:
        """Start everything; return when it serves with every replica in place."""
        raise NotImplementedError

    def primary(self) -> str:
        """Return the node that takes the writes. Raises BenchError if there is none in time."""
        raise NotImplementedError

    def address(self, node: str) -> str:
        """Return "host:port" for clients of a node."""
        raise NotImplementedError

    def missing(self, names: Iterable[str], prefix: str) -> int:
        """Return how many of these keys, that all begin with `prefix`, are not there."""
        raise NotImplementedError

    def restart(self, node: str) -> None:
        """Start a killed node again, and wait until everything is as at the start."""
        raise NotImplementedError

    def version(self) -> str:
        """Return the version of what runs."""
        raise NotImplementedError

    def describe(self) -> Description:
        """Return what the report says of it."""
        home = str(self.directory)
        commands = [
            _shown(process.command).replace(home, "DIR") for process in self.processes.values()
        ]
        return Description(
            name=self.name, version=self.version(), commands=commands, durability=self.durability
        )

    def close(self) -> None:
        """End every process."""
        for process in self.processes.values():
            process.signal(signal.SIGKILL)
        for process in self.processes.values():
            process.end()

    def check(self) -> None:
        """Raise BenchError if a process has ended by itself."""
        for process in self.processes.values():
            process.check()


def go_program(name: str, module: Path, package: str = ".") -> Path:
    """Return a program built from a Go module into a cache. Raises MissingPeerError."""
    try:
        return built(name, package, module=module)
    except ToolError as error:
        raise MissingPeerError(str(error)) from None


def fetch(
    address: str,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 5.0,
    caller: Caller = NOBODY,
) -> tuple[int, bytes] | None:
    """Make one request on a connection of its own; None if no answer came."""
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=timeout_s)
    if caller.cacert:
        tls = ssl.create_default_context(cafile=caller.cacert)
        connection = http.client.HTTPSConnection(host, int(port), timeout=timeout_s, context=tls)
    try:
        connection.request(method, path, body, {**(headers or {}), **bearer(caller)})
        reply = connection.getresponse()
        return reply.status, reply.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def fetch_json(
    address: str,
    method: str,
    path: str,
    document: object = None,
    timeout_s: float = 5.0,
    caller: Caller = NOBODY,
) -> Any:
    """Make one request with a JSON body; return the JSON answer, None if it was no success."""
    body = None if document is None else json.dumps(document).encode()
    headers = {"Content-Type": "application/json"}
    found = fetch(address, method, path, body, headers, timeout_s, caller)
    return json.loads(found[1]) if found and found[0] == 200 else None


def output_of(command: Iterable[str], timeout_s: float = 30.0) -> str:
    """Return what a command prints."""
    return subprocess.run(
        list(command), capture_output=True, text=True, check=True, timeout=timeout_s
    ).stdout


def _shown(command: Sequence[str]) -> str:
    """Return a command as a reader would type it: programs by their names."""
    program = "python" if command[0] == sys.executable else Path(command[0]).name
    return " ".join((program, *command[1:]))
