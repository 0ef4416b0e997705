"""`onecopy up` as a user runs it: a cluster of real processes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import stat
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cluster.client.aio import AsyncClient
from cluster.config.file import load_config
from cluster.up.process import NODE_ENVIRONMENT
from tests.support.cluster import wait_until
from tests.support.commands import Ended, finish, run, start
from tests.support.ports import free_up_port
from tests.support.processes import is_alive
from tests.support.traffic import Traffic

pytestmark = pytest.mark.slow  # real nodes
READY_S = 30.0


class Running:
    """A running `onecopy up`; its lines are kept as they come."""

    def __init__(self, process: Process, port: int) -> None:
        self.process = process
        self.port = port
        self.lines: list[str] = []
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(line.decode().rstrip())

    def pid_of(self, node: str) -> int:
        """The last process id that was shown for a node."""
        pattern = re.compile(rf" {node} .* pid (\d+) ")
        return max(
            (index, int(found[1]))
            for index, line in enumerate(self.lines)
            if (found := pattern.search(line))
        )[1]

    def shows(self, pattern: str, after: int = 0) -> Callable[[], bool]:
        return lambda: any(re.search(pattern, line) for line in self.lines[after:])

    async def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_S
        while not condition():
            assert time.monotonic() < deadline, "\n".join(self.lines)
            assert self.process.returncode is None, "\n".join(self.lines)
            await asyncio.sleep(0.02)

    async def stop(self, number: signal.Signals = signal.SIGINT) -> Ended:
        self.process.send_signal(number)
        async with asyncio.timeout(READY_S):
            code = await self.process.wait()
            await self._reader
        return Ended(code, "\n".join(self.lines).encode(), "")


@asynccontextmanager
async def up(data: Path, port: int, *options: str, new: bool = True) -> AsyncIterator[Running]:
    """Run `onecopy up` until the block ends; whatever happens, nothing of it stays behind."""
    port_option = ("--port", str(port)) if new else ()
    process = await start("up", "--data", data, *port_option, *options)
    running = Running(process, port)
    try:
        yield running
    finally:
        if process.returncode is None:
            await running.stop()


async def test_up_serves_resumes_and_keeps_the_data(tmp_path: Path) -> None:
    data, port = tmp_path / "data", free_up_port()
    async with up(data, port) as running:
        await running.until(running.shows(r"ready\. Try: curl"))
        await running.until(running.shows(r"n3 backup in sync"))
        async with AsyncClient(f"127.0.0.1:{port}") as client:
            await client.put("hello", "world")
            for number in range(3):
                async with AsyncClient(f"127.0.0.1:{port + number}") as other:
                    entry = await other.get("hello")
                    assert entry is not None
                    assert entry.value == b"world"
        pids = [running.pid_of(node) for node in ("n1", "n2", "n3")]
        ended = await running.stop()
        assert ended.code == 0, ended.out
    assert not any(map(is_alive, pids))
    config = load_config(data / "cluster.toml")
    assert len(config.secret) >= 32
    assert stat.S_IMODE((data / "cluster.toml").stat().st_mode) == 0o600
    assert sorted(path.name for path in (data / "logs").iterdir()) == ["n1.log", "n2.log", "n3.log"]
    async with up(data, port, new=False) as running:
        await running.until(running.shows(r"ready\. Try: curl"))
        async with AsyncClient(f"127.0.0.1:{port}") as client:
            entry = await client.get("hello")
            assert entry is not None
            assert entry.value == b"world"
    assert load_config(data / "cluster.toml").secret == config.secret


async def said(running: Running) -> str:
    """Return what one that has ended wrote to its standard error."""
    assert running.process.stderr is not None
    return (await running.process.stderr.read()).decode()


async def test_up_makes_a_cluster_that_answers_over_tls_with_tokens_only(tmp_path: Path) -> None:
    data, port = tmp_path / "data", free_up_port()
    url, cacert, file = (
        f"https://127.0.0.1:{port}",
        str(data / "certs/ca.crt"),
        data / "admin.token",
    )
    async with up(data, port, "--nodes", "1", "--tls", "--access") as running:
        await running.until(running.shows(r"ready\. Try: curl"))
        token = file.read_text().strip()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert not any(token in path.read_text() for path in (data / "logs").iterdir())
        assert token not in (data / "cluster.toml").read_text()
        async with AsyncClient(url, cacert=cacert, token=token) as client:
            await client.put("hello", "world")
        refused = await run("get", "hello", "--cacert", cacert, endpoints=[url], ONECOPY_TOKEN="")
        assert (refused.code, "--token-file or ONECOPY_TOKEN" in refused.err) == (1, True)
        plain = await run("get", "hello", endpoints=[url.replace("https", "http")])
        assert plain.code != 0
        assert "TLS" in plain.err
        await running.stop()
        assert token in await said(running)  # it is shown, once
    async with up(data, port, "--tls", "--access", new=False) as running:  # resumed: the same
        await running.until(running.shows(r"ready\. Try: curl"))
        shown = ("--cacert", cacert, "--token-file", file)
        assert (await run("get", "hello", *shown, endpoints=[url])).out == b"world"
        await running.stop()
        assert token not in await said(running)


def environment_of(pid: int) -> list[str]:
    given = Path(f"/proc/{pid}/environ").read_text()
    return [setting.partition("=")[0] for setting in given.split("\0")]


async def test_a_killed_node_comes_back_and_the_service_goes_on(tmp_path: Path) -> None:
    data, port = tmp_path / "data", free_up_port()
    async with up(data, port, "--nodes", "2", "--witness", "1") as running:
        await running.until(running.shows(r"n2 backup in sync"))
        async with AsyncClient(f"127.0.0.1:{port + 1}") as client:
            await client.put("k", "1")
            primary = (await client.status()).primary
            before, old_pid = len(running.lines), running.pid_of(primary)
            assert set(environment_of(old_pid)) >= set(NODE_ENVIRONMENT)
            os.kill(old_pid, signal.SIGKILL)
            await client.put("k", "2")
            await running.until(
                running.shows(rf"{primary} down .*SIGKILL.*restarting in 1 s", before)
            )
            await running.until(running.shows(rf"{primary} backup in sync", before))
            assert running.pid_of(primary) != old_pid
            assert (await client.status()).primary != primary
            entry = await client.get("k")
            assert entry is not None
            assert entry.value == b"2"


@pytest.mark.long
async def test_a_load_rides_through_two_killed_primaries(tmp_path: Path) -> None:
    data, port, file = tmp_path / "data", free_up_port(), tmp_path / "records.tsv"
    expected = {f"key/{number}": f"value {number}" for number in range(20_000)}
    file.write_text("".join(f"{key}\t{value}\n" for key, value in expected.items()))
    async with up(data, port) as running:
        await running.until(running.shows(r"n3 backup in sync"))
        endpoints = [f"http://127.0.0.1:{port + number}" for number in range(3)]
        options = ("--json", "--batch", "1")  # else it is over before the second kill
        load = await start("load", file, *options, endpoints=endpoints)
        async with AsyncClient(endpoints) as client:
            for share in (0.2, 0.6):
                while (await client.page(limit=1)).revision < share * len(expected):
                    assert load.returncode is None
                    await asyncio.sleep(0.02)
                primary = (await client.status()).primary
                before = len(running.lines)
                os.kill(running.pid_of(primary), signal.SIGKILL)
                await running.until(running.shows(rf"{primary} backup in sync", before))
            ended = await finish(load, seconds=60)
            assert ended.code == 0, ended.err
            assert json.loads(ended.out)["acknowledged"] == len(expected)
            found = {item.key: item.value.decode() async for item in client.list()}
            assert found == expected
            digests = [await client.digest(node) for node in ("n1", "n2", "n3")]
            assert len({(item.applied_index, item.digest) for item in digests}) == 1


@pytest.mark.long
async def test_a_killed_node_stays_down_if_asked_to(tmp_path: Path) -> None:
    data, port = tmp_path / "data", free_up_port()
    async with up(data, port, "--no-restart") as running:
        await running.until(running.shows(r"n3 backup in sync"))
        os.kill(running.pid_of("n3"), signal.SIGKILL)
        await running.until(running.shows(r"n3 down .*not restarted"))


async def test_a_node_that_refuses_is_not_restarted_and_says_why(tmp_path: Path) -> None:
    data, port = tmp_path / "data", free_up_port()
    async with up(data, port, "--nodes", "1") as running:
        await running.until(running.shows("ready"))
    text = (data / "cluster.toml").read_text()
    (data / "cluster.toml").write_text(text.replace("[nodes.n1]", "[nodes.other]"))
    process = await start("up", "--data", data)
    ended = await finish(process)
    assert ended.code == 1
    assert b"other down" in ended.out
    assert b"refused to start: " in ended.out
    assert ended.out.count(b"other starting") == 1


async def test_nodes_die_with_an_up_that_is_killed_outright(tmp_path: Path) -> None:
    data, port = tmp_path / "data", free_up_port()
    async with up(data, port, "--nodes", "1") as running:
        await running.until(running.shows("ready"))
        pid = running.pid_of("n1")
        await running.stop(signal.SIGKILL)
        deadline = time.monotonic() + 5
        while is_alive(pid):
            assert time.monotonic() < deadline, "the node outlives its supervisor"
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.long)]
)
async def test_other_signals_stop_it_too(tmp_path: Path, number: signal.Signals) -> None:
    data, port = tmp_path / "data", free_up_port()
    async with up(data, port, "--nodes", "1") as running:
        await running.until(running.shows("ready"))
        pid = running.pid_of("n1")
        assert (await running.stop(number)).code == 0
        assert not is_alive(pid)


@pytest.mark.long
async def test_every_request_is_answered_at_the_end(tmp_path: Path) -> None:
    data, port = tmp_path / "data", free_up_port()
    async with up(data, port) as running:
        await running.until(running.shows("ready"))
        traffic = Traffic([f"http://127.0.0.1:{port + number}" for number in range(3)], {})
        async with traffic.running():
            await wait_until(lambda: traffic.answered > 200, "requests are served")
            ended = await running.stop()
        assert ended.code == 0
    cut = [failure for failure in traffic.failures if "Reply" not in failure]
    assert cut == []  # whoever asked was told, if only that nobody can serve any more


async def test_a_paused_node_does_not_hold_up_the_end(tmp_path: Path) -> None:
    data, port = tmp_path / "data", free_up_port()
    async with up(data, port, "--nodes", "1") as running:
        await running.until(running.shows("ready"))
        os.kill(running.pid_of("n1"), signal.SIGSTOP)
        ended = await running.stop()
        assert ended.code == 0
        assert "killed" not in ended.out.decode() + ended.err


@pytest.mark.long
async def test_what_does_not_fit_is_refused_up_front(tmp_path: Path) -> None:
    data, port = tmp_path / "data", free_up_port()
    with socket.create_server(("127.0.0.1", port + 101)):
        busy = await run("up", "--data", data, "--port", str(port))
    assert busy.code == 1
    assert f"127.0.0.1:{port + 101} (peer address of n2)" in busy.err
    assert "--port" in busy.err
    assert not (data / "cluster.toml").exists(), "the next try would find these ports fixed"
    async with up(data, port, "--nodes", "1") as running:
        await running.until(running.shows("ready"))
        twice = await run("up", "--data", data)
        assert twice.code == 1
        assert "is in use by another onecopy up (process" in twice.err
    for option, value in (("--nodes", "3"), ("--witness", "1"), ("--port", str(port + 1))):
        other = await run("up", "--data", data, option, value)
        assert other.code == 1
        assert option in other.err


async def test_serve_refuses_what_a_restart_cannot_help(tmp_path: Path) -> None:
    absent = await run("serve", "--config", tmp_path / "absent.toml", "--node", "n1")
    assert absent.code == 78
    assert "no such file" in absent.err
    port = free_up_port()
    (tmp_path / "c.toml").write_text(
        f'[cluster]\nname = "x"\n[nodes.n1]\nclient = "127.0.0.1:{port}"\n'
        f'peer = "127.0.0.1:{port + 1}"\nraft = "127.0.0.1:{port + 2}"\ndata = "n1"\n'
    )
    unknown = await run("serve", "--config", tmp_path / "c.toml", "--node", "n2")
    assert unknown.code == 78
    assert "the nodes: n1" in unknown.err
    assert unknown.err.count("\n") == 1


async def test_groups_start_end_and_resume_as_one(tmp_path: Path) -> None:
    data, port = tmp_path / "data", free_up_port()
    async with up(data, port, "--groups", "2", "--nodes", "1") as running:
        await running.until(running.shows(r"ready\. Try: curl"))
        pids = [running.pid_of(f"g{group}/n1") for group in (1, 2)]
        other = f"127.0.0.1:{port + 1}"
        async with AsyncClient(f"127.0.0.1:{port}") as client, AsyncClient(other) as second:
            await client.put("cart{7}/x", "of g2")  # slot 2690

            async def reads() -> bool:
                return (await second.get("cart{7}/x")) is not None

            await wait_until(reads, "the second group has it")
            published = (await client.groups()).map
            assert published is not None
            assert [len(group.endpoints) for group in published.groups] == [1, 1]
        shown = await run("groups", "status", endpoints=[other])
        assert re.search(r"^g1 +n1 ", shown.out.decode(), re.MULTILINE), shown
        assert re.search(r"^g2 +n1 ", shown.out.decode(), re.MULTILINE), shown
        assert (await running.stop()).code == 0
    assert not any(map(is_alive, pids))
    async with up(data, port, new=False) as running:
        await running.until(running.shows(r"ready\. Try: curl"))
        async with AsyncClient(f"127.0.0.1:{port}") as client:
            entry = await client.get("cart{7}/x")
            assert entry is not None
            assert (await client.groups()).map == published
