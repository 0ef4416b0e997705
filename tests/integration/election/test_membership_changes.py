"""The Raft members follow the view: one at a time, with one node dead, without a gap in quorum."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path

import pytest

from election.agreement import AgreementUnavailableError
from election.view import AddMember, Confirm, Member, RemoveMember
from tests.integration.election.election_groups import (
    Group,
    free_addresses,
    group,
    members_of,
    until,
)

pytestmark = pytest.mark.slow


def a_new_member(made: Group, node_id: str) -> Member:
    made.addresses[node_id] = free_addresses(1)[0]
    (member,) = members_of({node_id: made.addresses[node_id]})
    return member


async def raft_members(made: Group, *expected: str, of: tuple[str, ...] = ()) -> None:
    for node_id in of or expected:
        await until(
            functools.partial(lambda node: made.status(node).members == expected, node_id),
            f"{node_id} counts {expected} as Raft members",
        )


async def test_a_node_with_a_lost_disk_is_replaced_while_it_is_dead(tmp_path: Path) -> None:
    async with group(tmp_path) as made:
        await made.bootstrap()
        await made.stop("n2")
        await made.commit("n3", RemoveMember("n2"))
        await raft_members(made, "n1", "n3")
        del made.addresses["n2"]
        # Adding needs no new node to run: the two that do are a majority of three.
        view = await made.commit("n1", AddMember(a_new_member(made, "n4")))
        await raft_members(made, "n1", "n3", "n4", of=("n1", "n3"))
        view = await made.commit("n3", Confirm())
        await made.start("n4")
        await made.sees(view.version, "n4")
        await raft_members(made, "n1", "n3", "n4")
        # The new node counts: with it, one of the old may die.
        await made.stop(await made.leader())
        survivor = next(iter(made.running))
        view = await made.commit(survivor, Confirm())
        await made.sees(view.version)
        assert made.failures == []


async def test_a_new_id_may_take_over_the_address_of_the_removed_one(tmp_path: Path) -> None:
    async with group(tmp_path) as made:
        await made.bootstrap()
        await made.stop("n2")
        await made.commit("n3", RemoveMember("n2"))
        await raft_members(made, "n1", "n3")
        made.addresses["n4"] = made.addresses.pop("n2")
        (member,) = members_of({"n4": made.addresses["n4"]})
        view = await made.commit("n1", AddMember(member))
        await made.start("n4")
        await made.sees(view.version, "n4")


async def test_with_one_node_dead_an_addition_waits_until_it_cannot_stop_the_group(
    tmp_path: Path,
) -> None:
    async with group(tmp_path) as made:
        await made.bootstrap()
        await made.stop("n2")
        # Four members would need three, and two run: Raft must not follow the view yet.
        await made.commit("n1", AddMember(a_new_member(made, "n4")))
        await asyncio.sleep(0.5)
        assert made.status("n1").members == ("n1", "n2", "n3")
        await made.commit("n3", Confirm())
        # Once the dead one is removed (or runs again), the addition follows.
        await made.commit("n1", RemoveMember("n2"))
        await raft_members(made, "n1", "n3", "n4", of=("n1", "n3"))
        await made.start("n4")
        await made.sees(4, "n4")


async def test_a_removed_node_that_still_runs_disturbs_nobody(tmp_path: Path) -> None:
    async with group(tmp_path) as made:
        await made.bootstrap()
        removed = next(node for node in await made.followers() if node != "n1")
        rest = tuple(node for node in ("n1", "n2", "n3") if node != removed)
        await made.commit("n1", RemoveMember(removed))
        await raft_members(made, *rest)
        term = made.status("n1").term
        await asyncio.sleep(1)
        assert made.status("n1").term == term
        assert all(removed not in made.status(node).connected for node in rest)
        await made.commit("n1", Confirm())


async def test_a_leader_that_is_removed_gives_its_place_to_another_first(tmp_path: Path) -> None:
    async with group(tmp_path) as made:
        await made.bootstrap()
        leader = await made.led_by_any_but("n1")  # The primary may not be removed.
        rest = tuple(node for node in ("n1", "n2", "n3") if node != leader)
        await made.commit("n1", RemoveMember(leader))
        await raft_members(made, *rest)
        await made.commit("n1", Confirm())


async def test_the_agreed_members_outlive_a_restart_with_the_old_configuration(
    tmp_path: Path,
) -> None:
    async with group(tmp_path, compaction_entries=8) as made:
        await made.bootstrap()
        founders = dict(made.addresses)
        await made.stop("n2")
        await made.commit("n3", RemoveMember("n2"))
        await made.commit("n3", AddMember(a_new_member(made, "n4")))
        await made.start("n4")
        await raft_members(made, "n1", "n3", "n4")
        for rounds in (0, 20):  # From the log first, then from a dump.
            for _ in range(rounds):
                await made.commit("n1", Confirm())
            await made.stop()
            await made.start("n1", "n3", members=founders)
            await raft_members(made, "n1", "n3", "n4", of=("n1", "n3"))
            view = await made.commit("n1", Confirm())
            await made.start("n4")
            await made.sees(view.version, "n4")
            await made.connected()


async def test_three_become_five_one_by_one(tmp_path: Path) -> None:
    async with group(tmp_path) as made:
        await made.bootstrap()
        for node_id in ("n4", "n5"):
            await made.commit("n1", AddMember(a_new_member(made, node_id)))
            await made.start(node_id)
        await raft_members(made, "n1", "n2", "n3", "n4", "n5")
        await made.connected()
        leader = await made.leader()
        other = next(node for node in made.running if node != leader)
        await made.stop(leader, other)
        await made.commit(next(iter(made.running)), Confirm())


async def join(made: Group, node_id: str) -> None:
    """Start a node as one that joins: all that it knows of the log's beginning it was told."""
    donor = next(iter(made.running.values()))
    await made.start(node_id, founders=donor.founders)


