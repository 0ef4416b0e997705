"""Removals at a node that can ask no primary: for whom it proposes them (A1)."""

from __future__ import annotations

import pytest

from cluster.services.access_guard import TokenGuard
from datapath.errors import NotPrimaryError
from datapath.node.context import Context
from datapath.node.members import MemberAdmin
from datapath.operations import ANONYMOUS, Principal
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
