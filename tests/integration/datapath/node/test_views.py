"""What nodes tell each other of a new view, beside consensus."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from cluster.services.kv import KeyValue
from datapath.transport.mesh import REPLICATE, REQUEST
from election.agreement import Committed
from election.static import Fault
from election.view import AddMember, RemoveMember, View
from tests.support.replicas import LocalReplica, running, until

pytestmark = pytest.mark.slow


def dials_members_only(replica: LocalReplica) -> None:
    """Have a replica drop its links with who is removed, as a node process does."""

    def on_view(view: View) -> None:
        kinds = frozenset({REQUEST, REPLICATE})
        others = (member.id for member in view.members if member.id != replica.node_id)
        replica.mesh.set_peers(dict.fromkeys(others, kinds))

    replica.gateway.listen(on_view)


@pytest.mark.parametrize("proposer", ["n1", "n2"])
async def test_a_removed_node_is_told_by_those_who_hear_of_it_from_consensus(
    tmp_path: Path, proposer: str
) -> None:
    """They drop their links with it, and consensus tells it nothing any more."""
    async with running(tmp_path, KeyValue) as cluster:
        removed = cluster["n3"]
        for node in ("n1", "n2"):
            dials_members_only(cluster[node])
        view = removed.gateway.view
        assert view is not None
        cluster.group.set_fault("n3", Fault.CUT_OFF)
        outcome = await cluster[proposer].agreement.propose(RemoveMember("n3"), view.version, 5000)
        assert isinstance(outcome, Committed)
        await until(lambda: removed.gateway.view == outcome.view, "n3 knows the view without it")
        assert not removed.gateway.belongs


async def test_a_member_that_consensus_does_not_reach_is_told_by_who_got_a_view_committed(
    tmp_path: Path,
) -> None:
    """Though consensus told that one first: the view may say where the others are now."""
    async with running(tmp_path, KeyValue) as cluster:
        one, cut_off = cluster["n1"], cluster["n3"]
        view = one.gateway.view
        assert view is not None
        cluster.group.set_fault("n3", Fault.CUT_OFF)
        moved = msgspec.structs.replace(view.members[1], client="elsewhere:1")
        outcome = await one.agreement.propose(AddMember(moved), view.version, 5000)
        assert isinstance(outcome, Committed)
        await until(lambda: one.gateway.view == outcome.view, "n1 hears it from consensus")
        one.gateway.share_view(outcome.view)
        await until(lambda: cut_off.gateway.view == outcome.view, "n3 hears it from n1")
