"""What a write was first sent after goes with all its tries: a forgotten key is refused."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
from pathlib import Path

import pytest

from cluster.bulk import load
from cluster.bulk.checkpoint import Checkpoint, checkpoint_path, read_checkpoint
from cluster.bulk.load import Loader
from cluster.bulk.wire import WireTransport
from cluster.client import retries
from cluster.client.aio import AsyncClient
from cluster.client.errors import InvalidRequestError, UnknownOutcomeError
from cluster.client.sync import Client
from tests.integration.cluster.bulk.test_bulk import until_written, write_records
from tests.support.commands import finish, run, start
from tests.support.fake_api import FakeCluster


async def test_every_try_names_the_revision_that_was_known_before_the_first(
    nodes: FakeCluster,
) -> None:
    nodes.core.index = 7
    nodes.faults += ["unknown_after", "not_applied", "unknown_before"]
    async with AsyncClient(nodes.endpoints) as client:
        first = await client.put("k", b"1")
        assert first.revision == 8
        second = await client.put("k", b"2")
        await client.put("other", b"3", ack="local")  # its revision may be lost: it is not used
        await client.delete("k")
    keys = [key for key, _ in nodes.core.sent_after]
    assert keys.count(first.idempotency_key) >= 2
    assert {after for key, after in nodes.core.sent_after if key == first.idempotency_key} == {7}
    assert [after for key, after in nodes.core.sent_after if key == second.idempotency_key] == [8]
    assert [after for _, after in nodes.core.sent_after[-2:]] == [9, 9]


async def test_reads_tell_it_too(nodes: FakeCluster) -> None:
    async with AsyncClient(nodes.endpoints) as client:
        await client.put("k", b"1")
        nodes.core.index = 20
        await client.get("k")
        assert client.revision == 20
        await client.put("k", b"2")
        nodes.core.index = 30
        await client.page()
        await client.put("k", b"3")
    assert [after for _, after in nodes.core.sent_after] == [None, 20, 30]


@pytest.mark.parametrize("plain", [False, True])
async def test_what_is_repeated_after_it_was_forgotten_is_refused_for_good(
    nodes: FakeCluster, plain: bool
) -> None:
    nodes.core.index = 7
    nodes.faults += ["unknown_after"] * 100
    async with AsyncClient(nodes.endpoints, timeout_ms=300) as client:
        with pytest.raises(UnknownOutcomeError) as unknown:
            await client.put("k", b"1")
        assert unknown.value.idempotency_after == 7
        assert not unknown.value.is_final
        nodes.faults.clear()
        executed = nodes.core.executed
        nodes.core.forget()
        await client.get("k")  # it has seen newer revisions by now
        key, after = unknown.value.idempotency_key, unknown.value.idempotency_after
        # The client that sent it first need not be told; another one is.
        with pytest.raises(UnknownOutcomeError) as final:
            await client.put("k", b"1", idempotency_key=key)
        assert (final.value.code, final.value.is_final) == ("idempotency_key_expired", True)
        repeat = repeat_plainly if plain else repeat_elsewhere
        with pytest.raises(UnknownOutcomeError) as final:
            await repeat(nodes, key, after)
        assert final.value.code == "idempotency_key_expired"
        assert nodes.core.executed == executed
        await client.put("k", b"2")  # a new one is none of these


async def repeat_elsewhere(nodes: FakeCluster, key: str, after: int | None) -> None:
    async with AsyncClient(nodes.endpoints) as other:
        await other.put("k", b"1", idempotency_key=key, idempotency_after=after)


async def repeat_plainly(nodes: FakeCluster, key: str, after: int | None) -> None:
    def repeat() -> None:
        with Client(nodes.endpoints) as client:
            client.put("k", b"1", idempotency_key=key, idempotency_after=after)

    await asyncio.to_thread(repeat)


async def test_a_client_that_was_idle_asks_anew_and_is_not_refused(
    nodes: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncClient(nodes.endpoints) as client:
        await client.put("k", b"1")
        nodes.core.index = 1000
        nodes.core.forget()
        monkeypatch.setattr(retries, "REVISION_AGE_MAX_S", 0.0)
        assert (await client.put("k", b"2")).revision == 1001
    assert nodes.core.sent_after[-1][1] == 1000


async def test_it_needs_the_key(nodes: FakeCluster) -> None:
    async with AsyncClient(nodes.endpoints) as client:
        with pytest.raises(InvalidRequestError, match="idempotency_key"):
            await client.put("k", b"1", idempotency_after=3)
    ended = await run("put", "k", "v", "--idempotency-after", "3", endpoints=nodes.endpoints)
    assert ended.code == 2


@pytest.mark.slow
async def test_the_command_says_what_to_do(nodes: FakeCluster) -> None:
    nodes.core.index = 7
    nodes.faults += ["unknown_after"] * 100
    put = ("put", "k", "v", "--timeout-ms", "300")
    unknown = await run(*put, endpoints=nodes.endpoints)
    assert unknown.code == 5
    assert "--idempotency-after 7" in unknown.err
    key = unknown.err.split("--idempotency-key ")[1].split()[0]
    nodes.faults.clear()
    nodes.core.forget()
    again = ("--idempotency-key", key, "--idempotency-after", "7")
    for command in (put, ("delete", "k")):
        ended = await run(*command, *again, endpoints=nodes.endpoints)
        assert ended.code == 5
        assert "onecopy get KEY" in ended.err
        assert "--idempotency-key" not in ended.err
    error = json.loads((await run(*put, *again, "--json", endpoints=nodes.endpoints)).err)["error"]
    assert (error["code"], error["exit_code"]) == ("idempotency_key_expired", 5)
    assert error["idempotency_after"] == 7
    assert nodes.core.executed == 1


@pytest.mark.slow
async def test_a_load_that_was_cut_off_is_refused_where_its_keys_are_forgotten(
    nodes: FakeCluster, tmp_path: Path
) -> None:
    nodes.core.index = 7
    file = tmp_path / "f.ndjson"
    write_records(file)
    for server in nodes.servers.values():
        server.node.pace_s = 0.03
    process = await start(
        "load", "--batch", "1", file, "--concurrency", "4", endpoints=nodes.endpoints
    )
    await until_written(nodes, 150)
    process.send_signal(signal.SIGKILL)
    await finish(process)
    kept = read_checkpoint(file)
    assert kept is not None
    assert kept.revision >= 7
    assert kept.reach > kept.line
    for server in nodes.servers.values():
        server.node.pace_s = 0
    executed = nodes.core.executed
    nodes.core.index += 1000
    nodes.core.forget()
    again = await run("load", file, endpoints=nodes.endpoints)
    assert again.code == 5, again.err
    assert f"after line {kept.line} may have been written" in again.err
    assert "--restart" in again.err
    assert nodes.core.executed == executed, "a record was written twice"
    # It is so once more, and without a file that names it, nothing is refused.
    assert (await run("load", file, endpoints=nodes.endpoints)).code == 5
    assert (await run("load", file, "--restart", endpoints=nodes.endpoints)).code == 0


async def test_a_load_names_newer_revisions_as_it_goes(
    nodes: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "WINDOW_RECORDS", 10)
    monkeypatch.setattr(load, "REACH_LINES", 30)
    file = tmp_path / "f.ndjson"
    write_records(file, 200)
    written: list[Checkpoint] = []
    monkeypatch.setattr(load, "write_checkpoint", lambda _file, state: written.append(state))
    # An earlier run may have sent the first 50.
    state = Checkpoint(
        load_id="id",
        cluster="",
        size_bytes=1,
        fingerprint="",
        format="ndjson",
        reach=50,
        batch_records=1,
    )
    transport = WireTransport(nodes.endpoints, timeout_ms=20_000)
    loader = Loader(transport, state, file, concurrency=4, on_progress=lambda _: None)
    with file.open("rb", buffering=0) as source:
        await loader.run(source.fileno())
    await transport.close()
    sent = {int(key.split("-")[1]): after or 0 for key, after in nodes.core.sent_after}
    assert [sent[line] for line in range(1, 51)] == [0] * 50
    assert all(line - 30 < sent[line] < line for line in range(51, 201)), sent
    # Whatever of them was on disk: what lies behind its line was sent after its revision, and what
    # lies behind its reach was not sent yet.
    assert len(written) > 4
    for kept, following in itertools.pairwise(written):
        assert all(kept.revision <= sent[line] for line in range(kept.line + 1, 201))
        assert kept.reach <= following.reach
    assert [kept.reach for kept in written[:4]] == [81, 112, 143, 174]


@pytest.mark.slow
async def test_a_checkpoint_of_another_version_is_refused_clearly(
    nodes: FakeCluster, tmp_path: Path
) -> None:
    file = tmp_path / "f.ndjson"
    write_records(file, 5)
    checkpoint_path(file).write_text('{"version": 1, "load_id": "x"}')
    ended = await run("load", file, endpoints=nodes.endpoints)
    assert ended.code == 1
    assert "another version" in ended.err
    assert "--restart" in ended.err
