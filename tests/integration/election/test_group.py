"""A healthy group: proposals, views, restarts."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path

import pytest

from election.agreement import Committed, Refused, Unknown
from election.pysyncobj_adapter import PySyncObjAgreement
from election.pysyncobj_adapter.errors import AddressInUseError, DirectoryInUseError
from election.pysyncobj_adapter.view_machine import ProposeRequest, encode_command
from election.view import AddToInSync, Bootstrap, Confirm, TakeOver, View
from tests.integration.election.election_groups import (
    Group,
    free_addresses,
    group,
    members_of,
    until,
)

pytestmark = pytest.mark.slow


async def test_every_member_proposes_and_every_member_sees_each_view(tmp_path: Path) -> None:
    async with group(tmp_path) as made:
        seen: dict[str, list[int]] = {node_id: [] for node_id in made.running}
        for node_id, agreement in made.running.items():
            agreement.subscribe(
                functools.partial(lambda node, view: seen[node].append(view.version), node_id)
            )
        assert made["n2"].view is None
        assert await made["n2"].read_view(5000) is None
        view = await made.bootstrap()
        for node_id in ("n1", "n2", "n3"):
            outcome = await made[node_id].propose(Confirm(), view.version, 5000)
            assert isinstance(outcome, Committed)
            view = outcome.view
            assert made[node_id].view == view
            assert await made["n1"].read_view(5000) == view
        await made.sees(view.version)
        for versions in seen.values():
            assert versions == sorted(set(versions))
            assert versions[-1] == view.version


async def test_a_stale_version_and_a_forbidden_change_are_refused(tmp_path: Path) -> None:
    async with group(tmp_path) as made:
        view = await made.bootstrap()
        stale = await made["n2"].propose(Confirm(), 0, 5000)
        assert isinstance(stale, Refused)
        assert stale.view == view
        forbidden = await made["n3"].propose(TakeOver("n3"), view.version, 5000)
        assert isinstance(forbidden, Refused)
        assert "in-sync" in forbidden.reason


async def test_of_many_proposals_on_one_version_one_is_committed(tmp_path: Path) -> None:
    async with group(tmp_path) as made:
        view = await made.bootstrap()
        outcomes = await asyncio.gather(
            *(
                made[node_id].propose(AddToInSync("n2"), view.version, 5000)
                for node_id in ("n1", "n2", "n3") * 5
            )
        )
        assert [type(outcome) for outcome in outcomes].count(Committed) == 1
        assert [type(outcome) for outcome in outcomes].count(Refused) == 14


async def test_a_request_sent_many_times_is_applied_once(tmp_path: Path) -> None:
    async with group(tmp_path) as made:
        await made.bootstrap()
        (follower, *_) = await made.followers()
        runner = made[follower]._runner
        core = runner._core
        assert core is not None
        command = encode_command(ProposeRequest(b"one request", 1, Confirm()))
        before = made.status(follower).applied_index
        for _ in range(20):
            runner._post(lambda: core.submit(command))
        await until(lambda: made.status(follower).applied_index >= before + 20, "20 entries")
        view = await made[follower].read_view(5000)
        assert view is not None
        assert view.version == 2
        answer = core.machine.answer_to(b"one request")
        assert answer is not None
        assert answer.refusal is None


async def test_a_restart_of_all_members_keeps_the_view(tmp_path: Path) -> None:
    made = Group(tmp_path)
    await made.start()
    view: View | None = None
    for _ in range(3):
        view = await made.bootstrap() if view is None else await made.commit("n2", Confirm())
        await made.stop()
        await made.start()
        assert await made["n3"].read_view(5000) == view
        await made.sees(view.version)
    await made.stop()
    assert made.failures == []


async def test_compaction_a_long_absence_and_a_restart_keep_the_view(tmp_path: Path) -> None:
    async with group(tmp_path, compaction_entries=8) as made:
        await made.bootstrap()
        absent = (await made.followers())[0]
        await made.stop(absent)
        present = next(iter(made.running))
        for _ in range(60):
            view = await made.commit(present, Confirm())
        assert made.status(present).log_entries < 40
        assert (made.directory / present / "dump").exists()
        await made.start(absent)
        await made.sees(view.version, absent)
        await made.stop()
        await made.start(present)
        await asyncio.sleep(0.5)
        assert made[present].view is None, "alone, its dump's view may long be history"
        await made.start(*(node for node in made.addresses if node != present))
        assert await made[absent].read_view(5000) == view
        assert made.failures == []


async def test_a_single_member_agrees_with_itself(tmp_path: Path) -> None:
    async with group(tmp_path, count=1) as made:
        view = await made.bootstrap()
        assert await made.commit("n1", Confirm()) != view


async def test_without_a_majority_a_proposal_is_unknown_and_may_commit_later(
    tmp_path: Path,
) -> None:
    async with group(tmp_path) as made:
        await made.bootstrap()
        leader = await made.leader()
        others = await made.followers()
        await made.stop(*others)
        outcome = await made[leader].propose(Confirm(), 1, 300)
        assert isinstance(outcome, Unknown)
        with pytest.raises(Exception, match="no agreement within"):
            await made[leader].read_view(100)
        await made.start(*others)
        view = await made[leader].read_view(5000)
        assert view is not None
        assert view.version in (1, 2)


async def test_a_change_too_large_is_refused(tmp_path: Path) -> None:
    async with group(tmp_path, count=1) as made:
        members = members_of({f"n{number}" * 50: f"n{number}:1" for number in range(1, 400)})
        outcome = await made["n1"].propose(Bootstrap("cluster", "n1", members), 0, 5000)
        assert isinstance(outcome, Refused)
        assert "larger than" in outcome.reason
        unspeakable = await made["n1"].propose(TakeOver("\ud800"), 0, 5000)
        assert isinstance(unspeakable, Refused)
        assert "cannot be encoded" in unspeakable.reason


class TestStart:
    async def test_a_busy_port_says_which(self, tmp_path: Path) -> None:
        made = Group(tmp_path, count=1)
        server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
        address = "{}:{}".format(*server.sockets[0].getsockname())
        made.addresses["n1"] = address
        with pytest.raises(AddressInUseError, match=address):
            await made.start()
        server.close()
        await server.wait_closed()
        await made.start()  # The failed start has left nothing behind.
        await made.stop()

    async def test_a_directory_in_use_is_refused(self, tmp_path: Path) -> None:
        async with group(tmp_path, count=1) as made:
            second = made.settings("n1", bind_address=free_addresses(1)[0])
            with pytest.raises(DirectoryInUseError):
                await PySyncObjAgreement(second).start()

    async def test_stop_frees_everything_and_answers_what_waits(self, tmp_path: Path) -> None:
        made = Group(tmp_path)
        await made.start("n1")  # Alone: nothing can commit.
        waiting = asyncio.ensure_future(made["n1"].propose(Confirm(), 0, 60_000))
        await asyncio.sleep(0)
        stopped = made["n1"]
        await made.stop()
        outcome = await waiting
        assert isinstance(outcome, Unknown)
        assert isinstance(await stopped.propose(Confirm(), 0, 100), Unknown)
        await stopped.stop()
        for _ in range(20):
            await made.start("n1")
            await made.stop()
