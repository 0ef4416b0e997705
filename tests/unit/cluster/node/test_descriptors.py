"""How a limit of open files is shared out."""

from __future__ import annotations

import pytest

from cluster.api.settings import RESERVED_CONNECTIONS, HttpSettings
from cluster.node.descriptors import MIN_CLIENT_CONNECTIONS, TooFewDescriptorsError, share_out


def test_with_enough_nothing_is_cut() -> None:
    shared = share_out(65_536, nodes=3, segments=16, watchers=10_000)
    assert shared.max_watchers == 10_000
    assert shared.max_connections == HttpSettings().max_connections
    assert shared.reserved_connections == RESERVED_CONNECTIONS
    assert shared.cut == ""


@pytest.mark.parametrize("limit", [256, 512, 1024, 4096])
def test_what_is_given_out_never_exceeds_the_limit(limit: int) -> None:
    shared = share_out(limit, nodes=3, segments=16, watchers=10_000)
    given = shared.max_connections + shared.reserved_connections + shared.max_unauthenticated
    given += shared.max_watchers
    spare = shared.max_connections + shared.max_watchers - MIN_CLIENT_CONNECTIONS
    assert shared.max_watchers == spare // 4
    assert shared.max_connections >= MIN_CLIENT_CONNECTIONS
    assert given + 64 + 16 + 32 <= limit
    assert str(limit) in shared.cut
    assert str(shared.max_connections) in shared.cut
    assert f" and {shared.max_watchers} watchers" in shared.cut


def test_who_wants_no_watchers_leaves_their_place_to_others() -> None:
    assert share_out(1024, nodes=3, segments=16).max_watchers == 0
    assert share_out(65_536, nodes=3, segments=16, watchers=5).max_watchers == 5


@pytest.mark.parametrize(("limit", "held"), [(256, 31), (1024, 339), (65_536, 1800)])
def test_the_log_held_for_a_snapshot_leaves_clients_room(limit: int, held: int) -> None:
    shared = share_out(limit, nodes=3, segments=8, held_segments=1800)
    assert 8 < shared.log_segments <= held
    assert shared.max_connections >= MIN_CLIENT_CONNECTIONS
    given = shared.max_connections + shared.reserved_connections + shared.max_unauthenticated
    assert given + 64 + shared.log_segments + 32 <= limit


def test_too_few_are_refused_with_how_many_it_takes() -> None:
    for segments in (16, 4096):
        with pytest.raises(TooFewDescriptorsError) as refusal:
            share_out(128, nodes=3, segments=segments)
        needed = int(str(refusal.value).split("about ")[1].split(" ")[0])
        assert share_out(needed, nodes=3, segments=segments).max_connections >= 16
