"""`onecopy lock` and `onecopy elect` as users run them."""

from __future__ import annotations

import asyncio
import sys

from cluster.client.aio import AsyncClient
from tests.support.commands import finish, start
from tests.support.fake_api import FakeCluster

TELL = 'import os; print(os.environ["ONECOPY_LOCK_NAME"], os.environ["ONECOPY_LOCK_TOKEN"])'


async def test_a_command_runs_while_the_lock_is_held(nodes: FakeCluster) -> None:
    async with AsyncClient(nodes.endpoints) as client:
        command = ("lock", "jobs", "--note", "me", "--", sys.executable, "-c", TELL)
        ended = await finish(await start(*command, endpoints=nodes.endpoints))
        assert ended.code == 0, ended
        name, token = ended.out.decode().split()
        assert name == "jobs"
        assert int(token) > 0
        assert await client.leader("jobs") is None  # it is given up


async def test_it_exits_as_the_command_does(nodes: FakeCluster) -> None:
    command = ("elect", "main", "--", sys.executable, "-c", "raise SystemExit(7)")
    ended = await finish(await start(*command, endpoints=nodes.endpoints))
    assert ended.code == 7


async def test_who_waits_too_long_is_told_of_the_holder(nodes: FakeCluster) -> None:
    async with AsyncClient(nodes.endpoints) as client, client.lock("jobs", ttl=60, note="host 1"):
        command = ("lock", "jobs", "--wait", "0", "--", "true")
        ended = await finish(await start(*command, endpoints=nodes.endpoints))
        assert ended.code == 1
        assert "host 1" in ended.err


async def test_a_command_that_cannot_be_run_leaves_no_lock(nodes: FakeCluster) -> None:
    async with AsyncClient(nodes.endpoints) as client:
        command = ("lock", "jobs", "--", "/nowhere/nothing")
        ended = await finish(await start(*command, endpoints=nodes.endpoints))
        assert ended.code == 2
        assert "/nowhere/nothing" in ended.err
        assert await client.leader("jobs") is None


async def test_the_command_is_ended_when_the_lock_is_lost(nodes: FakeCluster) -> None:
    async with AsyncClient(nodes.endpoints) as client:
        command = ("lock", "jobs", "--ttl", "1", "--", sys.executable, "-c", "input()")
        process = await start(*command, endpoints=nodes.endpoints, stdin=asyncio.subprocess.PIPE)
        for _ in range(1000):
            leader = await client.leader("jobs")
            if leader is not None:
                break
            await asyncio.sleep(0.01)
        assert leader is not None
        await nodes.core.revoke(int(leader.lease))
        ended = await finish(process)
        assert ended.code == 1
        assert "lost" in ended.err
