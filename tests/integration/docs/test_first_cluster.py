"""A new user's first secure cluster: three hosts, an empty directory, the commands of the page."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.cluster import ROOT
from tests.support.pages import blocks_of
from tests.support.ports import free_address

pytestmark = pytest.mark.slow  # real nodes

PAGE = ROOT / "docs" / "security.md"
NODES = ("n1", "n2", "n3")
HOSTS = ("127.0.1.1", "127.0.1.2", "127.0.1.3")
READY_S = 60.0


class Reader:
    """Who follows the page; `machines` are the directories of the three hosts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "trusted"
        self.directory.mkdir()
        self.machines = {node: directory / node for node in NODES}
        self.ports = {
            printed: free_address().rpartition(":")[2] for printed in ("8101", "8201", "8301")
        }
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.env: dict[str, str] = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
        blocks = blocks_of(PAGE)
        self.config = self.here(next(block.text for block in blocks if block.kind == "toml"))
        self.making = next(block.text for block in blocks if block.kind == "sh").splitlines()
        shells = [self.here(block.text) for block in blocks if block.kind == "shell"]
        self.serving, self.using = shells[0].splitlines(), shells[1]

    def here(self, text: str) -> str:
        """Return a text with ports that are free in place of those that are printed."""
        for printed, port in self.ports.items():
            text = text.replace(f":{printed}", f":{port}")
        return text

    def run(self, command: str, env: Mapping[str, str] | None = None) -> str:
        done = subprocess.run(
            ["bash", "-c", command], cwd=self.directory, env={**self.env, **(env or {})},
            capture_output=True, text=True, timeout=READY_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (command, done)
        return done.stdout

    def copy(self) -> None:
        """Bring to each host the files that the page names."""
        for node, machine in self.machines.items():
            (machine / "certs").mkdir(parents=True)
            names = ["cluster.toml", "cluster.secret", "certs/ca.crt", "certs/ca.crl"]
            for name in (*names, f"certs/{node}.crt", f"certs/{node}.key"):
                shutil.copy2(self.directory / name, machine / name)

    @contextlib.contextmanager
    def serve(self) -> Iterator[None]:
        """Start a node on each host."""
        processes = []
        try:
            for node, machine in self.machines.items():
                [command] = self.serving
                arguments = command.replace("n1", node).split()
                with (machine / "log").open("wb") as log:
                    processes.append(
                        subprocess.Popen(
                            [*arguments, "--supervised-by", str(os.getpid())],
                            cwd=machine, env=self.env, stdin=subprocess.DEVNULL, stdout=log,
                            stderr=log,
                        )
                    )  # fmt: skip
            yield
        finally:
            for process in processes:
                process.kill()
                process.wait()


def test_five_commands_make_a_cluster_that_answers_over_tls_with_tokens_only(
    tmp_path: Path,
) -> None:
    reader = Reader(tmp_path)
    assert len(reader.making) + len(reader.serving) == 5
    begun = time.monotonic()
    (reader.directory / "cluster.toml").write_text(reader.config)
    for command in reader.making:
        reader.run(command)
    reader.copy()
    made = time.monotonic()
    with reader.serve():
        port = reader.ports["8101"]
        urls = [f"https://{host}:{port}/primary" for host in HOSTS]
        asked = " || ".join(f"curl -sf --cacert certs/ca.crt {url}" for url in urls)
        reader.run(f"until {asked}; do sleep 0.1; done")
        told = reader.run(f"set -e; {reader.using}")
        ended = time.monotonic()
        print(f"made in {made - begun:.1f} s, used after {ended - begun:.1f} s")
        assert "world" in told
        assert "n3" in told
        for host in HOSTS:
            url = f"{host}:{port}/v1/kv/hello"
            status = "curl -s -o /dev/null -w '%{http_code}'"
            assert reader.run(f"{status} --cacert certs/ca.crt https://{url}") == "401"
            assert reader.run(f"{status} http://{url}") == "400"
        logs = {node: (machine / "log").read_text() for node, machine in reader.machines.items()}
    token = (reader.directory / "admin.token").read_text().strip()
    for node, machine in reader.machines.items():
        assert not (machine / "certs" / "ca.key").exists()
        assert "Traceback" not in logs[node], logs[node]
        assert token not in logs[node]
