"""Loads and dumps as processes: nothing lost, nothing doubled, whatever cuts in."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import time
from pathlib import Path

import msgspec
import pytest

from cluster.bulk import load
from cluster.bulk.checkpoint import Checkpoint, checkpoint_path, read_checkpoint
from cluster.bulk.load import Loader, Totals
from cluster.bulk.source import read_lines
from cluster.bulk.wire import WireTransport
from cluster.client.errors import InvalidRequestError
from cluster.services.kv import HEAD_SIZE_BYTES
from tests.support.commands import finish, run, start
from tests.support.fake_api import FakeCluster

pytestmark = pytest.mark.slow  # a process for each command
COUNT = 400
BATCHES = (1, 16)
LOAD = ("load", "--batch", "1")


def requests(batch: int) -> int:
    """How many requests COUNT records take."""
    return -(-COUNT // batch)


def write_records(path: Path, count: int = COUNT, value: str = "value") -> dict[str, bytes]:
    """Write NDJSON in which every fifth line replaces key 0; return what must be there at last."""
    expected: dict[str, bytes] = {}
    with path.open("w") as file:
        for number in range(count):
            key = f"key/{number}" if number % 5 else "key/0"
            expected[key] = f"{value} {number}".encode()
            file.write(json.dumps({"key": key, "value": f"{value} {number}"}) + "\n")
    return expected


def stored(nodes: FakeCluster) -> dict[str, bytes]:
    return {key.decode(): value[HEAD_SIZE_BYTES:] for key, value in nodes.core.store.values.items()}


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


async def until_written(nodes: FakeCluster, count: int) -> None:
    deadline = time.monotonic() + 20
    while nodes.core.executed < count:
        assert time.monotonic() < deadline, f"only {nodes.core.executed} writes came"
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("batch", [*BATCHES, 256])
async def test_everything_is_loaded_and_the_last_of_a_key_wins(
    nodes: FakeCluster, tmp_path: Path, batch: int
) -> None:
    expected = write_records(tmp_path / "f.ndjson")
    ended = await run(
        "load", "--batch", str(batch), tmp_path / "f.ndjson", "--json", endpoints=nodes.endpoints
    )
    assert ended.code == 0, ended.err
    summary = json.loads(ended.out)
    assert (summary["read"], summary["acknowledged"]) == (COUNT, COUNT)
    assert stored(nodes) == expected
    assert nodes.core.executed == requests(batch)
    assert not checkpoint_path(tmp_path / "f.ndjson").exists()


@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.long), 16])
async def test_faults_on_the_way_lose_and_double_nothing(
    nodes: FakeCluster, tmp_path: Path, batch: int
) -> None:
    expected = write_records(tmp_path / "f.ndjson")
    nodes.faults += ["unknown_after", "not_applied", "unknown_before", "slow"] * 20
    for server in nodes.servers.values():
        server.cuts += ["before", "after"] * 5
    ended = await run(
        "load", "--batch", str(batch), tmp_path / "f.ndjson", endpoints=nodes.endpoints
    )
    assert ended.code == 0, ended.err
    assert stored(nodes) == expected
    assert nodes.core.executed == requests(batch)


@pytest.mark.parametrize("batch", BATCHES)
async def test_it_rides_through_a_failover(nodes: FakeCluster, tmp_path: Path, batch: int) -> None:
    expected = write_records(tmp_path / "f.ndjson")
    for server in nodes.servers.values():
        server.node.pace_s = 0.02
    process = await start(
        "load",
        "--batch",
        str(batch),
        tmp_path / "f.ndjson",
        "--concurrency",
        "8",
        endpoints=nodes.endpoints,
    )
    await until_written(nodes, requests(batch) // 8)
    await nodes["n1"].kill()
    nodes.set_primary("n2")
    ended = await finish(process)
    assert ended.code == 0, ended.err
    assert stored(nodes) == expected
    assert nodes.core.executed == requests(batch)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
async def test_a_cut_off_load_goes_on_where_it_was(
    nodes: FakeCluster, tmp_path: Path, number: signal.Signals, batch: int
) -> None:
    file = tmp_path / "f.ndjson"
    expected = write_records(file)
    for server in nodes.servers.values():
        server.node.pace_s = 0.03 if batch == 1 else 0.2
    size = str(batch)
    process = await start(
        "load", "--batch", size, file, "--concurrency", "4", endpoints=nodes.endpoints
    )
    await until_written(nodes, requests(batch) // 3)
    process.send_signal(number)
    ended = await finish(process)
    if number == signal.SIGKILL:
        assert ended.code == -signal.SIGKILL
    else:
        assert ended.code == 130
        assert "again" in ended.err
    kept = read_checkpoint(file)
    assert kept is not None
    assert 0 < kept.line < COUNT
    for server in nodes.servers.values():
        server.node.pace_s = 0
    again = await run("load", file, "--json", endpoints=nodes.endpoints)  # keeps its batches
    assert again.code == 0, again.err
    assert json.loads(again.out)["read"] == COUNT - kept.line, "it did not go on where it was"
    assert stored(nodes) == expected
    assert nodes.core.executed == requests(batch), "a record was written twice"


async def test_the_load_id_is_on_disk_before_the_first_record_leaves(
    nodes: FakeCluster, tmp_path: Path
) -> None:
    file = tmp_path / "f.ndjson"
    expected = write_records(file, 40)
    for server in nodes.servers.values():
        server.node.pace_s = 0.2
    process = await start(*LOAD, file, "--concurrency", "4", endpoints=nodes.endpoints)
    await until_written(nodes, 1)
    process.kill()
    await finish(process)
    for server in nodes.servers.values():
        server.node.pace_s = 0
    assert (await run(*LOAD, file, endpoints=nodes.endpoints)).code == 0
    assert stored(nodes) == expected
    assert nodes.core.executed == 40, "a record was written twice"


async def test_what_stays_unknown_is_told_and_the_next_run_settles_it(
    nodes: FakeCluster, tmp_path: Path
) -> None:
    file = tmp_path / "f.ndjson"
    expected = write_records(file, 20)
    nodes.faults += ["unknown_after"] * 5000
    ended = await run(*LOAD, file, "--give-up-after-s", "1", endpoints=nodes.endpoints)
    assert ended.code == 5
    assert "again" in ended.err
    nodes.faults.clear()
    assert (await run(*LOAD, file, endpoints=nodes.endpoints)).code == 0
    assert stored(nodes) == expected
    assert nodes.core.executed == 20


async def test_a_bad_line_is_named_and_all_before_it_is_loaded(
    nodes: FakeCluster, tmp_path: Path
) -> None:
    file = tmp_path / "f.ndjson"
    write_records(file, 30)
    with file.open("a") as target:
        target.write('\n{"key": "k", "value": 5}\n{"key": "after", "value": "x"}\n')
    checked = await run(*LOAD, file, "--check", endpoints=nodes.endpoints)
    assert checked.code == 1
    assert "line 32" in checked.err
    assert nodes.core.executed == 0
    ended = await run(*LOAD, file, endpoints=nodes.endpoints)
    assert ended.code == 1
    assert "line 32" in ended.err
    assert nodes.core.executed == 30
    assert "after" not in stored(nodes)


async def test_a_record_that_the_server_refuses_is_named(
    nodes: FakeCluster, tmp_path: Path
) -> None:
    file = tmp_path / "f.tsv"
    file.write_text("a\tb\n" + "big\t" + "x" * 2_000_000 + "\n")
    ended = await run(*LOAD, file, endpoints=nodes.endpoints)
    assert ended.code == 1
    assert "line 2" in ended.err
    as_json = await run(*LOAD, file, "--json", endpoints=nodes.endpoints)
    error = json.loads(as_json.err.splitlines()[-1])["error"]
    assert (error["line"], error["code"], error["exit_code"]) == (2, "value_too_large", 1)


async def test_a_checkpoint_that_cannot_be_written_ends_the_load(
    nodes: FakeCluster, tmp_path: Path
) -> None:
    file = tmp_path / "f.ndjson"
    write_records(file)
    checkpoint_path(file).with_name(f"{file.name}.onecopy-load.new").mkdir()
    ended = await run(*LOAD, file, endpoints=nodes.endpoints)
    assert ended.code == 1
    assert "Is a directory" in ended.err
    assert "Traceback" not in ended.err
    assert nodes.core.executed == 0


async def test_a_changed_file_or_another_cluster_is_no_resumption(
    nodes: FakeCluster, tmp_path: Path
) -> None:
    file = tmp_path / "f.ndjson"
    write_records(file, 20)
    nodes.faults += ["unknown_after"] * 5000
    await run(*LOAD, file, "--give-up-after-s", "1", endpoints=nodes.endpoints)
    nodes.faults.clear()
    before = nodes.core.executed
    expected = write_records(file, 20, "other")
    changed = await run(*LOAD, file, endpoints=nodes.endpoints)
    assert changed.code == 1
    assert "changed" in changed.err
    assert "--restart" in changed.err
    assert nodes.core.executed == before
    write_records(file, 20)
    checkpoint = checkpoint_path(file)
    own_id = nodes.core.view.cluster_id.encode()
    checkpoint.write_bytes(checkpoint.read_bytes().replace(own_id, b"elsewhere"))
    elsewhere = await run(*LOAD, file, endpoints=nodes.endpoints)
    assert elsewhere.code == 1
    assert "elsewhere" in elsewhere.err
    checkpoint.write_bytes(b"{")
    assert "--restart" in (await run(*LOAD, file, endpoints=nodes.endpoints)).err
    write_records(file, 20, "other")
    assert (await run(*LOAD, file, "--restart", endpoints=nodes.endpoints)).code == 0
    assert stored(nodes) == expected


async def test_two_loads_of_one_file_at_once_are_refused(
    nodes: FakeCluster, tmp_path: Path
) -> None:
    file = tmp_path / "f.ndjson"
    write_records(file)
    for server in nodes.servers.values():
        server.node.pace_s = 0.05
    first = await start(*LOAD, file, "--concurrency", "2", endpoints=nodes.endpoints)
    await until_written(nodes, 1)
    second = await run(*LOAD, file, endpoints=nodes.endpoints)
    assert second.code == 1
    assert "another onecopy load" in second.err
    first.terminate()
    await finish(first)


async def test_standard_input_and_tsv(nodes: FakeCluster, tmp_path: Path) -> None:
    data = b"a\t1\r\nb\t2\t3\n\nc\t\xff"
    ended = await run(*LOAD, "-", "--format", "tsv", endpoints=nodes.endpoints, stdin=data)
    assert ended.code == 0, ended.err
    assert "no checkpoint" in ended.err
    assert stored(nodes) == {"a": b"1", "b": b"2\t3", "c": b"\xff"}


async def test_what_is_dumped_can_be_loaded(nodes: FakeCluster, tmp_path: Path) -> None:
    rows = {f"key/{number:04}": os.urandom(20) for number in range(1500)}
    rows |= {"text": b"text", "ü": "ü".encode(), "empty": b""}
    source = tmp_path / "in.ndjson"
    source.write_text(
        "".join(
            json.dumps({"key": key, "value_base64": base64.b64encode(value).decode()}) + "\n"
            for key, value in rows.items()
        )
    )
    assert (await run(*LOAD, source, endpoints=nodes.endpoints)).code == 0
    dump = await run("dump", "-o", tmp_path / "out.ndjson", endpoints=nodes.endpoints)
    assert dump.code == 0, dump.err
    assert "the state at revision" in dump.err
    assert names(tmp_path) == ["in.ndjson", "out.ndjson"]
    assert (tmp_path / "out.ndjson").stat().st_mode & 0o077 == 0  # values are for their user alone
    piped = await run("dump", "--prefix", "key/", endpoints=nodes.endpoints)
    assert len(piped.out.splitlines()) == 1500
    nodes.core.store.values.clear()
    nodes.core.store.keys.clear()
    assert (await run(*LOAD, tmp_path / "out.ndjson", endpoints=nodes.endpoints)).code == 0
    assert stored(nodes) == rows


async def test_a_dump_that_fails_leaves_the_old_file(nodes: FakeCluster, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("old")
    ends = nodes.endpoints
    for server in nodes.servers.values():
        await server.kill()
    ended = await run("dump", "-o", tmp_path / "out", "--timeout-ms", "200", endpoints=ends)
    assert ended.code == 6
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out").read_text() == "old"


async def test_what_is_read_ahead_is_bounded(
    nodes: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "WINDOW_RECORDS", 10)
    file = tmp_path / "f.ndjson"
    file.write_text("".join(f'{{"key": "{number}", "value": ""}}\n' for number in range(COUNT)))
    nodes.core.hold = asyncio.Event()
    state = Checkpoint(
        load_id="id", cluster="", size_bytes=1, fingerprint="", format="ndjson", batch_records=1
    )
    seen: list[int] = []
    transport = WireTransport(nodes.endpoints, timeout_ms=20_000)

    def on_progress(totals: Totals) -> None:
        seen.append(totals.read)
        if len(seen) > 3 and nodes.core.hold is not None:
            nodes.core.hold.set()

    loader = Loader(transport, state, None, concurrency=4, on_progress=on_progress)
    with file.open("rb", buffering=0) as source:
        await loader.run(source.fileno())
    await transport.close()
    assert seen[:3] == [11, 11, 11]
    assert (loader.totals.acknowledged, loader.totals.line) == (COUNT, COUNT)


def test_a_refusal_names_the_line_of_the_record_that_it_is_about() -> None:
    batch = load._Batch(7)
    for line, key in ((7, "a"), (8, "b"), (10, "a")):
        batch.add(line, 100 * line, 9, key, b"")
    about = {place: f"too long - at `$.then[{place}].put`" for place in (0, 1, 2)}
    lines = [batch.line_of(InvalidRequestError(text)) for text in (*about.values(), "no")]
    assert lines == [10, 8, 7, 7]


async def test_what_comes_slowly_by_a_pipe_does_not_wait_for_its_batch(nodes: FakeCluster) -> None:
    process = await start(
        "load", "-", "--format", "tsv", endpoints=nodes.endpoints, stdin=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(b"a\t1\nb\t2\n")
    await until_written(nodes, 1)
    assert set(stored(nodes)) == {"a", "b"}
    process.stdin.close()
    assert (await finish(process)).code == 0


async def test_lines_come_from_a_pipe_as_they_are_written() -> None:
    reader, writer = os.pipe()
    lines = read_lines(reader)
    os.write(writer, b"one\ntw")
    assert await anext(lines) == ([b"one"], 1)
    os.write(writer, b"o\nthree")
    os.close(writer)
    assert await anext(lines) == ([b"two"], 1)
    assert await anext(lines) == ([b"three"], 0)
    with pytest.raises(StopAsyncIteration):
        await anext(lines)
    os.close(reader)


BOM = b"\xef\xbb\xbf"
FILES = {
    "f.tsv": b"a\t1\nb\t2\n",
    "f.ndjson": b'{"key":"a","value":"1"}\n{"key":"b","value":"2"}\n',
}


@pytest.mark.parametrize("name", [*FILES, "f", "-"])
async def test_a_byte_order_mark_is_no_part_of_the_first_key(
    nodes: FakeCluster, tmp_path: Path, name: str
) -> None:
    data = BOM + FILES.get(name, FILES["f.ndjson"])
    if name == "-":
        arguments: tuple[str | Path, ...] = ("load", "-", "--format", "ndjson")
    else:
        (tmp_path / name).write_bytes(data)
        arguments = ("load", tmp_path / name)
    stdin = data if name == "-" else None
    ended = await run(*arguments, endpoints=nodes.endpoints, stdin=stdin)
    assert ended.code == 0, ended.err
    assert stored(nodes) == {"a": b"1", "b": b"2"}
    if name != "-":
        checked = await run(*arguments, "--check", endpoints=nodes.endpoints)
        assert "checked: 2 records" in checked.err


@pytest.mark.parametrize("name", FILES)
async def test_a_mark_amid_a_file_and_other_encodings_are_refused(
    nodes: FakeCluster, tmp_path: Path, name: str
) -> None:
    file = tmp_path / name
    file.write_bytes(FILES[name] + BOM + FILES[name])
    ended = await run(*LOAD, file, "--check", endpoints=nodes.endpoints)
    assert ended.code == 1
    assert "line 3" in ended.err
    assert "byte order mark" in ended.err
    file.write_bytes(FILES[name].decode().encode("utf-16"))
    ended = await run(*LOAD, file, "--check", endpoints=nodes.endpoints)
    assert ended.code == 1
    assert "iconv" in ended.err
    assert nodes.core.executed == 0


async def test_a_file_with_a_mark_alone_is_empty(nodes: FakeCluster, tmp_path: Path) -> None:
    (tmp_path / "f.tsv").write_bytes(BOM)
    ended = await run(*LOAD, tmp_path / "f.tsv", endpoints=nodes.endpoints)
    assert (ended.code, nodes.core.executed) == (0, 0), ended.err


async def test_a_load_stays_with_the_cluster_that_it_was_begun_on(
    nodes: FakeCluster, tmp_path: Path
) -> None:
    file = tmp_path / "f.ndjson"
    write_records(file)
    for server in nodes.servers.values():
        server.node.pace_s = 0.03
    for arguments, stdin in (((*LOAD, file), None), ((*LOAD, "-", "--format", "ndjson"), file)):
        before = nodes.core.executed
        process = await start(
            *arguments,
            "--concurrency",
            "4",
            endpoints=nodes.endpoints,
            stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
        )
        sending = asyncio.create_task(
            finish(process, None if stdin is None else stdin.read_bytes())
        )
        await until_written(nodes, before + 50)
        view = nodes.core.view
        nodes.core.view = msgspec.structs.replace(view, cluster_id="other")
        ended = await sending
        # 5: a record was under way when the name changed, so that the answer came from "other".
        assert ended.code in {1, 5}, ended.err
        assert "cluster other" in ended.err
        assert "cluster fake" in ended.err
        # What had reached a node by then may be done; nothing that came later is.
        assert nodes.core.executed < before + 100
        nodes.core.view = view
