"""onecopy itself: real processes of `onecopy serve`, with a configuration file made here."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bench.peers.process import (
    BenchError,
    Peer,
    Process,
    fetch,
    fetch_json,
    free_address,
    output_of,
    wait_until,
)
from bench.spec import Caller
from cluster.services.access_guard import draw_token, hash_line
from cluster.up.process import NODE_ENVIRONMENT

SECRET = "a secret for measurements, 32 bytes"

_TLS_FILES = {"ca": "ca.crt", "certificate": "{node}.crt", "key": "{node}.key", "crl": "ca.crl"}


class Onecopy(Peer):
    """A cluster: `replicas` named n1, n2, …, `witnesses` w1, …; `timing` and `limits` sections.

    `tls`: certificates are made for it. `access`: it is asked with the first token.
    `etcd`: it serves etcd's clients as well.
    """

    name = "onecopy"
    api = "onecopy"
    durability = "fsync on every in-sync replica before the answer (ack=all)"

    def __init__(
        self,
        directory: Path,
        *,
        replicas: int = 3,
        witnesses: int = 0,
        timing: Mapping[str, int] | None = None,
        limits: Mapping[str, int] | None = None,
        tls: bool = False,
        access: bool = False,
        etcd: bool = False,
        archive: bool = False,
    ) -> None:
        super().__init__(directory)
        self.archive = directory / "archive" if archive else None
        if self.archive is not None:
            self.archive.mkdir(parents=True)
        self.timing = dict(timing or {})
        self.limits = dict(limits or {})
        self.replicas = [f"n{number + 1}" for number in range(replicas)]
        self.nodes = [*self.replicas, *(f"w{number + 1}" for number in range(witnesses))]
        self._addresses = {node: free_address() for node in self.nodes}
        self._inner = {
            node: {"peer": free_address(), "raft": free_address()} for node in self.nodes
        }
        self.routes: dict[tuple[str, str], dict[str, str]] = {}
        """How a node reaches another, by channel, where that is not the other's own address."""
        self.etcd_addresses = {node: free_address() for node in self.nodes} if etcd else {}
        self._first_token = draw_token() if access else None
        self.caller = Caller(
            str(directory / "certs" / "ca.crt") if tls else "",
            self._first_token.text if self._first_token else "",
        )
        self.config = directory / "cluster.toml"
        self.write_config()
        if tls:
            certs = [sys.executable, "-m", "cluster.cli.main", "certs"]
            output_of([*certs, "ca", "--dir", str(directory / "certs")])
            where = ["--config", str(self.config), "--dir", str(directory / "certs")]
            output_of([*certs, "node", *where])
        for node in self.nodes:
            command = [sys.executable, "-m", "cluster.cli.main", "serve"]
            command += ["--config", str(self.config), "--node", node]
            log, environment = directory / f"{node}.log", {**NODE_ENVIRONMENT, **os.environ}
            self.processes[node] = Process(node, command, log, environment)

    @classmethod
    def shape(cls, **options: Any) -> Callable[[Path], Onecopy]:
        """Return what makes a cluster in a directory, with these arguments of the class."""
        return lambda path: cls(path, **options)

    def write_config(self) -> None:
        """Write the configuration; again, when `routes` has changed."""
        lines = ["[cluster]", 'name = "bench"', f"secret = {json.dumps(SECRET)}"]
        for node in self.nodes:
            role = "replica" if node in self.replicas else "witness"
            lines += [f"[nodes.{node}]", f'role = "{role}"']
            lines += [f'client = "{self._addresses[node]}"', f'data = "{self.data(node)}"']
            lines += [f'{name} = "{address}"' for name, address in self._inner[node].items()]
            if node in self.etcd_addresses:
                lines.append(f'etcd = "{self.etcd_addresses[node]}"')
        for (source, target), addresses in self.routes.items():
            lines.append(f"[routes.{source}.{target}]")
            lines += [f'{channel} = "{address}"' for channel, address in addresses.items()]
        for section, values in (("timing", self.timing), ("limits", self.limits)):
            lines.append(f"[{section}]")
            lines += [f"{name} = {number}" for name, number in values.items()]
        if self.archive is not None:
            lines += ["[archive]", f'url = "file://{self.archive}"']
        if self.caller.cacert:
            lines += ["[tls]", *(f'{name} = "certs/{file}"' for name, file in _TLS_FILES.items())]
        if self._first_token is not None:
            lines += ["[access]", f'admin_token_hash = "{hash_line(self._first_token)}"']
        self.config.write_text("\n".join(lines) + "\n")
        self.config.chmod(0o600)

    def inner_address(self, node: str, channel: str) -> str:
        """Return where a node listens for other nodes; `channel` is peer or raft."""
        return self._inner[node][channel]

    def data(self, node: str) -> Path:
        """Return a node's data directory."""
        return self.directory / "data" / node

    def start(self) -> None:
        self.start_nodes(self.nodes)

    def start_nodes(self, nodes: Iterable[str], *, in_sync: bool = True) -> None:
        """Start some nodes; wait until a primary serves, and until the running are in sync."""
        for node in nodes:
            self.processes[node].start()
        self.primary()
        if in_sync:
            self.wait_in_sync()

    def primary(self, besides: str = "", deadline_s: float = 30.0) -> str:
        def found() -> str | None:
            self.check_started()
            node = self.serving()
            return None if node == besides else node

        node: str = wait_until(found, "a primary serves", deadline_s)
        return node

    def check_started(self) -> None:
        """Raise BenchError if a node has refused to run, or has failed."""
        for process in self.processes.values():
            code = None if process._popen is None else process._popen.poll()
            if code not in {None, 0, -9}:
                process.check()

    def serving(self) -> str | None:
        """Return the node that serves as primary, if one says so."""
        for node in self.replicas:
            if self.processes[node].running:
                reply = fetch(
                    self._addresses[node], "GET", "/primary", timeout_s=0.5, caller=self.caller
                )
                if reply is not None and reply[0] == 200:
                    return node
        return None

    def status(self, node: str) -> Any:
        """Return what a node says of the cluster, None if it says nothing."""
        return fetch_json(
            self._addresses[node], "GET", "/v1/cluster", timeout_s=1.0, caller=self.caller
        )

    def running(self) -> list[str]:
        """The replicas whose processes are there."""
        return [node for node in self.replicas if self.processes[node].running]

    def wait_in_sync(self, nodes: Iterable[str] | None = None, deadline_s: float = 60.0) -> None:
        """Wait until the in-sync set is just these (default: those that run)."""
        wanted = set(self.running() if nodes is None else nodes)

        def agreed() -> bool:
            self.check_started()
            node = self.serving()
            status = None if node is None else self.status(node)
            return status is not None and set(status["in_sync"]) == wanted

        wait_until(agreed, f"in sync are {sorted(wanted)}", deadline_s)

    def backups(self) -> list[str]:
        """Return the replicas that run but the primary."""
        primary = self.primary()
        return [node for node in self.running() if node != primary]

    def handover(self, to: str) -> None:
        """Make another node the primary. Raises BenchError if it is refused."""
        body = json.dumps({"to": to}).encode()
        headers = {"Content-Type": "application/json"}
        address = self._addresses[self.primary()]
        reply = fetch(address, "POST", "/v1/cluster/handover", body, headers, 30.0, self.caller)
        if reply is None or reply[0] != 200:
            raise BenchError(f"handover to {to}: {reply}")

    def metric(self, node: str, name: str) -> float:
        """Return one of a node's numbers, by its name without the prefix; 0 if it has none."""
        reply = fetch(self._addresses[node], "GET", "/metrics", caller=self.caller)
        for line in (reply[1].decode() if reply else "").splitlines():
            if line.startswith(f"onecopy_{name} "):
                return float(line.split(" ")[1])
        return 0.0

    def restart(self, node: str) -> None:
        self.start_nodes([node])

    def digests(self) -> dict[str, tuple[int, str]]:
        """Return (applied index, digest) of each replica that runs and answers."""
        found = {}
        for node in self.running():
            document = fetch_json(
                self._addresses[node], "GET", "/v1/digest", timeout_s=30.0, caller=self.caller
            )
            if document:
                found[node] = (document["applied_index"], document["digest"])
        return found

    def missing(self, names: Iterable[str], prefix: str, node: str = "") -> int:
        """Return how many of these keys a node (default: the primary) does not hold."""
        address = self._addresses[node or self.primary()]
        held: set[str] = set()
        cursor: str | None = ""
        while cursor is not None:
            query = f"prefix={prefix}&limit=1000&keys_only=true"
            query += f"&cursor={quote(cursor)}" if cursor else ""
            page = fetch_json(address, "GET", f"/v1/kv?{query}", timeout_s=30.0, caller=self.caller)
            if page is None:
                raise BenchError(f"{address} does not list its keys")
            held.update(item["key"] for item in page["items"])
            cursor = page["cursor"]
        return sum(name not in held for name in names)

    def address(self, node: str) -> str:
        return self._addresses[node]

    def version(self) -> str:
        return version("onecopy")
