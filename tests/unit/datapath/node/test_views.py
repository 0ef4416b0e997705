"""The keeper of views: each is judged once, and all are told in their order."""

from __future__ import annotations

import msgspec

from datapath.node.views import Views
from election.view import View
from tests.unit.datapath.node.test_membership import view_of


def at(version: int, members: str = "a b c", cluster_id: str = "c") -> View:
    return msgspec.structs.replace(
        view_of(members, members), version=version, cluster_id=cluster_id
    )


def test_only_news_of_this_cluster_is_told_and_in_order() -> None:
    views, told = Views("a"), []
    views.listen(lambda view: told.append(("first", view.version)))
    views.listen(lambda view: told.append(("second", view.version)))
    for view in (at(2), at(2), at(1), at(3, cluster_id="other"), at(4)):
        views.take(view)
    assert told == [("first", 2), ("second", 2), ("first", 4), ("second", 4)]
    assert views.newest == at(4)


def test_before_a_view_nothing_is_known_but_the_datas_cluster() -> None:
    views = Views("a", "mine")
    assert (views.cluster_id, views.primary, views.belongs) == ("mine", "", False)
    assert not views.is_removed
    assert not views.is_in_sync


def test_a_node_that_is_no_member_is_removed_and_may_come_back_under_a_later_view() -> None:
    views = Views("a")
    views.take(at(1))
    assert (views.belongs, views.is_in_sync) == (True, True)
    views.take(at(2, "b c"))
    assert (views.is_removed, views.belongs) == (True, False)
    views.take(at(3))
    assert (views.is_removed, views.belongs) == (False, True)


def test_the_newest_view_says_whose_cluster_it_is_who_leads_and_who_is_in_sync() -> None:
    views = Views("b", "mine")
    views.take(at(1, "a b", cluster_id="theirs"))
    assert (views.cluster_id, views.primary, views.is_in_sync) == ("theirs", "a", True)
    views.take(msgspec.structs.replace(at(2, "a b", cluster_id="theirs"), in_sync=("a",)))
    assert (views.belongs, views.is_in_sync) == (True, False)
