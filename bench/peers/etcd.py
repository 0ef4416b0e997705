"""etcd: three members on loopback, default settings, its HTTP gateway and gRPC on one port."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.peers.process import (
    ROOT,
    BenchError,
    MissingPeerError,
    Peer,
    Process,
    fetch_json,
    free_address,
    go_program,
    output_of,
    wait_until,
)

HOW_TO_GET = "Debian's etcd is not installed: apt-get install etcd-server"


class Etcd(Peer):
    """A cluster of members e1, e2, e3, of the etcd that is built from its Go module."""

    name = "etcd"
    api = "etcd"
    durability = "WAL fsync on a majority before the answer (etcd's default)"

    def __init__(self, directory: Path, members: int = 3) -> None:
        self._binary = binary = self.program()
        super().__init__(directory)
        self.nodes = [f"e{number + 1}" for number in range(members)]
        self._clients = {node: free_address() for node in self.nodes}
        peers = {node: free_address() for node in self.nodes}
        initial = ",".join(f"{node}=http://{peers[node]}" for node in self.nodes)
        for node in self.nodes:
            client, peer = f"http://{self._clients[node]}", f"http://{peers[node]}"
            command = [binary, "--name", node, "--data-dir", str(directory / node)]
            command += ["--listen-client-urls", client, "--advertise-client-urls", client]
            command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
            command += ["--initial-cluster", initial, "--initial-cluster-state", "new"]
            command += ["--logger", "zap", "--log-level", "error"]
            self.processes[node] = Process(node, command, directory / f"{node}.log")

    @staticmethod
    def program() -> str:
        """Return the path of etcd. Raises MissingPeerError."""
        return str(go_program("etcd", ROOT / "tests" / "etcd"))

    def start(self) -> None:
        for process in self.processes.values():
            process.start()
        self.wait_all()

    def wait_all(self) -> None:
        """Wait until every member that runs names the same leader."""

        def agreed() -> bool:
            self.check()
            statuses = [self._status(node) for node in self.nodes]
            leaders = {status["leader"] for status in statuses if status and status.get("leader")}
            return all(statuses) and len(leaders) == 1

        wait_until(agreed, "all etcd members name one leader")

    def _status(self, node: str) -> Any:
        return fetch_json(self._clients[node], "POST", "/v3/maintenance/status", {}, timeout_s=1.0)

    def primary(self) -> str:
        def found() -> str | None:
            for node in self.nodes:
                if self.processes[node].running:
                    status = self._status(node)
                    if status and status.get("leader") == status["header"]["member_id"]:
                        return node
            return None

        node: str = wait_until(found, "an etcd leader")
        return node

    def missing(self, names: Iterable[str], prefix: str) -> int:
        first = prefix.encode()
        end = first[:-1] + bytes([first[-1] + 1])
        document = {
            "key": base64.b64encode(first).decode(),
            "range_end": base64.b64encode(end).decode(),
            "keys_only": True,
        }
        found = fetch_json(
            self._clients[self.primary()], "POST", "/v3/kv/range", document, timeout_s=30.0
        )
        if found is None:
            raise BenchError("etcd does not list its keys")
        held = {base64.b64decode(item["key"]).decode() for item in found.get("kvs", [])}
        return sum(name not in held for name in names)

    def restart(self, node: str) -> None:
        self.processes[node].start()
        self.wait_all()

    def address(self, node: str) -> str:
        return self._clients[node]

    def version(self) -> str:
        return output_of([self._binary, "--version"]).splitlines()[0].removeprefix("etcd Version: ")


class DebianEtcd(Etcd):
    """The etcd that the system has installed."""

    @staticmethod
    def program() -> str:
        binary = shutil.which("etcd")
        if binary is None:
            raise MissingPeerError(HOW_TO_GET)
        return binary
