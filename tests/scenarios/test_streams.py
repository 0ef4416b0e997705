"""Streams between replicas: late, lost, and reopened."""

from __future__ import annotations

from datapath.protocol.messages import Heartbeat, Message, Probe
from election.view import AddMember, RemoveMember
from tests.sim.members import make_member
from tests.sim.node import Node
from tests.sim.script import Cluster


def _deaf_to(node: Node, *kinds: type[Message]) -> None:
    """Drop the next message of each kind that reaches a node, as a layer below might."""
    missed = set(kinds)
    on_message = node.on_message

    def lossy(peer: str, message: Message) -> None:
        if type(message) in missed:
            missed.discard(type(message))
        else:
            on_message(peer, message)

    node.on_message = lossy  # type: ignore[method-assign]


def test_a_stream_whose_probe_got_lost_is_opened_again() -> None:
    cluster = Cluster()
    cluster["c"].crash()
    cluster.until(lambda: cluster.in_sync() == "ab")
    _deaf_to(cluster["c"], Probe)
    cluster["c"].start()
    cluster.until(cluster.is_whole)
    assert cluster.seen["redial"] >= 1


def test_messages_of_an_old_stream_change_nothing() -> None:
    cluster = Cluster(2)
    primary = cluster["a"].replica.primary
    assert primary is not None
    old_session = primary.peers["b"].session
    cluster.world.network.drop("a", "b")
    cluster.until(lambda: primary.peers["b"].session > old_session and cluster.is_whole())
    backup = cluster["b"].replica
    promised, session = backup.state.promised_ms, backup.backup.session
    effects = backup.on_message("a", Heartbeat(old_session, 1, 9999, 0), cluster["b"].clock() + 5)
    assert effects == []
    assert backup.state.promised_ms == promised
    effects = backup.on_message("a", Probe(old_session, 1, "a", 0), cluster["b"].clock() + 5)
    assert effects == []
    assert backup.backup.session == session


def test_a_member_that_returns_gets_a_stream_of_its_own() -> None:
    """An old answer on the old one made the primary send twice, and wait for ever."""
    cluster = Cluster()
    primary = cluster["a"].replica.primary
    assert primary is not None
    old_session = primary.peers["c"].session
    cluster.world.agreement.commit(RemoveMember("c"), cluster.view.version)
    cluster.until(lambda: "c" not in primary.peers)
    cluster.world.agreement.commit(AddMember(make_member("c")), cluster.view.version)
    cluster.until(lambda: "c" in primary.peers)
    assert primary.peers["c"].session == 0
    cluster.until(cluster.is_whole)
    assert primary.peers["c"].session > old_session


def test_a_dropped_connection_costs_no_view_change_and_no_read() -> None:
    cluster = Cluster()
    version = cluster.view.version
    for _ in range(5):
        cluster.world.network.drop("a", "b")
        for _ in range(40):
            cluster.run(10)
            assert cluster.serving() == "a"
    assert cluster.view.version <= version + 2 * 5
    cluster.until(cluster.is_whole)
