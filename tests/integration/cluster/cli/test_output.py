"""Where the commands' output goes: closed, full, a terminal, a device, a link, a FIFO."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import stat
import sys
from pathlib import Path

import pytest

from cluster.exit_codes import EXIT_OUTPUT_FAILED
from tests.support.commands import environment, run
from tests.support.fake_api import FakeCluster

pytestmark = pytest.mark.slow  # a process for each command

ONECOPY = f"{sys.executable} -m cluster.cli.main"


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


async def shell(nodes: FakeCluster, script: str, *arguments: str | Path) -> tuple[int, str, str]:
    """Run a script in which `onecopy` is the command; return exit code, output, errors."""
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", f'onecopy() {{ {ONECOPY} "$@"; }}\n{script}', "bash"),
        *map(str, arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(nodes.endpoints),
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def on_a_terminal(nodes: FakeCluster, *arguments: str) -> str:
    """Run a command whose output and errors are a terminal; return what it shows."""
    controller, terminal = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cluster.cli.main", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=terminal,
        stderr=terminal,
        env=environment(nodes.endpoints),
    )
    os.close(terminal)

    def read() -> bytes:
        shown = b""
        while True:
            try:
                data = os.read(controller, 65536)
            except OSError:  # EIO: the other end is closed
                return shown
            if not data:
                return shown
            shown += data

    async with asyncio.timeout(60):
        shown = await asyncio.to_thread(read)
        await process.wait()
    os.close(controller)
    return shown.decode()


@pytest.mark.parametrize("command", ["--help", "--version", "put --help", "member --help"])
async def test_help_that_cannot_be_shown_is_output_that_failed(
    nodes: FakeCluster, command: str
) -> None:
    code, _, err = await shell(nodes, f"onecopy {command} > /dev/full")
    assert code == EXIT_OUTPUT_FAILED
    assert "No space left" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("broken", ["> /dev/full", ">&-", "| true"])
@pytest.mark.parametrize("command", ["put k v", "put k v --json", "delete there", "handover n2"])
async def test_a_write_whose_result_cannot_be_shown_is_not_called_not_applied(
    nodes: FakeCluster, command: str, broken: str
) -> None:
    await run("put", "there", "x", endpoints=nodes.endpoints)
    # A reader that ends at once: the pipe may be closed by the time of the result, or not.
    status = "; exit ${PIPESTATUS[0]}" if broken == "| true" else ""
    script = f"onecopy {command} {broken}{status}"
    code, _, err = await shell(nodes, script)
    assert code in ({0, EXIT_OUTPUT_FAILED} if broken == "| true" else {EXIT_OUTPUT_FAILED}), err
    assert "Traceback" not in err
    assert "Nothing was applied" not in err
    if broken == "> /dev/full":
        assert "No space left" in err
    done = {
        "put": lambda: nodes.value("k") == b"v",
        "delete": lambda: nodes.value("there") is None,
        "handover": lambda: nodes.core.view.primary == "n2",
    }
    assert done[command.split(maxsplit=1)[0]]()


@pytest.mark.parametrize("broken", ["> /dev/full", ">&-"])
@pytest.mark.parametrize("command", ["get k", "list", "list --json", "status", "dump"])
async def test_a_result_that_cannot_be_shown_has_its_exit_code(
    nodes: FakeCluster, command: str, broken: str
) -> None:
    await run("put", "k", "v", endpoints=nodes.endpoints)
    code, _, err = await shell(nodes, f"onecopy {command} {broken}")
    assert code == EXIT_OUTPUT_FAILED, err
    assert "Traceback" not in err
    assert "Exception ignored" not in err


async def test_a_load_whose_summary_cannot_be_shown_is_complete(
    nodes: FakeCluster, tmp_path: Path
) -> None:
    file = tmp_path / "f.tsv"
    file.write_text("a\t1\nb\t2\n")
    code, _, err = await shell(nodes, 'onecopy load "$1" > /dev/full', file)
    assert code == EXIT_OUTPUT_FAILED, err
    assert nodes.value("b") == b"2"
    assert names(tmp_path) == ["f.tsv"]
    code, _, err = await shell(nodes, 'onecopy load "$1" <&- >&-', file)
    assert code == EXIT_OUTPUT_FAILED, err
    file.write_text("c\t1\nnothing\n")
    code, _, err = await shell(nodes, 'onecopy load "$1" > /dev/full', file)
    assert code == 1, "the bad line matters more"
    assert "line 2" in err


async def test_a_message_that_cannot_be_shown_changes_no_exit_code(nodes: FakeCluster) -> None:
    await run("put", "k", "v", endpoints=nodes.endpoints)
    for command, expected in (("put k w --if-absent", 4), ("get absent", 3)):
        for broken in ("2> /dev/full", "2>&-"):
            code, _, _ = await shell(nodes, f"onecopy {command} {broken}")
            assert code == expected, (command, broken)
    nodes.faults += ["unknown_before"] * 100
    code, _, _ = await shell(nodes, "onecopy put k w --timeout-ms 300 2> /dev/full")
    assert code == 5


ESCAPES = "a\x1b]0;title\x07\x9b2J\u202eb\x7f"


async def test_a_terminal_gets_no_control_characters(nodes: FakeCluster) -> None:
    await run("put", ESCAPES, ESCAPES.encode().decode(), endpoints=nodes.endpoints)
    shown = {
        "get": await on_a_terminal(nodes, "get", ESCAPES),
        "get --json": await on_a_terminal(nodes, "get", ESCAPES, "--json"),
        "list": await on_a_terminal(nodes, "list"),
        "list --json": await on_a_terminal(nodes, "list", "--json"),
        "list --long": await on_a_terminal(nodes, "list", "--long"),
        "handover": await on_a_terminal(nodes, "handover", ESCAPES),
        "handover --json": await on_a_terminal(nodes, "handover", ESCAPES, "--json"),
    }
    for command, text in shown.items():
        bare = text.replace("\x1b[31m", "").replace("\x1b[0m", "")  # our own "error:"
        assert all(char.isprintable() or char in "\r\n\t" for char in bare), (command, text)
        assert "title" in text, (command, text)
    assert json.loads(shown["get --json"])["value"] == ESCAPES
    assert "\\x1b" in shown["get"]
    assert "> FILE" in shown["get"]
    piped = await run("get", ESCAPES, endpoints=nodes.endpoints)
    assert piped.out == ESCAPES.encode()


async def test_text_on_a_terminal_is_as_it_is(nodes: FakeCluster) -> None:
    await run("put", "k", "ü\tb\nlast", endpoints=nodes.endpoints)
    assert (await on_a_terminal(nodes, "get", "k")).replace("\r\n", "\n") == "ü\tb\nlast"


async def test_bytes_on_a_terminal_are_shown_as_escapes(nodes: FakeCluster, tmp_path: Path) -> None:
    (tmp_path / "v").write_bytes(b"\x89PNG\r\n\x1a\n\xff")
    await run("put", "k", "--file", tmp_path / "v", endpoints=nodes.endpoints)
    shown = await on_a_terminal(nodes, "get", "k")
    assert "\\x89PNG" in shown
    assert "\x1a" not in shown


async def test_a_dump_goes_through_links_and_into_what_is_no_file(
    nodes: FakeCluster, tmp_path: Path
) -> None:
    await run("put", "k", "v", endpoints=nodes.endpoints)
    (tmp_path / "file").write_text("old")
    (tmp_path / "file").chmod(0o600)
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "links").symlink_to(tmp_path / "link")
    (tmp_path / "dangling").symlink_to("new")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to_pipe").symlink_to("pipe")
    (tmp_path / "full").symlink_to("/dev/full")
    for name in ("link", "links", "dangling"):
        assert (await run("dump", "-o", tmp_path / name, endpoints=nodes.endpoints)).code == 0
        assert (tmp_path / name).is_symlink()
        assert json.loads((tmp_path / name).read_text())["key"] == "k"
        (tmp_path / "file").write_text("old")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
    for name in ("pipe", "to_pipe"):
        reading = asyncio.create_task(asyncio.to_thread((tmp_path / name).read_text))
        assert (await run("dump", "-o", tmp_path / name, endpoints=nodes.endpoints)).code == 0
        assert json.loads(await reading)["key"] == "k"
        assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    full = await run("dump", "-o", tmp_path / "full", endpoints=nodes.endpoints)
    assert full.code == EXIT_OUTPUT_FAILED
    assert "No space left" in full.err
    assert str(tmp_path / "full") in full.err
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)  # noqa: PTH116
    assert not [name for name in names(tmp_path) if name.startswith(".")]


async def test_a_dump_into_a_device_leaves_it_one(nodes: FakeCluster, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root makes devices")
    await run("put", "k", "v", endpoints=nodes.endpoints)
    os.mknod(tmp_path / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    assert (await run("dump", "-o", tmp_path / "null", endpoints=nodes.endpoints)).code == 0
    assert (tmp_path / "null").is_char_device()
    assert names(tmp_path) == ["null"]


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
@pytest.mark.parametrize("how", ["| cat", '>> "$2"'])
async def test_a_dump_to_an_open_descriptor_goes_where_it_leads(
    nodes: FakeCluster, tmp_path: Path, name: str, how: str
) -> None:
    await run("put", "k", "v", endpoints=nodes.endpoints)
    (tmp_path / "link").symlink_to("/dev/stdout")
    (tmp_path / "out").write_text('{"key":"before"}\n')
    path = tmp_path / name if name == "link" else Path(name)
    script = f'onecopy dump -o "$1" {how}'
    code, out, err = await shell(nodes, script, path, tmp_path / "out")
    assert code == 0, err
    written = out if how == "| cat" else (tmp_path / "out").read_text()
    keys = [json.loads(line)["key"] for line in written.splitlines()]
    assert keys == (["k"] if how == "| cat" else ["before", "k"])
    assert stat.S_ISLNK(os.lstat("/dev/stdout").st_mode)


async def test_a_dump_that_may_not_be_written_names_the_file(
    nodes: FakeCluster, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "absent" / "out", tmp_path / "file" / "out"):
        ended = await run("dump", "-o", path, endpoints=nodes.endpoints)
        assert ended.code == EXIT_OUTPUT_FAILED
        assert str(path) in ended.err
        assert "Traceback" not in ended.err


async def test_a_prefix_that_is_also_a_default_elsewhere_is_a_prefix(nodes: FakeCluster) -> None:
    for key in ("all/1", "b"):
        await run("put", key, "v", endpoints=nodes.endpoints)
    assert (await run("list", "--prefix", "all", endpoints=nodes.endpoints)).out == b"all/1\n"
    assert (await run("list", "--end", "all", endpoints=nodes.endpoints)).out == b""
