"""Which data begins a new cluster (R1), and what is said to be missing from it (R2)."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from datapath.node.survivors import (
    DisagreementError,
    KnownView,
    NodeMemory,
    Survivor,
    choose,
    goes_further,
    has_majority,
    holds_committed_of,
    must_be_alike,
)
from datapath.protocol.log_index import LogIndex
from election.view import Member, View


def survivor(
    node: str, last_index: int, *runs: tuple[int, int], commit: int = 0, **marks: bool
) -> Survivor:
    log = LogIndex.from_runs(0, 0, last_index, list(runs) or [(1, 1)])
    return Survivor(
        name=node, node=node, data_id=f"disk of {node}", log=log, commit_index=commit, **marks
    )


def view(version: int, in_sync: str, *, primary: str = "", nodes: str = "abc") -> View:
    members = tuple(
        Member(id=node, role="replica", client="", peer="", raft="", data_id=f"disk of {node}")
        for node in nodes
    )
    return View(
        cluster_id="c",
        epoch=1,
        version=version,
        primary=primary or in_sync[0],
        in_sync=tuple(in_sync),
        members=members,
    )


def memory(
    node: str, *views: View, voters: str = "abc", **remembered: tuple[int, int]
) -> NodeMemory:
    return NodeMemory(
        name=node,
        node=node,
        views=tuple(KnownView(item, frozenset(voters)) for item in views),
        remembered={f"disk of {name}": position for name, position in remembered.items()},
    )


# -- R1


def test_a_later_epoch_goes_further_than_a_longer_log() -> None:
    """What the longer one has beyond was never acknowledged: the later primary lacked it."""
    longer = survivor("a", 150, (1, 1), commit=90)
    later = survivor("b", 100, (1, 1), (2, 95), commit=80)
    assert goes_further(later, longer)
    assert not goes_further(longer, later)
    assert choose([longer, later]).best is later
    assert choose([later, longer]).best is later


def test_what_a_later_primary_may_have_acknowledged_is_told() -> None:
    """Found by the simulator (seed 3823).

    Entry 95 of epoch 1 was on a and c when b took over, and c took over from b in epoch 3: it
    acknowledged entry 95, and is lost. Nothing on the disks of a and b says so.
    """
    replaced = survivor("a", 97, (1, 1), commit=90)
    later = survivor("b", 96, (1, 1), (2, 95), commit=80)
    left = choose([replaced, later], [memory("a", view(4, "c")), memory("b", view(4, "c"))])
    assert left.best is later
    assert "a holds entries 95 to 97" in left.left_out[0]
    proved = choose([replaced, later], [memory("a", view(3, "b")), memory("b", view(3, "b"))])
    assert proved.is_complete
    assert proved.left_out == ()


@pytest.mark.parametrize("kept", [survivor("a", 90), survivor("a", 94, (1, 1), commit=94)])
def test_a_log_that_the_chosen_one_holds_is_not_told(kept: Survivor) -> None:
    later = survivor("b", 96, (1, 1), (2, 95), commit=80)
    for best in (
        later,
        msgspec.structs.replace(later, log=LogIndex.from_runs(95, 2, 96, [(2, 96)])),
    ):
        choice = choose([kept, best])
        assert choice.best is best
        assert not choice.is_complete  # else nothing would be told
        assert choice.left_out == ()


def test_within_an_epoch_the_longer_log_goes_further() -> None:
    shorter, longer = survivor("a", 99), survivor("b", 100)
    for order in itertools.permutations([shorter, longer]):
        assert choose(order).best is longer


def test_of_equal_logs_the_one_without_marks_is_taken() -> None:
    marked = survivor("a", 100, incomplete=True)
    cut = survivor("b", 100, tail_cut=True)
    whole = survivor("c", 100)
    for order in itertools.permutations([marked, cut, whole]):
        assert choose(order).best is whole
    assert choose([marked, cut]).best is cut
    torn = survivor("d", 100, is_cut=True)
    assert choose([torn, whole]).best is whole


def test_a_marked_log_that_goes_further_is_taken_and_its_loss_is_told() -> None:
    marked = survivor("a", 101, incomplete=True)
    choice = choose([marked, survivor("b", 100)], [memory("a", view(1, "ab"))])
    assert choice.best is marked
    assert "known to lack" in choice.losses[0]


def test_what_another_has_committed_must_be_there() -> None:
    """Else they are of two histories: one is an old copy, or was changed."""
    committed = survivor("a", 150, (1, 1), commit=120)
    later = survivor("b", 130, (1, 1), (2, 100), commit=99)
    assert not holds_committed_of(later, committed)
    with pytest.raises(DisagreementError, match="a has committed entry 120 of epoch 1, which b"):
        choose([committed, later])
    with pytest.raises(DisagreementError, match="not of one history"):
        choose([later, survivor("c", 110, (1, 1), commit=105)])


def test_what_one_epoch_wrote_must_be_the_same_in_all() -> None:
    """Two halves of a cluster that was copied have gone on: by (epoch, index) alone all is well."""
    best, other = survivor("b", 130, (1, 1), (2, 100)), survivor("a", 110, (1, 1), (2, 100))
    asked: list[tuple[str, str, range]] = []

    def differ(one: Survivor, against: Survivor, entries: range) -> int | None:
        asked.append((one.name, against.name, entries))
        return 105 if against is other else None

    with pytest.raises(DisagreementError, match="a and b hold different entries 105, both of epo"):
        choose([other, best], first_difference=differ)
    assert asked == [("b", "a", range(1, 111))]
    assert choose([other, best], first_difference=lambda *_: None).best is best
    older = survivor("c", 140, (1, 1), commit=99)  # from 100 on others have replaced its entries
    choose([older, best], first_difference=differ)
    assert asked[-1] == ("b", "c", range(1, 100))


def test_a_log_that_the_store_took_over_is_compared_from_there_on() -> None:
    log = LogIndex.from_runs(100, 1, 130, [(1, 101)])
    best = Survivor(name="b", node="b", data_id="", log=log, commit_index=100)
    assert must_be_alike(best, survivor("a", 120)) == range(101, 121)
    assert not must_be_alike(best, survivor("a", 90))


def test_what_is_in_the_store_alone_counts_as_held() -> None:
    base = Survivor(name="b", node="b", data_id="", log=LogIndex(100, 3, 100), commit_index=100)
    assert choose([survivor("a", 90, (1, 1), commit=80), base]).best is base


# -- R2


def test_complete_is_only_what_was_in_sync_to_the_end() -> None:
    best = survivor("a", 100, commit=100)
    agreed = memory("a", view(5, "ab"))
    assert choose([best], [agreed, memory("b", view(5, "ab"))]).is_complete
    assert choose([best], [agreed, memory("b", view(4, "b"))]).is_complete  # it is behind
    left = choose([best], [agreed, memory("b", view(6, "bc"))])
    assert "was not in sync" in left.doubts[0]
    maybe = choose([best], [agreed, memory("b", view(5, "ab"), view(6, "b"))])
    assert "may not have been" in maybe.doubts[0]


def test_a_majority_that_is_lost_may_have_agreed_on_more() -> None:
    choice = choose([survivor("a", 100)], [memory("a", view(5, "abc"))])
    (doubt,) = choice.doubts
    assert "lost nodes (b, c) may have agreed on a later view than version 5" in doubt
    assert not has_majority({"a", "b"}, frozenset("abcd"))
    assert has_majority({"a", "b"}, frozenset("abc"))


def test_the_voters_of_every_view_that_may_have_been_agreed_count() -> None:
    states = (
        KnownView(view(5, "ab"), frozenset("abc")),
        KnownView(view(6, "ab"), frozenset("abcde")),
    )
    known = [NodeMemory(name=node, node=node, views=states) for node in "ab"]
    assert "lost nodes (c, d, e)" in choose([survivor("a", 100)], known).doubts[0]


def test_a_directory_of_another_disk_was_not_in_sync() -> None:
    other = Survivor(name="a", node="a", data_id="new", log=LogIndex(0, 0, 0), commit_index=0)
    choice = choose([other], [memory("a", view(5, "ab")), memory("b", view(5, "ab"))])
    assert not choice.is_complete


def test_what_may_have_been_agreed_before_the_last_view_that_was_is_past() -> None:
    best = survivor("a", 100)
    behind = memory("b", view(3, "ab"), view(4, "b"))
    assert choose([best], [memory("a", view(5, "ab")), behind]).is_complete


def test_who_has_seen_no_view_proves_nothing() -> None:
    choice = choose([survivor("a", 100)], [memory("a", view(5, "ab")), memory("b")])
    assert "lost nodes (b, c)" in choice.doubts[0]


def test_who_is_no_member_was_not_in_sync() -> None:
    odd = view(5, "ab", nodes="bc")
    choice = choose([survivor("a", 100)], [memory("a", odd), memory("b", odd)])
    assert "was not in sync" in choice.doubts[0]


def test_a_torn_end_may_have_been_acknowledged() -> None:
    for mark in ("tail_cut", "is_cut"):
        best = survivor("a", 100, **{mark: True})
        choice = choose([best], [memory("a", view(5, "ab")), memory("b", view(5, "ab"))])
        assert "torn or damaged" in choice.doubts[0]


def test_what_a_witness_remembers_is_known_to_be_missing() -> None:
    best = survivor("a", 100, (2, 1))
    known = [memory("a", view(5, "ab")), memory("w", view(5, "ab"), b=(2, 140), a=(2, 90))]
    choice = choose([best], known)
    assert "w remembers that entry 140 of epoch 2 was committed" in choice.losses[0]
    assert not choose([best], [memory("w", view(5, "ab"), b=(1, 300))]).losses


def test_without_any_view_nothing_is_said_to_be_complete() -> None:
    assert "no directory says" in choose([survivor("a", 100)]).doubts[0]
