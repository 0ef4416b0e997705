"""What an archive can restore, by the names of its objects."""

from __future__ import annotations

import random

import pytest

from cluster.archive.catalog import Base, Catalog, PieceName, cluster_ids
from cluster.archive.errors import MissingPieceError


def catalog(bases: list[int], pieces: list[tuple[int, int]]) -> Catalog:
    names = [Base(index, 1, 1000 * index).name for index in bases]
    names += [PieceName(first, last, 1).name for first, last in pieces]
    random.Random(1).shuffle(names)
    return Catalog([*names, "pieces/other", "bases/.unfinished-1", "x"])


def ends(pieces: list[PieceName]) -> list[tuple[int, int]]:
    return [(piece.first, piece.last) for piece in pieces]


def test_names_come_back_in_order() -> None:
    found = catalog([7, 1], [(5, 9), (2, 4)])
    assert found.bases == [Base(1, 1, 1000), Base(7, 1, 7000)]
    assert ends(found.pieces) == [(2, 4), (5, 9)]


def test_a_plan_begins_with_the_newest_base_before_the_point() -> None:
    found = catalog([1, 7], [(2, 4), (5, 9), (10, 12)])
    assert found.plan(6) == (found.bases[0], found.pieces[:2], 6)
    assert found.plan(7) == (found.bases[1], [], 7)
    assert found.plan(11) == (found.bases[1], found.pieces[1:], 11)
    assert found.plan(None).until == 12
    assert found.spans()[-1].end == (12, 1)


def test_pieces_of_two_archivers_may_overlap() -> None:
    found = catalog([1], [(2, 4), (2, 9), (5, 6), (7, 8), (9, 20), (10, 12)])
    assert ends(found.chain(1)) == [(2, 9), (9, 20)]
    assert ends(found.chain(1, 5)) == [(2, 9)]


def test_a_gap_names_how_far_the_archive_goes() -> None:
    found = catalog([1, 20], [(2, 4), (5, 9), (13, 14), (21, 22)])
    with pytest.raises(MissingPieceError) as refused:
        found.plan(12)
    assert refused.value.reaches == 9
    assert str(refused.value) == (
        "revision 12 cannot be restored: the piece with revision 10 is missing. The archive can "
        "go up to revision 9, or from revision 20 on"
    )
    assert found.plan(9).until == 9
    assert found.plan(22).base.revision == 20


@pytest.mark.parametrize(
    ("bases", "revision", "text"),
    [
        ([], 5, "no base state"),
        ([], None, "no base state"),
        ([6], 5, "begins with revision 6"),
        ([3], 5, "up to revision 3"),
    ],
)
def test_what_the_archive_does_not_reach_is_refused(
    bases: list[int], revision: int | None, text: str
) -> None:
    with pytest.raises(MissingPieceError, match=text):
        catalog(bases, []).plan(revision)


def test_each_chain_of_random_pieces_is_whole_and_goes_as_far_as_it_can() -> None:
    chosen = random.Random(2)
    for _ in range(500):
        pieces = []
        for _ in range(chosen.randrange(12)):
            first = chosen.randrange(1, 30)
            pieces.append((first, first + chosen.randrange(8)))
        found = catalog([0], pieces)
        reached = 0
        for first, last in ends(found.chain(0)):
            assert first <= reached + 1 <= last
            reached = last
        held = {index for first, last in pieces for index in range(first, last + 1)}
        assert reached + 1 not in held


def test_clusters_are_the_first_part_of_a_name() -> None:
    assert cluster_ids(["b/pieces/1", "a/bases/1", "a/pieces/2", "readme", "x/y"]) == ["a", "b"]
