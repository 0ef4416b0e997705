"""Members die, stall and lose links: the rest goes on, soon, and a healthy leader stays."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from election.agreement import AgreementFailedError, Committed
from election.view import Confirm
from tests.integration.election.election_groups import Group, Mode, Proxy, group, processes, until

pytestmark = pytest.mark.slow


async def test_after_5_idle_seconds_a_killed_leader_is_replaced(
    tmp_path: Path,
) -> None:
    async with processes(Group(tmp_path)) as nodes:
        await asyncio.sleep(5)  # What is tested: links that carried nothing must still be alive.
        leader = (await nodes["n1"].ask(do="status"))["leader"]
        survivors = [node for node_id, node in nodes.items() if node_id != leader]
        await nodes[leader].kill()
        outcome = await survivors[0].ask(do="confirm")
        assert outcome["outcome"] == "Committed"
        await nodes[leader].start()
        assert await nodes[leader].ask(do="read") == 2


async def test_a_frozen_leader_is_replaced_and_comes_back_as_a_follower(tmp_path: Path) -> None:
    async with processes(Group(tmp_path)) as nodes:
        leader = (await nodes["n1"].ask(do="status"))["leader"]
        survivor = next(node for node_id, node in nodes.items() if node_id != leader)
        os.kill(nodes[leader].pid, signal.SIGSTOP)
        try:
            assert (await survivor.ask(do="confirm"))["outcome"] == "Committed"
        finally:
            os.kill(nodes[leader].pid, signal.SIGCONT)
        assert await nodes[leader].ask(do="read") == 2
        status = await nodes[leader].ask(do="status")
        assert status["failures"] == []


async def test_a_follower_whose_interpreter_lock_is_held_accuses_nobody(tmp_path: Path) -> None:
    async with processes(Group(tmp_path)) as nodes:
        before = await nodes["n1"].ask(do="status")
        follower = next(node for node_id, node in nodes.items() if node_id != before["leader"])
        for _ in range(3):
            await follower.ask(do="hold_gil", duration_ms=600)
        assert (await follower.ask(do="confirm"))["outcome"] == "Committed"
        after = await follower.ask(do="status")
        assert (after["leader"], after["term"]) == (before["leader"], before["term"])


async def test_a_member_that_only_another_hears_gets_a_leader_that_all_hear(tmp_path: Path) -> None:
    made = Group(tmp_path)
    # n3 dials n1 through the proxy; the other two links are direct.
    async with Proxy(made.addresses["n1"]) as proxy:
        made.routes = {"n3": {"n1": proxy.address}}
        try:
            await made.start()
            await made.connected()
            await made.bootstrap()
            leader = await made.led_by_any_but("n2")
            # It has heard both: otherwise it would dial the one of them that it had not.
            await made.sees((await made.commit(leader, Confirm())).version)
            term = made.status(leader).term
            orphan = {"n1": "n3", "n3": "n1"}[leader]
            proxy.switch(Mode.REFUSE)
            # Its patience is counted from the first time that it asked, before the cut perhaps.
            await until(lambda: made.status("n2").term > term, "n2 stands")
            # n2 has both links: it takes over once, and then everybody hears the leader.
            await until(lambda: made.leader_of() == "n2", "n2 leads")
            assert made.status("n2").term <= term + 2
            view = await made.commit(orphan, Confirm())
            await made.sees(view.version)
        finally:
            await made.stop()
    assert made.failures == []


async def test_a_proposal_lost_on_its_way_to_a_leader_that_stays_is_sent_again(
    tmp_path: Path,
) -> None:
    made = Group(tmp_path)
    async with Proxy(made.addresses["n1"]) as proxy:
        made.routes = {"n3": {"n1": proxy.address}}
        try:
            await made.start()
            await made.connected()
            view = await made.bootstrap()
            leader = await made.led_by_any_but("n2")
            follower = {"n1": "n3", "n3": "n1"}[leader]
            await made.sees(view.version)
            proxy.freeze()
            proposal = asyncio.ensure_future(made[follower].propose(Confirm(), view.version, 5000))
            await asyncio.sleep(0.05)  # It leaves, into nowhere.
            proxy.switch(Mode.PASS)
            outcome = await proposal
            assert isinstance(outcome, Committed)
        finally:
            await made.stop()


@pytest.mark.parametrize("mode", [Mode.SWALLOW, Mode.REFUSE])
async def test_a_link_is_back_after_a_black_hole(tmp_path: Path, mode: Mode) -> None:
    made = Group(tmp_path)
    async with Proxy(made.addresses["n1"]) as to_n1, Proxy(made.addresses["n2"]) as to_n2:
        made.routes = {"n3": {"n1": to_n1.address, "n2": to_n2.address}}
        try:
            await made.start()
            await made.connected()
            await made.bootstrap()
            for proxy in (to_n1, to_n2):
                proxy.switch(mode)
            dials = to_n1.accepted
            await until(lambda: to_n1.accepted >= dials + 2, "handshakes into the hole")
            view = await made.commit("n1", Confirm())
            for proxy in (to_n1, to_n2):
                proxy.switch(Mode.PASS)
            await until(lambda: len(made.status("n3").connected) == 2, "links")
            await made.sees(view.version, "n3")
        finally:
            await made.stop()
    assert made.failures == []


async def test_a_link_whose_bytes_vanish_is_noticed_and_replaced(tmp_path: Path) -> None:
    made = Group(tmp_path)
    async with Proxy(made.addresses["n1"]) as proxy:
        made.routes = {"n2": {"n1": proxy.address}}
        try:
            await made.start()
            await made.connected()
            proxy.freeze()
            await until(lambda: "n1" not in made.status("n2").connected, "n2 notices")
            await until(lambda: "n2" not in made.status("n1").connected, "n1 notices")
            proxy.switch(Mode.PASS)
            await made.connected()
        finally:
            await made.stop()


async def test_exhausted_descriptors_at_accept_do_not_kill_the_listener(tmp_path: Path) -> None:
    made = Group(tmp_path)
    async with processes(made) as nodes:
        # n1 is dialled by both others: let them go, leave it no descriptor, and let them dial.
        await nodes["n2"].kill()
        await nodes["n3"].kill()
        assert await nodes["n1"].ask(do="alone") == "alone"
        assert await nodes["n1"].ask(do="exhaust_descriptors") == "exhausted"
        await nodes["n2"].start()
        await nodes["n3"].start()
        spent = await nodes["n1"].ask(do="status")
        await asyncio.sleep(0.5)
        still = await nodes["n1"].ask(do="status")
        assert still["connected"] == []
        assert still["cpu_s"] - spent["cpu_s"] < 0.25, "it spins on the port that it cannot accept"
        await nodes["n1"].ask(do="release_descriptors")
        assert await nodes["n1"].ask(do="connected", count=2) == "connected"
        assert await nodes["n1"].ask(do="read") == 1
        assert (await nodes["n1"].ask(do="status"))["failures"] == []


async def test_a_listener_that_died_is_bound_anew(tmp_path: Path) -> None:
    async with group(tmp_path) as made:
        core = made["n1"]._runner._core
        assert core is not None
        dead = core._links._listener._socket
        dead.shutdown(socket.SHUT_RDWR)  # It listens no more, and says nothing.
        await made.stop("n2")
        await made.start("n2")
        await made.connected()
        assert made.failures == []


async def test_a_listener_that_cannot_be_bound_anew_is_reported(tmp_path: Path) -> None:
    async with group(tmp_path) as made:
        core = made["n1"]._runner._core
        assert core is not None
        listener = core._links._listener
        host, port = made.addresses["n1"].rsplit(":", 1)
        thief = socket.socket()
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

        def take_the_port() -> None:
            listener.close()
            thief.bind((host, int(port)))
            thief.listen(1)

        made["n1"]._runner._post(take_the_port)
        await until(lambda: bool(made.failures), "the failure is reported")
        assert made.failures[0][0] == "n1"
        assert made.addresses["n1"] in str(made.failures[0][1])
        thief.close()


async def test_a_raft_thread_without_progress_is_reported(tmp_path: Path) -> None:
    async with group(tmp_path, stall_limit_ms=1000) as made:
        made["n2"]._runner._post(lambda: time.sleep(2.5))
        await until(lambda: bool(made.failures), "the failure is reported")
        node_id, error = made.failures[0]
        assert node_id == "n2"
        assert isinstance(error, AgreementFailedError)
        assert "no progress" in str(error)
