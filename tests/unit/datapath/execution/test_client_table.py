"""How long answers are remembered: by the cluster's own time, on a clock that the test drives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from datapath.errors import OperationUnknownError
from datapath.execution.client_table import MAX_FORGOTTEN_PER_OPERATION, ClientTable, client_key
from datapath.keyspaces import CLIENT_ORDER, CLIENTS
from datapath.operations import Operation
from datapath.settings import ClientTableBounds
from datapath.storage.store import Store

RETENTION_MS = 600_000
BOUNDS = ClientTableBounds(retention_ms=RETENTION_MS)


class Replica:
    """A table over a real store that commits at once. `clock_ms` is this node's own clock."""

    def __init__(self, directory: Path, clock_ms: float = 0.0) -> None:
        self.store = Store.open(directory, map_size_bytes=1 << 24)
        self.take_over(clock_ms)

    def take_over(self, clock_ms: float) -> None:
        """The next primary, with a clock of its own and the committed state."""
        self.clock_ms = clock_ms
        self.table = ClientTable(self.store, BOUNDS, lambda: self.clock_ms)

    def write(self, key: str) -> int:
        """Execute and commit an operation under a key; return its index."""
        index = self.store.applied_index + 1
        entry = self.table.remember(Operation("put", (b"k", b"v"), key), index, None, None)
        self.table.take()
        assert self.table.has_changed
        self.store.apply([[*entry, *self.table.summary()]], index, 1)
        return index

    def holds(self, key: str) -> bool:
        return self.store.get(CLIENTS, client_key(key)) is not None

    def refuses(self, first_after: int) -> bool:
        refusal = self.table.refusal(first_after, self.store.applied_index + 1)
        return isinstance(refusal, OperationUnknownError)


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    found = Replica(tmp_path / "store")
    yield found
    found.store.close()


def test_an_answer_is_kept_for_its_time_and_forgotten_with_the_next_operation_after_it(
    replica: Replica,
) -> None:
    first = replica.write("a")
    replica.clock_ms = RETENTION_MS - 1
    replica.write("b")
    assert replica.holds("a")
    assert not replica.refuses(first - 1)
    replica.clock_ms = RETENTION_MS
    assert replica.holds("a"), "nothing goes without a delta that says so"
    replica.write("c")
    assert not replica.holds("a")
    assert replica.refuses(first - 1)
    assert not replica.refuses(first)
    assert replica.holds("b")
    replica.clock_ms = 2 * RETENTION_MS - 1
    replica.write("d")
    assert [replica.holds(key) for key in "bcd"] == [False, True, True]


def test_the_time_goes_on_from_the_epoch_before_whatever_the_next_primarys_clock_says(
    replica: Replica,
) -> None:
    replica.write("a")
    replica.clock_ms = RETENTION_MS / 2
    replica.write("b")
    for clock_ms in (1e12, 5.0):  # another machine, up for thirty years, or for a moment
        replica.take_over(clock_ms)
        replica.write(f"at {clock_ms}")
        assert replica.holds("a")
    replica.clock_ms += RETENTION_MS / 2 - 1
    replica.write("c")
    assert replica.holds("a")
    replica.clock_ms += 1
    replica.write("d")
    assert not replica.holds("a")
    assert replica.holds("b")


def test_a_clock_that_stops_or_goes_back_forgets_nothing_early(replica: Replica) -> None:
    replica.write("a")
    replica.clock_ms = RETENTION_MS / 2
    replica.write("b")
    replica.clock_ms = 0
    replica.write("c")
    replica.clock_ms = RETENTION_MS
    replica.write("d")
    assert not replica.holds("a")
    assert replica.holds("b")
    assert replica.holds("c"), "it was kept at the time of b, not before"


def test_what_is_too_old_goes_a_bounded_number_at_a_time(replica: Replica) -> None:
    count = 3 * MAX_FORGOTTEN_PER_OPERATION
    for number in range(count):
        replica.write(f"old {number}")
    replica.clock_ms = RETENTION_MS
    for step in range(1, 4):
        replica.write(f"new {step}")
        held = len(replica.store.range(CLIENT_ORDER, b"", None, 2 * count))
        assert held == count - step * MAX_FORGOTTEN_PER_OPERATION + step
    assert not any(replica.holds(f"old {number}") for number in range(count))


def test_a_revision_that_was_not_reached_yet_is_not_taken_for_the_time_of_sending(
    replica: Replica,
) -> None:
    """An earlier attempt may then be older than it says, and forgotten."""
    last = replica.write("a")
    refusal = replica.table.refusal(last + 1, last + 1)
    assert refusal is not None
    assert refusal.code == "unknown_revision"
    assert replica.table.refusal(last, last + 1) is None


def test_the_oldest_goes_beyond_the_bytes_however_new_it_is(replica: Replica) -> None:
    first = replica.write("a")
    size_bytes = replica.table._size_bytes
    bounds = ClientTableBounds(retention_ms=RETENTION_MS, max_bytes=2 * size_bytes)
    replica.table = ClientTable(replica.store, bounds, lambda: replica.clock_ms)
    replica.write("b")
    assert replica.holds("a")
    replica.write("c")
    assert [replica.holds(key) for key in "abc"] == [False, True, True]
    assert replica.refuses(first - 1)


def test_a_record_tells_the_sums_only_if_they_have_changed(replica: Replica) -> None:
    assert not replica.table.has_changed
    replica.write("a")
    assert not replica.table.has_changed, "they were told with it"


def test_what_another_primary_has_forgotten_is_refused_before_the_own_epoch_is_open(
    replica: Replica,
) -> None:
    first = replica.write("a")
    here = ClientTable(replica.store, BOUNDS, lambda: 0.0)  # a backup's: its epoch never began
    replica.clock_ms += RETENTION_MS + 1
    replica.write("b")
    replica.write("c")
    assert not replica.holds("a")
    assert here.refusal(first - 1, replica.store.applied_index + 1) is None
    here.is_behind = True  # the tail says so with each entry of another primary
    refusal = here.refusal(first - 1, replica.store.applied_index + 1)
    assert isinstance(refusal, OperationUnknownError)
    assert here.refusal(replica.store.applied_index, replica.store.applied_index + 1) is None
