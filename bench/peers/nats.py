"""NATS: a key-value bucket of JetStream with three replicas, synced before each acknowledgement."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench import nats_text
from bench.peers.process import (
    ROOT,
    BenchError,
    Peer,
    Process,
    free_address,
    go_program,
    output_of,
    wait_until,
)

MODULE = ROOT / "bench" / "go" / "nats"
PACKAGE = "github.com/nats-io/nats-server/v2"
BUCKET = {
    "name": nats_text.STREAM,
    "subjects": [f"$KV.{nats_text.BUCKET}.>"],
    "retention": "limits",
    "max_msgs_per_subject": 1,
    "max_msgs": -1,
    "max_bytes": -1,
    "max_age": 0,
    "max_msg_size": -1,
    "storage": "file",
    "discard": "new",
    "num_replicas": 3,
    "allow_rollup_hdrs": True,
    "deny_delete": True,
    "allow_direct": True,
}
"""What NATS's clients make of a bucket with history 1."""


class Nats(Peer):
    """Servers s1, s2, s3; the primary is the leader of the bucket's stream."""

    name = "nats"
    api = "nats"
    durability = (
        "written and synced on a majority of the bucket's three replicas (`sync_interval: always`; "
        "NATS's default is every 2 minutes). Reads ask the stream's leader, which asks nobody"
    )

    def __init__(self, directory: Path) -> None:
        self._binary = binary = str(go_program("nats-server", MODULE, PACKAGE))
        super().__init__(directory)
        self.nodes = ["s1", "s2", "s3"]
        self._clients = {node: free_address() for node in self.nodes}
        routes = {node: free_address() for node in self.nodes}
        for node in self.nodes:
            config = directory / f"{node}.conf"
            others = ", ".join(f"nats://{routes[other]}" for other in self.nodes if other != node)
            config.write_text(
                f'server_name: {node}\nlisten: "{self._clients[node]}"\n'
                f'jetstream {{ store_dir: "{directory / node}", sync_interval: always }}\n'
                f'cluster {{ name: bench, listen: "{routes[node]}", routes: [{others}] }}\n'
            )
            command = [binary, "-c", str(config)]
            self.processes[node] = Process(node, command, directory / f"{node}.log")

    def start(self) -> None:
        for process in self.processes.values():
            process.start()

        def made() -> bool:
            self.check()
            answer = self._ask(f"$JS.API.STREAM.CREATE.{nats_text.STREAM}", BUCKET)
            return isinstance(answer, dict) and "error" not in answer

        wait_until(made, "NATS has made the bucket")
        self.wait_all()

    def wait_all(self) -> None:
        """Wait until the stream has a leader and two followers in step."""

        def in_step() -> bool:
            self.check()
            followers: list[dict[str, Any]] = self._cluster().get("replicas", [])
            current = [follower for follower in followers if follower["current"]]
            return len(current) == len(self.nodes) - 1

        wait_until(in_step, "both followers of the NATS stream are in step")

    def _cluster(self) -> dict[str, Any]:
        info = self._ask(f"$JS.API.STREAM.INFO.{nats_text.STREAM}")
        return (info or {}).get("cluster") or {}

    def primary(self) -> str:
        node: str = wait_until(lambda: self._cluster().get("leader"), "a leader of the NATS stream")
        return node

    def missing(self, names: Iterable[str], prefix: str) -> int:
        del prefix
        subject = f"$KV.{nats_text.BUCKET}."
        document = {"subjects_filter": f"{subject}>"}
        info = self._ask(f"$JS.API.STREAM.INFO.{nats_text.STREAM}", document)
        if info is None:
            raise BenchError("NATS does not list its keys")
        held = info["state"].get("subjects", {})
        return sum(f"{subject}{name}" not in held for name in names)

    def restart(self, node: str) -> None:
        self.processes[node].start()
        self.wait_all()

    def address(self, node: str) -> str:
        return self._clients[node]

    def version(self) -> str:
        return output_of([self._binary, "--version"]).strip().removeprefix("nats-server: v")

    def _ask(self, subject: str, document: object = None, timeout_s: float = 5.0) -> Any:
        """Return the JSON answer of the first server that gives one, None without any."""
        body = b"" if document is None else json.dumps(document).encode()
        for node in self.nodes:
            if self.processes[node].running:
                try:
                    return json.loads(_ask(self._clients[node], subject, body, timeout_s))
                except (OSError, ValueError):
                    continue
        return None


def _ask(address: str, subject: str, body: bytes, timeout_s: float) -> bytes:
    """Make one request on a connection of its own. Raises OSError, ValueError."""
    host, _, port = address.rpartition(":")
    inbox = nats_text.new_inbox()
    deadline = time.monotonic() + timeout_s
    with socket.create_connection((host, int(port)), timeout=timeout_s) as connection:
        connection.sendall(nats_text.greeting(inbox) + nats_text.publish(subject, body, inbox))
        data = b""
        while True:
            content, data, pinged = nats_text.receive(data)
            if pinged:
                connection.sendall(b"PONG\r\n")
            if content is not None:
                return content
            connection.settimeout(max(0.01, deadline - time.monotonic()))
            more = connection.recv(65536)
            if not more:
                raise OSError("the server has closed the connection")
            data += more
