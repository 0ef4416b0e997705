"""The progress bar, on a terminal of the standard library's making."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import re
import struct
import sys
import termios
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path

import pytest

from tests.support.commands import environment
from tests.support.fake_api import FakeCluster

pytestmark = pytest.mark.slow  # a process for each command
COUNT = 400
ESCAPE = re.compile(r"\x1b\[[?0-9;]*[A-Za-z]")
ERASE_LINE, HIDE_CURSOR, SHOW_CURSOR = "\x1b[2K", "\x1b[?25l", "\x1b[?25h"


async def on_a_terminal(nodes: FakeCluster, *words: str | Path) -> tuple[int, str, str]:
    """Run a command whose standard error is a terminal; return its code, output, and the screen."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    env = environment(nodes.endpoints, TERM="xterm-256color")
    for name in ("NO_COLOR", "CI", "COLUMNS", "LINES", "FORCE_COLOR", "TTY_COMPATIBLE"):
        env.pop(name, None)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cluster.cli.main", *map(str, words),
        stdin=DEVNULL, stdout=PIPE, stderr=slave, env=env,
    )  # fmt: skip
    os.close(slave)
    reading = asyncio.create_task(asyncio.to_thread(_read_to_end, master))
    try:
        async with asyncio.timeout(60):
            out, _ = await process.communicate()
            shown = await reading
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await reading
        os.close(master)
    assert process.returncode is not None
    return process.returncode, out.decode(), shown.decode()


def _read_to_end(master: int) -> bytes:
    shown = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # EIO: nobody has the other end any more
            return shown
        if not piece:
            return shown
        shown += piece


def left_clean(screen: str) -> str:
    """Check that the bar is gone at the end, and the cursor is back; return what follows it."""
    _, _, after = screen.rpartition(SHOW_CURSOR)
    assert screen.count(HIDE_CURSOR) == screen.count(SHOW_CURSOR) == 1
    assert ERASE_LINE in screen[screen.rindex(SHOW_CURSOR) - 40 :] + after
    return ESCAPE.sub("", after)


async def test_a_load_shows_how_far_it_is_and_leaves_its_summary(
    nodes: FakeCluster, tmp_path: Path
) -> None:
    for server in nodes.servers.values():
        server.node.pace_s = 0.02
    file = tmp_path / "f.ndjson"
    lines = [json.dumps({"key": f"k{number}", "value": "v"}) for number in range(COUNT)]
    file.write_text("\n".join(lines) + "\n")
    code, out, screen = await on_a_terminal(
        nodes, "load", "--batch", "1", "--concurrency", "8", file
    )
    assert code == 0, screen
    text = ESCAPE.sub("", screen)
    frames = [int(n.replace(",", "")) for n in re.findall(r"loaded ([0-9,]+) records, ", text)]
    assert frames == sorted(frames)
    assert len(set(frames)) > 2, "it has moved"
    assert "━" in text
    shares = [int(share) for share in re.findall(r"([0-9]+)%", text)]
    assert shares == sorted(shares)
    assert (shares[0] < 50, shares[-1]) == (True, 100)
    assert left_clean(screen).strip() == ""
    assert f"{COUNT}" in out


async def test_a_backup_whose_size_is_not_known_shows_no_share(
    nodes: FakeCluster, tmp_path: Path
) -> None:
    file = tmp_path / "kept.backup"
    code, _, screen = await on_a_terminal(nodes, "backup", file)
    assert code == 0, screen
    assert file.stat().st_size > 0
    text = ESCAPE.sub("", screen)
    assert "backed up" in text
    assert "%" not in text
    assert "revision" in left_clean(screen)


async def test_a_command_that_fails_leaves_the_terminal_as_it_was(
    nodes: FakeCluster, tmp_path: Path
) -> None:
    file = tmp_path / "f.ndjson"
    file.write_text('{"key": "a", "value": "v"}\nno JSON\n')
    code, _, screen = await on_a_terminal(nodes, "load", file)
    assert code != 0
    assert "line 2" in left_clean(screen)
