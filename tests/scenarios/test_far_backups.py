"""A backup that is never silent, but so far away that its promises have run out when they come."""

from __future__ import annotations

from tests.sim.script import Cluster


def test_a_backup_whose_promises_come_too_late_is_removed() -> None:
    cluster = Cluster()
    cluster.move_away("c", 160)
    cluster.until(lambda: cluster.in_sync() == "ab")
    cluster.until(cluster.serving)
    assert cluster.serving() == "a"
    assert cluster.commits()
    cluster.run(3000)
    assert cluster.in_sync() == "ab", "it does not come and go"


def test_a_backup_whose_promises_come_late_but_in_time_stays() -> None:
    cluster = Cluster()
    version = cluster.view.version
    cluster.move_away("c", 70)
    cluster.run(2000)
    assert cluster.serving() == "a"
    assert cluster.view.version == version


def test_a_primary_far_from_everyone_lets_go_if_it_cannot_have_them_removed() -> None:
    cluster = Cluster()
    cluster.cut_consensus("a")
    cluster.move_away("a", 160)
    cluster.until(lambda: cluster.serving() in ("b", "c"))
    assert cluster.commits()
