"""A real etcd of one member, for tests that ask it and onecopy the same."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import subprocess
import time
from pathlib import Path
from typing import IO, Any, Self

from tests.support.go_tools import etcd
from tests.support.ports import free_address

START_DEADLINE_S = 30.0


class EtcdServer:
    """`address` is where it serves its clients."""

    def __init__(self, directory: Path) -> None:
        self.address = free_address()
        peer = f"http://{free_address()}"
        client = f"http://{self.address}"
        self._command = [
            str(etcd()),
            *("--data-dir", str(directory / "etcd")),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", f"default={peer}", "--log-level", "error"),
        ]
        self._log_path = directory / "etcd.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        log: IO[bytes]
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + START_DEADLINE_S
        while True:
            try:
                with contextlib.closing(Gateway(self.address)) as gateway:
                    if gateway.ask("/v3/kv/range", {"key": "YQ=="})[0] == 200:
                        return self
            except OSError:
                pass
            assert time.monotonic() < deadline, self._log_path.read_text()[-2000:]
            time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Gateway:
    """A connection to a gateway of etcd's."""

    def __init__(self, address: str, timeout_s: float = 10.0) -> None:
        self._connection = http.client.HTTPConnection(address, timeout=timeout_s)

    def ask(self, path: str, body: Any) -> tuple[int, Any]:
        """Return the status and the document of an answer; `body`: a document, or raw text."""
        text = body if isinstance(body, str) else json.dumps(body)
        self._connection.request("POST", path, text.encode())
        try:
            answer = self._connection.getresponse()
        except http.client.RemoteDisconnected as error:
            raise AssertionError(f"no answer to {path} {text}") from error
        content = answer.read()
        try:
            return answer.status, json.loads(content)
        except ValueError:
            return answer.status, content.decode()

    def stream(self, path: str, body: Any) -> http.client.HTTPResponse:
        """Return an answer that does not end, to be read line by line."""
        self._connection.request("POST", path, json.dumps(body).encode())
        return self._connection.getresponse()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