@pytest.mark.parametrize("first_is_killed", [False, True], ids=["calmly", "restarting"])
async def test_one_becomes_three_and_five_and_one_again(
    tmp_path: Path, first_is_killed: bool
) -> None:
    async with group(tmp_path, 1, compaction_entries=8) as made:
        await made.bootstrap()
        for node_id in ("n2", "n3", "n4", "n5"):
            await made.commit("n1", AddMember(a_new_member(made, node_id)))
            if first_is_killed:  # Between the view's change and Raft's.
                await made.stop("n1")
                await made.start("n1")
            await join(made, node_id)
            await raft_members(made, *sorted(made.running))
            await made.commit(node_id, Confirm())
        first, *rest = sorted(made.running)
        await made.stop(first)
        await made.commit(rest[-1], Confirm())  # It is no group of one: the others go on.
        await made.start(first)
        while len(made.running) > 1:
            gone = max(made.running)
            await made.commit("n1", RemoveMember(gone))
            left = tuple(sorted(made.running))[:-1]
            await raft_members(made, *left, of=left)
            await made.stop(gone)
        await made.commit("n1", Confirm())
        assert made.failures == []


async def test_a_group_of_one_waits_for_the_second_and_goes_on_alone(tmp_path: Path) -> None:
    async with group(tmp_path, 1) as made:
        await made.bootstrap()
        await made.commit("n1", AddMember(a_new_member(made, "n2")))
        for _ in range(3):  # Commits go on, and Raft does not wait for one that never came.
            await made.commit("n1", Confirm())
            assert made.status("n1").voters == {"n1"}
        await made.commit("n1", RemoveMember("n2"))
        await made.commit("n1", Confirm())


async def test_two_newcomers_form_no_group_of_their_own(tmp_path: Path) -> None:
    async with group(tmp_path, 1) as made:
        await made.bootstrap()
        founders = made["n1"].founders
        for node_id in ("n2", "n3"):
            await made.commit("n1", AddMember(a_new_member(made, node_id)))
        await made.stop("n1")
        await made.start("n2", "n3", founders=founders)
        await made.connected()
        with pytest.raises(AgreementUnavailableError):
            await made["n2"].read_view(1500)
        assert {made.status(node).term for node in ("n2", "n3")} == {0}
        await made.start("n1")
        await raft_members(made, "n1", "n2", "n3")
        assert made.failures == []


async def test_a_node_that_was_told_of_other_members_than_those_of_now_is_found(
    tmp_path: Path,
) -> None:
    async with group(tmp_path) as made:
        await made.bootstrap()
        founders = dict(made.addresses)
        await made.commit("n1", AddMember(a_new_member(made, "n9")))
        told = dict(made.addresses)
        await made.commit("n1", AddMember(a_new_member(made, "n4")))
        await raft_members(made, "n1", "n2", "n3", "n4", "n9", of=("n1", "n2", "n3"))
        await made.start("n4", founders=founders)
        await made.connected()
        while (leader := await made.leader()) != "n4":
            await made.stop(leader)
            await made.leader()
            await made.start(leader)
            await made.connected()
        # n9 dials n4, for its id is larger, but has never heard of it.
        view = await made.commit("n1", Confirm())
        await made.start("n9", members=told, founders=founders)
        await made.sees(view.version, "n9")
        assert made.failures == []
