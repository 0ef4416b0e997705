"""Removals at a node that can ask no primary (A1), and the end of an upgrade (U2)."""

from __future__ import annotations

import pytest

from cluster.services.access_guard import TokenGuard
from datapath.errors import NotPrimaryError, RejectedError
from datapath.node import members as members_module
from datapath.node.context import Context
from datapath.node.members import MemberAdmin
from datapath.operations import ANONYMOUS, Principal
from election.release import LEVEL, Release, own_release
from election.static import StaticGroup
from election.view import Member, View

MEMBERS = tuple(
    Member(id=f"n{number}", role="replica", client=f"n{number}:1", peer=f"n{number}:2",
           raft=f"n{number}:3", data_id=f"n{number}")
    for number in (1, 2, 3)
)  # fmt: skip
VIEW = View(cluster_id="c", epoch=1, version=1, primary="n1", in_sync=("n1",), members=MEMBERS)


async def at_n2(group: StaticGroup, guard: TokenGuard) -> MemberAdmin:
    """Return what changes the members at n2, a witness say, which reaches consensus and no node."""
    context = Context("n2", group.agreement("n2"))
    await context.agreement.start()
    context.access = guard
    context.take_view(VIEW)
    return MemberAdmin(context, lambda *_: True)


@pytest.mark.parametrize("caller", [ANONYMOUS, Principal("1f3c9a0b7d2e4f58", b"digest")])
async def test_a_removal_by_force_is_not_proposed_for_who_cannot_be_judged(
    caller: Principal,
) -> None:
    group = StaticGroup(VIEW)
    members = await at_n2(group, TokenGuard(first=Principal("1f3c9a0b7d2e4f58", b"digest")))
    with pytest.raises(NotPrimaryError):
        await members.remove("n3", 2000, force=True, caller=caller)
    assert group.view == VIEW


async def test_without_access_control_force_removes() -> None:
    members = await at_n2(StaticGroup(VIEW), TokenGuard(is_on=False))
    view = await members.remove("n3", 5000, force=True, caller=ANONYMOUS)
    assert view.member("n3") is None


class Linked(Context):
    """A node whose peers tell what they run one after the other, each time that it looks."""

    told: list[str]

    def releases(self) -> dict[str, Release]:
        if self.told:
            self.heard[self.told.pop(0)] = own_release("1.0")
        return {self.node_id: own_release("1.0"), **self.heard}

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.heard: dict[str, Release] = {}


@pytest.mark.parametrize("told", [["n2", "n3"], ["n2"]])
async def test_an_upgrade_is_finished_when_those_that_came_back_have_told_what_they_run(
    told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members_module, "RELEASE_INTERVAL_MS", 1)
    group = StaticGroup(VIEW)
    context = Linked("n1", group.agreement("n1"))
    context.told = list(told)
    await context.agreement.start()
    context.take_view(VIEW)
    admin = MemberAdmin(context, lambda *_: True)
    if "n3" in told:
        assert (await admin.finish_upgrade_here(2000, "")).level == LEVEL
    else:
        with pytest.raises(RejectedError, match="the release of n3 is unknown"):
            await admin.finish_upgrade_here(2000, "")
