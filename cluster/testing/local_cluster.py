"""A cluster of real nodes on this machine, for integration tests: started, killed, cut, asked.

    with LocalCluster(tmp_path, services={"shop": "myshop:Shop"}) as cluster:
        shop = cluster.client().service(Shop)
        cluster.kill(cluster.primary())
        shop.reserve(item="apple")

Each node is a process of its own, which ends with the process that started it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from cluster.certificates.authority import Authority
from cluster.certificates.hosts import LOOPBACK_HOSTS
from cluster.client.errors import ClientError
from cluster.client.sync import Client
from cluster.services.access_guard import draw_token, hash_line
from datapath.operations import ClusterStatus

DEADLINE_S = 30.0
"""How long it waits for a state of the cluster before it raises TimeoutError."""
_POLL_INTERVAL_S = 0.05
_LOG_TAIL_LINES = 20
_CHANNELS = ("peer", "raft")
_TLS = """[tls]
ca = "certs/ca.crt"
certificate = "certs/{node}.crt"
key = "certs/{node}.key"
client_ca = "certs/ca.crt"
crl = "certs/ca.crl"
"""

_T = TypeVar("_T")


class LocalCluster:
    """Replicas n1, n2, …, witnesses w1, w2, …, with their files in `directory`.

    `services` maps names to "module:Class"; `path` (default: the working directory) is where the
    modules are. `extra` is put into the configuration file as it is. `toxiproxy` is the URL of a
    toxiproxy server's API, through which the nodes then reach each other, so that `cut` works.
    With `tls` nodes and clients use certificates of an authority in `directory`/certs: `cacert` is
    its file. With `access` there is access control: `token` is the administrator's. Both are ""
    without; the clients that `client` makes have them.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        replicas: int = 3,
        witnesses: int = 0,
        services: Mapping[str, str] | None = None,
        path: Path | str | None = None,
        extra: str = "",
        toxiproxy: str = "",
        tls: bool = False,
        access: bool = False,
    ) -> None:
        self.directory = Path(directory).resolve()
        self.cacert = str(self.directory / "certs" / "ca.crt") if tls else ""
        self.token = ""
        if access:
            drawn = draw_token()
            self.token = drawn.text
            extra += f'\n[access]\nadmin_token_hash = "{hash_line(drawn)}"'
        self.nodes = (
            *(f"n{number}" for number in range(1, replicas + 1)),
            *(f"w{number}" for number in range(1, witnesses + 1)),
        )
        self._toxiproxy = toxiproxy
        self._proxies: dict[tuple[str, str], list[str]] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._clients: list[Client] = []
        self._addresses = {
            node: {channel: _free_address() for channel in ("client", *_CHANNELS)}
            for node in self.nodes
        }
        self.config = self.directory / "cluster.toml"
        self._text = self._configuration(services or {}, Path(path or Path.cwd()).resolve(), extra)

    # -- from start to end

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.config.touch(mode=0o600)
        self.config.write_text(self._text)
        if self.cacert:
            authority = Authority(Path(self.cacert).parent)
            authority.create()
            for node in self.nodes:
                authority.issue_node(node, LOOPBACK_HOSTS)
        try:
            self._make_proxies()
            for node in self.nodes:
                self.start(node)
            self.wait_in_sync()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process, and close the clients. May be called twice."""
        for client in self._clients:
            client.close()
        for process in self._processes.values():
            process.kill()
            process.wait()
        for names in self._proxies.values():
            for name in names:
                with contextlib.suppress(OSError):
                    self._ask_toxiproxy("DELETE", f"/proxies/{name}")
        self._proxies.clear()

    # -- nodes

    def start(self, node: str) -> None:
        """Start a node that does not run; waits for nothing."""
        command = [sys.executable, "-m", "onecopy", "serve", "--config", str(self.config)]
        with (self.directory / f"{node}.log").open("ab") as log:
            self._processes[node] = subprocess.Popen(  # noqa: S603 -- our own program
                [*command, "--node", node, "--supervised-by", str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
            )

    def kill(self, node: str) -> None:
        """End a node as a power cut would: kill -9."""
        self._processes[node].kill()
        self._processes[node].wait()

    def stop(self, node: str) -> None:
        """Ask a node to stop, as a rolling restart does, and wait for its end."""
        self._processes[node].terminate()
        self._processes[node].wait(DEADLINE_S)

    def pause(self, node: str) -> None:
        """Let a node stand still (SIGSTOP) until `resume`."""
        self._processes[node].send_signal(signal.SIGSTOP)

    def resume(self, node: str) -> None:
        """Let a paused node go on."""
        self._processes[node].send_signal(signal.SIGCONT)

    def log(self, node: str) -> str:
        """Return what a node has logged."""
        return (self.directory / f"{node}.log").read_text(errors="replace")

    # -- asking

    def url(self, node: str) -> str:
        """Return where a node's HTTP API is."""
        scheme = "https" if self.cacert else "http"
        return f"{scheme}://{self._addresses[node]['client']}"

    def client(self, *nodes: str, **options: Any) -> Client:
        """Return a client of these nodes (default: all), closed with the cluster."""
        client = self._make_client(*nodes, **options)
        self._clients.append(client)
        return client

    def primary(self) -> str:
        """Wait for a primary that serves, and return its id."""
        return self._wait(lambda: self._status().primary, "there is a primary")

    def wait_in_sync(self) -> ClusterStatus:
        """Wait until all replicas that run are in sync, and return the status."""
        running = {node for node, process in self._processes.items() if process.poll() is None} & {
            node for node in self.nodes if node.startswith("n")
        }

        def in_sync() -> ClusterStatus | None:
            status = self._status()
            return status if status.primary and running <= set(status.in_sync) else None

        return self._wait(in_sync, f"{', '.join(sorted(running))} are in sync")

    def wait_equal(self) -> str:
        """Wait until all replicas hold the same state, and return its digest."""

        def digests() -> str | None:
            status = self.wait_in_sync()
            with self._make_client() as client:
                found = {client.digest(self.url(node)).digest for node in status.in_sync}
            return found.pop() if len(found) == 1 else None

        return self._wait(digests, "all replicas hold the same")

    def _status(self) -> ClusterStatus:
        with self._make_client() as client:
            return client.status(timeout_ms=2000)

    def _make_client(self, *nodes: str, **options: Any) -> Client:
        options = {"cacert": self.cacert, "token": self.token, **options}
        return Client([self.url(node) for node in nodes or self.nodes], **options)

    def _wait(self, look: Callable[[], _T | None], what: str) -> _T:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                if found := look():
                    return found
                problem = ""
            except ClientError as error:
                problem = f" ({error})"
            for node, process in self._processes.items():
                if process.poll() is not None and process.returncode > 0:
                    raise RuntimeError(
                        f"{node} has ended with exit code {process.returncode}:\n{self._tail(node)}"
                    )
            if time.monotonic() > deadline:
                logs = "\n".join(f"{node}:\n{self._tail(node)}" for node in self.nodes)
                raise TimeoutError(f"not within {DEADLINE_S:g} s: {what}{problem}\n{logs}")
            time.sleep(_POLL_INTERVAL_S)

    def _tail(self, node: str) -> str:
        return "\n".join(self.log(node).splitlines()[-_LOG_TAIL_LINES:])

    # -- links

    def cut(self, one: str, other: str) -> None:
        """Cut the links between two nodes, both ways. Needs `toxiproxy`."""
        self._switch(one, other, enabled=False)

    def heal(self, one: str, other: str) -> None:
        """Mend the links between two nodes."""
        self._switch(one, other, enabled=True)

    def _switch(self, one: str, other: str, *, enabled: bool) -> None:
        if not self._toxiproxy:
            raise RuntimeError("links can be cut only with toxiproxy=URL of a toxiproxy server")
        for name in (*self._proxies[one, other], *self._proxies[other, one]):
            self._ask_toxiproxy("POST", f"/proxies/{name}", {"enabled": enabled})

    def _make_proxies(self) -> None:
        for (source, target), route in self._routes.items():
            names = []
            for channel, listen in route.items():
                name = f"onecopy-{secrets.token_hex(4)}-{source}-{target}-{channel}"
                upstream = self._addresses[target][channel]
                proxy = {"name": name, "listen": listen, "upstream": upstream, "enabled": True}
                self._ask_toxiproxy("POST", "/proxies", proxy)
                names.append(name)
            self._proxies[source, target] = names

    def _ask_toxiproxy(self, method: str, path: str, body: object = None) -> None:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "onecopy"}
        request = urllib.request.Request(  # noqa: S310 -- the URL is the caller's
            self._toxiproxy + path, data, headers, method=method
        )
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request, timeout=DEADLINE_S):
            pass

    # -- the configuration file

    def _configuration(self, services: Mapping[str, str], path: Path, extra: str) -> str:
        lines = ["[cluster]", 'name = "test"', f'secret = "{secrets.token_hex(32)}"']
        for node, addresses in self._addresses.items():
            role = "replica" if node.startswith("n") else "witness"
            lines += [f"[nodes.{node}]", f'role = "{role}"', f'data = "data/{node}"']
            lines += [f'{channel} = "{address}"' for channel, address in addresses.items()]
        pairs = [(a, b) for a in self.nodes for b in self.nodes if a != b and self._toxiproxy]
        self._routes = {pair: {each: _free_address() for each in _CHANNELS} for pair in pairs}
        for (source, target), route in self._routes.items():
            lines.append(f"[routes.{source}.{target}]")
            lines += [f'{channel} = "{address}"' for channel, address in route.items()]
        for name, spec in services.items():
            lines += [f"[services.{name}]", f"class = {json.dumps(spec)}"]
            lines.append(f"path = {json.dumps(str(path))}")
        return "\n".join([*lines, _TLS if self.cacert else "", extra]) + "\n"


def cluster_fixture(**options: Any) -> Any:
    """Return a pytest fixture that starts a `LocalCluster` for each test.

    `options` are those of `LocalCluster`; `scope` is the fixture's.
    """
    import pytest  # noqa: PLC0415 -- there where tests run

    scope = options.pop("scope", "function")

    @pytest.fixture(scope=scope)
    def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
        with LocalCluster(tmp_path_factory.mktemp("onecopy"), **options) as started:
            yield started

    return cluster


_handed_out: set[int] = set()


def _free_address() -> str:
    """Return an address that nothing listens on, another each time."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in _handed_out:
            _handed_out.add(port)
            return f"127.0.0.1:{port}"
