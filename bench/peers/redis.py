"""Redis: a master and two replicas, every command fsynced; with Sentinel for the failover."""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Iterable
from pathlib import Path

from bench.peers.process import (
    MissingPeerError,
    Peer,
    Process,
    free_address,
    output_of,
    wait_until,
)
from bench.render import resp

HOW_TO_GET = "Redis is not installed: apt-get install redis-server"
SENTINEL_HOW_TO_GET = "Redis Sentinel is not installed: apt-get install redis-sentinel"
DOWN_AFTER_MS = 1000


class Redis(Peer):
    """Nodes r1 (the first master), r2, r3; `sentinel`: three sentinels s1, s2, s3 beside them."""

    name = "redis"
    api = "redis"
    durability = (
        "appendfsync always on all three; the client sends SET and WAIT 2 together. Redis does not "
        "promise that WAIT covers the replicas' fsync, nor that an acknowledged write survives a "
        "failover"
    )

    def __init__(self, directory: Path, *, sentinel: bool = False) -> None:
        binary = shutil.which("redis-server")
        if binary is None:
            raise MissingPeerError(HOW_TO_GET)
        super().__init__(directory)
        self._binary = binary
        self.nodes = ["r1", "r2", "r3"]
        self._addresses = {node: free_address() for node in self.nodes}
        host, _, master_port = self._addresses["r1"].rpartition(":")
        for node in self.nodes:
            data = directory / node
            data.mkdir()
            command = [binary, "--bind", host, "--port", self._addresses[node].rpartition(":")[2]]
            command += ["--dir", str(data), "--appendonly", "yes", "--appendfsync", "always"]
            command += ["--save", "", "--repl-diskless-sync-delay", "0", "--daemonize", "no"]
            if node != "r1":
                command += ["--replicaof", f"{host} {master_port}"]
            self.processes[node] = Process(node, command, directory / f"{node}.log")
        if sentinel:
            self._add_sentinels(host, master_port)

    def _add_sentinels(self, host: str, master_port: str) -> None:
        binary = shutil.which("redis-sentinel")
        if binary is None:
            raise MissingPeerError(SENTINEL_HOW_TO_GET)
        for number in range(3):
            name = f"s{number + 1}"
            config = self.directory / f"{name}.conf"
            config.write_text(
                f"bind 127.0.0.1\nport {free_address().rpartition(':')[2]}\n"
                f"sentinel monitor bench {host} {master_port} 2\n"
                f"sentinel down-after-milliseconds bench {DOWN_AFTER_MS}\n"
                "sentinel failover-timeout bench 5000\n"
            )
            log = self.directory / f"{name}.log"
            self.processes[name] = Process(name, [binary, str(config)], log)

    def start(self) -> None:
        for process in self.processes.values():
            process.start()
        self.wait_all()

    def wait_all(self) -> None:
        """Wait until the master has two replicas in step."""

        def in_step() -> bool:
            self.check()
            text = self.ask(self.primary(), b"INFO", b"replication")
            return text.count(b"state=online") == len(self.nodes) - 1

        wait_until(in_step, "both Redis replicas are online")

    def primary(self) -> str:
        def found() -> str | None:
            for node in self.nodes:
                if self.processes[node].running and b"role:master" in self.ask(
                    node, b"INFO", b"replication"
                ):
                    return node
            return None

        node: str = wait_until(found, "a Redis master")
        return node

    def wait_for_sentinels(self) -> None:
        """Wait until each sentinel knows the other two and both replicas."""

        def known() -> bool:
            for name, process in self.processes.items():
                if name.startswith("s"):
                    port = re.findall(r"(?m)^port (\d+)", Path(process.command[1]).read_text())[0]
                    text = _ask(f"127.0.0.1:{port}", b"INFO", b"sentinel")
                    if b"slaves=2,sentinels=3" not in text or b"status=ok" not in text:
                        return False
            return True

        wait_until(known, "the sentinels know each other", 60.0)

    def missing(self, names: Iterable[str], prefix: str) -> int:
        del prefix
        node = self.primary()
        return sum(not self.ask(node, b"EXISTS", name.encode()).startswith(b":1") for name in names)

    def restart(self, node: str) -> None:
        """Start a killed node again: Sentinel makes it a replica of the new master."""
        self.processes[node].start()

        def follows() -> bool:
            self.check()
            masters = [
                other
                for other in self.nodes
                if b"role:master" in self.ask(other, b"INFO", b"replication")
            ]
            if len(masters) != 1:
                return False
            text = self.ask(masters[0], b"INFO", b"replication")
            return text.count(b"state=online") == len(self.nodes) - 1

        wait_until(follows, "the killed Redis node follows the new master", 120.0)
        self.wait_for_sentinels()

    def ask(self, node: str, *parts: bytes) -> bytes:
        """Return the raw answer of one node to one command, empty if there is none."""
        return _ask(self._addresses[node], *parts)

    def ask_address(self, address: str, *parts: bytes) -> bytes:
        """Return the raw answer of whoever listens at an address."""
        return _ask(address, *parts)

    def address(self, node: str) -> str:
        return self._addresses[node]

    def version(self) -> str:
        words = output_of([self._binary, "--version"]).split()
        return next(word.removeprefix("v=") for word in words if word.startswith("v="))


def _ask(address: str, *parts: bytes) -> bytes:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=1.0) as connection:
            connection.sendall(resp(*parts))
            data = connection.recv(65536)
            if data[:1] == b"$" and (line := data.partition(b"\r\n")[0]) != b"$-1":
                while len(data) < len(line) + 4 + int(line[1:]):
                    more = connection.recv(65536)
                    if not more:
                        break
                    data += more
            return data
    except OSError:
        return b""
