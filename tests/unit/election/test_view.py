"""The view's transitions: every refusal, and the invariants over arbitrary histories."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from election.view import (
    AddMember,
    AddToInSync,
    Bootstrap,
    Confirm,
    Handover,
    Member,
    RemoveFromInSync,
    RemoveMember,
    TakeOver,
    View,
    ViewChange,
    ViewRefusal,
    apply_change,
)


def member(node_id: str, role: str = "replica", **fields: str) -> Member:
    addresses = {kind: f"{node_id}:{kind}" for kind in ("client", "peer", "raft")}
    return msgspec.convert({"id": node_id, "role": role, **addresses, **fields}, Member)


A, B, C, W = member("a"), member("b"), member("c"), member("w", "witness")
FIRST = Bootstrap("cluster", "a", (C, A, W, B))


def after(*changes: ViewChange, view: View | None = None) -> View:
    """Apply the changes one by one; each must be accepted."""
    for change in changes:
        result = apply_change(view, change, 0 if view is None else view.version)
        assert isinstance(result, View), result
        view = result
    assert view is not None
    return view


def refusal(view: View | None, change: ViewChange) -> str:
    result = apply_change(view, change, 0 if view is None else view.version)
    assert isinstance(result, ViewRefusal), result
    return result.reason


ALL_IN_SYNC = after(FIRST, AddToInSync("c"), AddToInSync("b"))


class TestAddressesAndRemovals:
    def test_two_members_with_one_address_are_refused_at_bootstrap(self) -> None:
        twin = member("b", peer="a:client")
        assert "are the same" in refusal(None, Bootstrap("cluster", "a", (A, twin)))

    def test_members_may_swap_their_addresses_one_after_the_other(self) -> None:
        view = after(
            AddMember(member("b", client="c:client")),
            AddMember(member("c", client="b:client")),
            view=ALL_IN_SYNC,
        )
        assert [item.client for item in view.members] == [
            "a:client", "c:client", "b:client", "w:client",
        ]  # fmt: skip

    def test_who_was_removed_is_remembered_once_and_the_latest_last(self) -> None:
        view = after(RemoveMember("b"), RemoveMember("c"), view=ALL_IN_SYNC)
        assert view.removed == ("b", "c")
        view = after(AddMember(B), RemoveMember("b"), view=view)
        assert view.removed == ("c", "b")


class TestBootstrap:
    def test_it_may_begin_with_a_later_epoch(self) -> None:
        view = apply_change(None, msgspec.structs.replace(FIRST, epoch=70), 0)
        assert isinstance(view, View)
        assert (view.epoch, view.version) == (70, 1)
        assert "at least 1" in refusal(None, msgspec.structs.replace(FIRST, epoch=0))

    def test_makes_version_1_epoch_1_with_the_primary_alone_in_sync(self) -> None:
        view = after(FIRST)
        assert (view.version, view.epoch, view.primary, view.in_sync) == (1, 1, "a", ("a",))
        assert [item.id for item in view.members] == ["a", "b", "c", "w"]

    def test_happens_once(self) -> None:
        assert "already" in refusal(after(FIRST), FIRST)

    def test_comes_before_everything_else(self) -> None:
        assert "bootstrapped" in refusal(None, Confirm())

    def test_refuses_two_members_of_one_id(self) -> None:
        assert "same id" in refusal(None, Bootstrap("cluster", "a", (A, A)))

    @pytest.mark.parametrize("primary", ["w", "nobody"])
    def test_refuses_a_primary_that_is_no_replica(self, primary: str) -> None:
        assert "not a replica" in refusal(None, Bootstrap("cluster", primary, (A, W)))


class TestCompareAndSet:
    @pytest.mark.parametrize("expected", [-1, 0, 2, 4, 99])
    def test_any_other_version_refuses(self, expected: int) -> None:
        result = apply_change(ALL_IN_SYNC, Confirm(), expected)
        assert isinstance(result, ViewRefusal)
        assert str(expected) in result.reason

    def test_confirm_changes_nothing_but_the_version(self) -> None:
        assert after(Confirm(), view=ALL_IN_SYNC) == msgspec.structs.replace(
            ALL_IN_SYNC, version=ALL_IN_SYNC.version + 1
        )


class TestTakeOver:
    def test_an_in_sync_backup_replaces_the_primary_who_leaves_the_in_sync_set(self) -> None:
        view = after(TakeOver("b"), view=ALL_IN_SYNC)
        assert (view.primary, view.in_sync, view.epoch) == ("b", ("b", "c"), 2)
        assert not view.handed_over

    def test_a_primary_that_takes_over_from_itself_stays_under_a_new_epoch(self) -> None:
        view = after(TakeOver("a"), view=ALL_IN_SYNC)
        assert (view.primary, view.in_sync, view.epoch) == ("a", ("a", "b", "c"), 2)

    @pytest.mark.parametrize("candidate", ["c", "w", "nobody"])
    def test_e1_refuses_whoever_is_not_in_the_committed_in_sync_set(self, candidate: str) -> None:
        view = after(FIRST, AddToInSync("b"))
        assert "not in the in-sync set" in refusal(view, TakeOver(candidate))


class TestHandover:
    def test_keeps_the_in_sync_set_whole_and_says_so(self) -> None:
        view = after(Handover("c"), view=ALL_IN_SYNC)
        assert (view.primary, view.in_sync, view.epoch) == ("c", ("a", "b", "c"), 2)
        assert view.handed_over

    def test_a_later_take_over_is_not_handed_over(self) -> None:
        assert not after(Handover("c"), TakeOver("b"), view=ALL_IN_SYNC).handed_over

    def test_refuses_the_primary_itself(self) -> None:
        assert "already" in refusal(ALL_IN_SYNC, Handover("a"))

    def test_e1_refuses_a_learner(self) -> None:
        assert "not in the in-sync set" in refusal(after(FIRST), Handover("b"))


class TestInSync:
    def test_removes_several_at_once(self) -> None:
        assert after(RemoveFromInSync(("c", "b")), view=ALL_IN_SYNC).in_sync == ("a",)

    def test_refuses_to_remove_nobody(self) -> None:
        assert "no node" in refusal(ALL_IN_SYNC, RemoveFromInSync(()))

    def test_refuses_to_remove_the_primary(self) -> None:
        assert "primary" in refusal(ALL_IN_SYNC, RemoveFromInSync(("b", "a")))

    def test_refuses_to_remove_whoever_is_not_in_it(self) -> None:
        assert "not in the in-sync set" in refusal(ALL_IN_SYNC, RemoveFromInSync(("w",)))

    @pytest.mark.parametrize("node", ["w", "nobody"])
    def test_e1_refuses_to_add_whoever_is_no_replica(self, node: str) -> None:
        assert "not a replica" in refusal(ALL_IN_SYNC, AddToInSync(node))

    def test_refuses_to_add_twice(self) -> None:
        assert "already" in refusal(ALL_IN_SYNC, AddToInSync("b"))


class TestMembers:
    def test_adds_a_node_in_order_of_ids(self) -> None:
        view = after(AddMember(member("bb")), view=ALL_IN_SYNC)
        assert [item.id for item in view.members] == ["a", "b", "bb", "c", "w"]
        assert "bb" not in view.in_sync

    def test_registers_a_disk_once(self) -> None:
        view = after(AddMember(member("b", data_id="1234567890")), view=ALL_IN_SYNC)
        assert view.member("b") == member("b", data_id="1234567890")
        assert "under a new id" in refusal(view, AddMember(member("b", data_id="0987654321")))
        assert "under a new id" in refusal(view, AddMember(B))

    def test_registers_a_new_address_of_a_known_disk(self) -> None:
        view = after(AddMember(member("b", data_id="1")), view=ALL_IN_SYNC)
        moved = member("b", data_id="1", raft="elsewhere:1")
        assert after(AddMember(moved), view=view).member("b") == moved

    def test_refuses_another_role(self) -> None:
        assert "witness" in refusal(ALL_IN_SYNC, AddMember(member("b", "witness")))

    def test_refuses_a_change_that_changes_nothing(self) -> None:
        assert "with these addresses" in refusal(ALL_IN_SYNC, AddMember(B))

    @pytest.mark.parametrize("kind", ["client", "peer", "raft"])
    def test_refuses_the_address_of_another(self, kind: str) -> None:
        taken = member("new", **{kind: f"b:{kind}"})
        assert "belongs to 'b'" in refusal(ALL_IN_SYNC, AddMember(taken))

    def test_removes_a_node_from_both_sets(self) -> None:
        view = after(RemoveMember("b"), view=ALL_IN_SYNC)
        assert view.member("b") is None
        assert view.in_sync == ("a", "c")

    def test_refuses_to_remove_the_primary(self) -> None:
        assert "hand over first" in refusal(ALL_IN_SYNC, RemoveMember("a"))

    def test_refuses_to_remove_a_stranger(self) -> None:
        assert "not a member" in refusal(ALL_IN_SYNC, RemoveMember("nobody"))


node_ids = st.sampled_from(["a", "b", "c", "d", "w", "x"])
changes: st.SearchStrategy[ViewChange] = st.one_of(
    st.just(FIRST),
    st.builds(TakeOver, node_ids),
    st.builds(Handover, node_ids),
    st.builds(RemoveFromInSync, st.lists(node_ids, max_size=3).map(tuple)),
    st.builds(AddToInSync, node_ids),
    st.builds(
        AddMember,
        st.builds(
            member, node_ids, st.sampled_from(["replica", "witness"]), data_id=st.sampled_from("12")
        ),
    ),
    st.builds(RemoveMember, node_ids),
    st.just(Confirm()),
)
steps = st.lists(st.tuples(changes, st.integers(-1, 1)), max_size=40)


@settings(deadline=None)
@given(steps)
def test_every_history_keeps_the_invariants(history: list[tuple[ViewChange, int]]) -> None:
    view: View | None = None
    for change, error in history:
        version = 0 if view is None else view.version
        result = apply_change(view, change, version + error)
        if isinstance(result, ViewRefusal):
            continue
        assert error == 0, "a compare-and-set on another version was accepted"
        check_step(view, result)
        view = result


def check_step(before: View | None, view: View) -> None:
    ids = [item.id for item in view.members]
    assert ids == sorted(set(ids))
    assert view.in_sync == tuple(sorted(set(view.in_sync)))
    assert view.primary in view.in_sync
    for node_id in view.in_sync:
        item = view.member(node_id)
        assert item is not None
        assert item.role == "replica"
    if before is None:
        return
    assert view.version == before.version + 1
    assert view.cluster_id == before.cluster_id
    assert view.epoch - before.epoch in (0, 1)
    if view.primary != before.primary:
        assert view.epoch == before.epoch + 1
        assert view.primary in before.in_sync  # E1
    if view.epoch == before.epoch:
        assert view.handed_over == before.handed_over
