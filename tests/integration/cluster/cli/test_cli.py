"""The client commands as processes: output, exit codes, what they advise."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import cast

import pytest
from click.testing import CliRunner

from cluster.cli.main import COMMANDS, main
from tests.support.commands import finish, run, start
from tests.support.fake_api import FakeCluster

pytestmark = pytest.mark.slow  # a process for each command


async def test_put_get_delete(nodes: FakeCluster) -> None:
    ends = nodes.endpoints
    put = await run("put", "hello", "world", endpoints=ends)
    assert (put.code, put.out) == (0, b"created: revision 1, 3 copies\n")
    get = await run("get", "hello", endpoints=ends)
    assert (get.code, get.out, get.err) == (0, b"world", "")
    confirmed = await run("get", "hello", "--confirmed", endpoints=ends)
    assert (confirmed.code, confirmed.out) == (0, b"world")
    as_json = json.loads((await run("get", "hello", "--json", endpoints=ends)).out)
    assert (as_json["value"], as_json["revision"]) == ("world", 1)
    deleted = await run("delete", "hello", endpoints=ends)
    assert (deleted.code, deleted.out) == (0, b"deleted: revision 2\n")
    for command in ("get", "delete"):
        missing = await run(command, "hello", endpoints=ends)
        assert (missing.code, missing.out) == (3, b"")
        assert "no key 'hello'" in missing.err
        assert (await run(command, "hello", "--json", endpoints=ends)).code == 3


async def test_values_are_bytes(nodes: FakeCluster, tmp_path: Path) -> None:
    value = bytes(range(256)) * 4
    (tmp_path / "value").write_bytes(value)
    assert (
        await run("put", "k", "--file", tmp_path / "value", endpoints=nodes.endpoints)
    ).code == 0
    assert (await run("get", "k", endpoints=nodes.endpoints)).out == value
    piped = await run("put", "k", "--file", "-", endpoints=nodes.endpoints, stdin=value[::-1])
    assert piped.code == 0
    assert nodes.value("k") == value[::-1]
    as_json = json.loads((await run("get", "k", "--json", endpoints=nodes.endpoints)).out)
    assert "value_base64" in as_json
    assert "value" not in as_json


async def test_conditions_have_their_exit_code(nodes: FakeCluster) -> None:
    ends = nodes.endpoints
    await run("put", "k", "1", endpoints=ends)
    for options in (["--if-absent"], ["--if-revision", "9"]):
        ended = await run("put", "k", "2", *options, endpoints=ends)
        assert ended.code == 4
        assert "Nothing was applied" in ended.err
    assert (await run("delete", "k", "--if-revision", "9", endpoints=ends)).code == 4
    assert (await run("put", "k", "2", "--if-revision", "1", endpoints=ends)).code == 0


async def test_list(nodes: FakeCluster) -> None:
    ends = nodes.endpoints
    for key in ("a/1", "a/2", "b"):
        await run("put", key, f"value of {key}", endpoints=ends)
    assert (await run("list", endpoints=ends)).out == b"a/1\na/2\nb\n"
    assert (await run("list", "--prefix", "a/", "--limit", "1", endpoints=ends)).out == b"a/1\n"
    assert (await run("list", "--long", "--start", "b", endpoints=ends)).out == b"3\t10\tb\n"
    lines = (await run("list", "--json", "--end", "a/2", endpoints=ends)).out.splitlines()
    assert [json.loads(line) for line in lines] == [
        {"key": "a/1", "value": "value of a/1", "revision": 1, "create_revision": 1, "version": 1}
    ]


async def test_delete_of_a_range(nodes: FakeCluster) -> None:
    ends = nodes.endpoints
    for number in range(3):
        await run("put", f"t/{number}", "x", endpoints=ends)
    await run("put", "u", "x", endpoints=ends)
    ended = await run("delete", "--start", "t/2", "--end", "t/9", endpoints=ends)
    assert (ended.code, ended.out) == (0, b"deleted: 1 key, revision 5\n")
    ended = await run("delete", "--prefix", "t/", "--json", endpoints=ends)
    assert json.loads(ended.out) == {"deleted": 2, "revision": 6}
    assert (await run("delete", "--prefix", "t/", endpoints=ends)).out.startswith(
        b"deleted: 0 keys"
    )
    assert (await run("list", endpoints=ends)).out == b"u\n"
    for wrong in (
        [],
        ["--prefix", ""],
        ["u", "--prefix", "u"],
        ["--prefix", "u", "--if-revision", "4"],
    ):
        assert (await run("delete", *wrong, endpoints=ends)).code == 2
    assert (await run("list", endpoints=ends)).out == b"u\n"


async def test_txn(nodes: FakeCluster, tmp_path: Path) -> None:
    ends = nodes.endpoints
    document = {
        "if": [{"key": "a", "exists": False}],
        "then": [
            {"put": {"key": "a", "text": "1"}},
            {"list": {"prefix": "a"}},
            {"get": {"key": "b"}},
        ],
        "else": [{"get": {"key": "a"}}, {"delete": {"key": "a"}}],
    }
    file = tmp_path / "txn.json"
    file.write_text(json.dumps(document))
    done = await run("txn", file, endpoints=ends)
    said = b"succeeded: revision 1, 3 copies\nput: created\nlist: 1 key\n  a\nget: no such key\n"
    assert (done.code, done.out) == (0, said)
    other = await run("txn", "--json", endpoints=ends, stdin=file.read_bytes())
    answer = json.loads(other.out)
    assert (other.code, answer["succeeded"]) == (4, False)
    got, deleted = answer["results"]
    assert got["get"]["value"] == "1"
    assert deleted == {"delete": {"deleted": 1}}
    wrong = await run("txn", endpoints=ends, stdin=b'{"then": [{"put": {"key": "a"}}]}')
    assert wrong.code == 1
    assert "$.then[0].put" in wrong.err


async def test_status_handover_remove(nodes: FakeCluster) -> None:
    ends = nodes.endpoints
    status = (await run("status", endpoints=ends)).out.decode()
    assert "primary n1" in status
    assert nodes["n3"].url in status
    assert (
        await run("handover", "n2", endpoints=ends)
    ).out == b"epoch 2: primary n2, in sync: n1 n2 n3\n"
    assert json.loads((await run("status", "--json", endpoints=ends)).out)["primary"] == "n2"
    refused = await run("handover", "n9", endpoints=ends)
    assert refused.code == 1
    assert "n9" in refused.err
    asked = await run("remove", "n3", endpoints=ends, stdin=b"n\n")
    assert asked.code == 1
    assert nodes.core.view.member("n3") is not None
    assert (await run("remove", "n3", "--yes", endpoints=ends)).code == 0
    assert nodes.core.view.member("n3") is None


async def test_an_unknown_outcome_tells_how_to_learn_it(nodes: FakeCluster) -> None:
    nodes.faults += ["unknown_after"] * 100
    arguments = ("put", "k", "v", "--timeout-ms", "300", "--json")
    ended = await run(*arguments, endpoints=nodes.endpoints)
    assert ended.code == 5
    error = json.loads(ended.err)["error"]
    assert error["outcome"] == "unknown"
    nodes.faults.clear()
    again = await run(
        *arguments, "--idempotency-key", error["idempotency_key"], endpoints=nodes.endpoints
    )
    assert again.code == 0
    assert nodes.core.executed == 1
    nodes.faults += ["unknown_after"] * 100
    plain = await run("put", "k", "v", "--timeout-ms", "300", endpoints=nodes.endpoints)
    assert "--idempotency-key" in plain.err


async def test_nobody_there_and_a_full_disk(nodes: FakeCluster) -> None:
    nodes.faults += ["full"]
    full = await run("put", "k", "v", endpoints=nodes.endpoints)
    assert full.code == 7
    ends = nodes.endpoints
    for server in nodes.servers.values():
        await server.kill()
    for command in (["put", "k", "v"], ["get", "k"], ["status"], ["list"], ["dump"]):
        gone = await run(*command, "--timeout-ms", "300", endpoints=ends)
        assert (command, gone.code) == (command, 6)
        assert "onecopy up" in gone.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["put", "k"],
        ["put", "k", "v", "--file", "-"],
        ["put", "k", "v", "--if-absent", "--if-revision", "1"],
        ["put", "", "v"],
        ["get", "k", "--max-staleness-ms", "5"],
        ["get", "k", "--confirmed", "--stale"],
        ["get", "k", "--confirmed", "--max-staleness-ms", "5"],
        ["list", "--confirmed", "--stale"],
        ["get", "k", "--endpoints", "ftp://x"],
        ["get", "k", "--endpoints", " , "],
        ["load", "-"],
        ["nonsense"],
    ],
)
async def test_a_wrong_command_line(nodes: FakeCluster, arguments: list[str]) -> None:
    ended = await run(*arguments, endpoints=nodes.endpoints)
    assert ended.code == 2
    assert ended.err
    assert nodes.core.executed == 0


async def test_watch_prints_changes_as_they_commit(nodes: FakeCluster) -> None:
    ends = nodes.endpoints
    await run("put", "a/old", "1", endpoints=ends)
    process = await start(
        "watch", "--prefix", "a/", "--after", "0", "--json", endpoints=ends, PYTHONUNBUFFERED="1"
    )
    assert process.stdout is not None

    async def line() -> dict[str, object]:
        assert process.stdout is not None
        found = await asyncio.wait_for(process.stdout.readline(), 20)
        return cast("dict[str, object]", json.loads(found))

    assert await line() == {"event": "put", "key": "a/old", "revision": 1, "value": "1"}
    await run("put", "b/elsewhere", "x", endpoints=ends)
    await nodes["n1"].kill()  # it may be the one that is watched
    await run("put", "a/new", "2", endpoints=ends)
    await nodes["n1"].restart()
    await nodes["n2"].kill()
    await run("delete", "a/old", endpoints=ends)
    assert await line() == {"event": "put", "key": "a/new", "revision": 3, "value": "2"}
    assert await line() == {
        "event": "delete", "key": "a/old", "revision": 4, "reason": "deleted"
    }  # fmt: skip
    process.send_signal(signal.SIGINT)
    assert (await finish(process)).code == 0


async def test_watch_of_one_key_for_people(nodes: FakeCluster) -> None:
    process = await start("watch", "k", endpoints=nodes.endpoints, PYTHONUNBUFFERED="1")
    assert process.stdout is not None
    assert process.stderr is not None
    assert await asyncio.wait_for(process.stderr.readline(), 20) == (
        b"watching from revision 0; Ctrl-C ends\n"
    )
    await run("put", "k", "one", endpoints=nodes.endpoints)
    await run("delete", "k", endpoints=nodes.endpoints)
    assert await asyncio.wait_for(process.stdout.readline(), 20) == b"1 put k one\n"
    assert await asyncio.wait_for(process.stdout.readline(), 20) == b"2 deleted k\n"
    process.send_signal(signal.SIGINT)
    assert (await finish(process)).code == 0


async def test_watch_says_why_it_cannot_begin(nodes: FakeCluster) -> None:
    ended = await run("watch", "--after", "7", endpoints=nodes.endpoints)
    assert ended.code == 1
    assert "this cluster is at revision 0" in ended.err
    for server in nodes.servers.values():
        await server.kill()
    ended = await run("watch", "--timeout-ms", "200", endpoints=nodes.endpoints)
    assert ended.code == 6


async def test_an_interrupted_write_is_not_called_not_applied(nodes: FakeCluster) -> None:
    for server in nodes.servers.values():
        server.node.pace_s = 5.0
    process = await start("put", "k", "v", endpoints=nodes.endpoints)
    deadline = time.monotonic() + 10
    while not nodes["n1"].node.requests:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    process.send_signal(signal.SIGINT)
    ended = await finish(process)
    assert ended.code == 130
    assert "may or may not" in ended.err


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("get", "k"), "interrupted\n"),
        (("list",), "interrupted\n"),
        (("dump",), "interrupted; the dump is not complete"),
        (("handover", "n2"), "interrupted; the change may or may not have been made"),
    ],
)
async def test_an_interrupted_command_speaks_of_what_it_was_to_do(
    nodes: FakeCluster, command: tuple[str, ...], says: str
) -> None:
    for server in nodes.servers.values():
        server.silence()
    process = await start(*command, endpoints=nodes.endpoints)
    deadline = time.monotonic() + 10
    while not nodes["n1"].accepted:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    process.send_signal(signal.SIGINT)
    ended = await finish(process)
    assert ended.code == 130
    assert says in ended.err
    assert "write" not in ended.err


async def test_ctrl_c_before_anything_was_asked(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    process = await start("txn", fifo)
    with await asyncio.to_thread(fifo.open, "wb"):  # once it is open, the command reads it
        process.send_signal(signal.SIGINT)
        ended = await finish(process)
    assert (ended.code, ended.err) == (130, "interrupted\n")


async def test_a_status_that_nobody_has_is_not_answered_by_asking_for_it(
    nodes: FakeCluster,
) -> None:
    for server in nodes.servers.values():
        await server.kill()
    gone = await run("status", "--timeout-ms", "300", endpoints=nodes.endpoints)
    assert (gone.code, "onecopy status" in gone.err, "logs" in gone.err) == (6, False, True)


async def test_version_and_help() -> None:
    version = await run("--version")
    assert version.out.startswith(b"onecopy 0.")
    text = (await run("--help")).out.decode()
    for command in COMMANDS:
        assert f"\n  {command} " in text
        shown = CliRunner().invoke(main, [command, "--help"])
        assert shown.exit_code == 0
        assert f"{command} [OPTIONS]" in shown.output
