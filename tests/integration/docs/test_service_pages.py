"""The pages that lead from a service's source to three nodes, followed line by line."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.pages import ROOT, Block, PageShell, blocks_of
from tests.support.ports import free_up_port

pytestmark = pytest.mark.slow  # real nodes

READY_S = 60.0


@contextmanager
def up(shell: PageShell, directory: Path, block: Block) -> Iterator[None]:
    """Run a page's `onecopy up` in another terminal, as it says."""
    log = directory / "up.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {shell.here(block.text)}"],
            cwd=directory,
            env=shell.environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        end = time.monotonic() + READY_S
        while "ready. Try" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(READY_S)


@pytest.mark.parametrize(
    ("page", "printed"),
    [
        ("own-service.md", ["5", "3", '{"result":2,', '{"result":2,', "1"]),
        pytest.param("queue.md", ['"result": "ok"', "working on 2"], marks=pytest.mark.long),
    ],
)
def test_a_service_from_its_source_to_three_nodes(
    page: str, printed: list[str], tmp_path: Path
) -> None:
    blocks = blocks_of(ROOT / "docs" / page)
    source = next((block for block in blocks if block.kind == "python"), None)
    if source is not None:
        (tmp_path / "myshop.py").write_text(source.text)
    shutil.copy(ROOT / "examples" / "services" / "jobs.py", tmp_path)
    first, *others = (block for block in blocks if block.kind == "shell")
    port = free_up_port()
    replaced = {
        "onecopy up": f"onecopy up --port {port}",
        "onecopy.Client()": f'onecopy.Client("http://127.0.0.1:{port}")',
        **{f"localhost:{8101 + node}": f"127.0.0.1:{port + node}" for node in range(3)},
    }
    urls = ",".join(f"http://127.0.0.1:{port + node}" for node in range(3))
    shell = PageShell(tmp_path, replaced, endpoints=urls)
    try:
        with up(shell, tmp_path, first):
            said = "".join(shell.run_whole(block) for block in others)
    finally:
        shell.close()
    place = 0
    for text in printed:
        place = said.find(text, place) + len(text)
        assert place >= len(text), f"{text} in its order in:\n{said}"
