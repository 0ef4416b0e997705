"""LogIndex against a plain list of epochs, over random histories."""

from __future__ import annotations

from random import Random

import pytest

from datapath.errors import SafetyError
from datapath.protocol.log_index import LogIndex


class _Model:
    """Epochs of entries 1, 2, …; entries up to `base` are trimmed."""

    def __init__(self, epochs: list[int], base: int) -> None:
        self.epochs = epochs
        self.base = base

    def index(self) -> LogIndex:
        runs: list[tuple[int, int]] = []
        for position in range(self.base + 1, len(self.epochs) + 1):
            epoch = self.epochs[position - 1]
            if not runs or runs[-1][0] != epoch:
                runs.append((epoch, position))
        base_epoch = self.epochs[self.base - 1] if self.base else 0
        return LogIndex.from_runs(self.base, base_epoch, len(self.epochs), runs)


def _history(random: Random, shared: list[int]) -> list[int]:
    """Make a log that starts as another one did, and goes on in epochs of its own."""
    epochs = shared[: random.randint(0, len(shared))]
    epoch = epochs[-1] if epochs else 0
    for _ in range(random.randint(0, 4)):
        epoch += random.randint(1, 3)
        epochs += [epoch] * random.randint(1, 4)
    return epochs


def test_match_finds_the_last_common_entry_or_what_is_known() -> None:
    """Two logs that hold the same (index, epoch) are equal up to there; so are the models' here."""
    random = Random(7)
    found = 0
    for _ in range(10_000):
        shared = sorted(random.choices(range(1, 6), k=random.randint(0, 10)))
        mine = _Model(_history(random, shared), 0)
        mine.base = random.randint(0, len(mine.epochs))
        theirs = _history(random, shared)
        common = 0
        while common < min(len(theirs), len(mine.epochs)) and theirs[common] == mine.epochs[common]:
            common += 1
        if any(
            mine.epochs[i] == theirs[i] for i in range(common, min(len(theirs), len(mine.epochs)))
        ):
            continue  # two primaries would have written one epoch
        known = random.randint(0, common)
        peer = _Model(theirs, 0).index()
        match = mine.index().match(len(theirs), peer.runs_from(known + 1), known)
        expected = common if common >= max(known, mine.base) else known
        assert match == expected, (mine.epochs, mine.base, theirs, known)
        found += match > known
    assert found > 500


@pytest.mark.timeout(5)
def test_match_ends_when_the_entry_before_the_retained_ones_is_of_a_later_epoch() -> None:
    """Seed 643: it went round and round, and the node with it."""
    mine = LogIndex.from_runs(10, 5, 20, [(5, 11), (6, 15)])
    assert mine.match(12, [(3, 8), (4, 10)], 7) == 7


def test_a_log_after_random_changes_knows_what_a_plain_list_knows() -> None:
    random = Random(11)
    for _ in range(300):
        log, epochs, base = LogIndex(0, 0, 0), [0], 0
        for _ in range(30):
            last = len(epochs) - 1
            kind = random.randint(0, 5)
            if kind <= 2:
                count, epoch = random.randint(1, 4), epochs[-1] + random.randint(0, 1)
                log.append(last + 1, last + count, max(epoch, 1))
                epochs += [max(epoch, 1)] * count
            elif kind == 3 and last > base:
                start = random.randint(base + 1, last)
                log.truncate(start)
                del epochs[start:]
            elif kind == 4:
                first = random.randint(base + 1, len(epochs))
                log.trim(first)
                base = first - 1
            for index in range(len(epochs) + 2):
                held = base <= index < len(epochs)
                assert log.epoch_at(index) == (epochs[index] if held else None)
            assert (log.last_epoch, log.last_index) == log.last_position
            assert log.last_position == (epochs[-1], len(epochs) - 1)


def test_a_gap_a_falling_epoch_and_a_cut_of_trimmed_entries_are_refused() -> None:
    log = LogIndex.from_runs(5, 1, 8, [(2, 6)])
    with pytest.raises(SafetyError):
        log.append(10, 10, 2)
    with pytest.raises(SafetyError):
        log.append(9, 9, 1)
    with pytest.raises(SafetyError):
        log.truncate(5)


def test_the_runs_of_a_log_are_one_for_each_epoch_and_begin_where_asked() -> None:
    log = LogIndex(0, 0, 0)
    for first, last, epoch in ((1, 2, 1), (3, 3, 1), (4, 6, 3), (7, 7, 4)):
        log.append(first, last, epoch)
    assert log.runs_from(1) == [(1, 1), (3, 4), (4, 7)]
    assert log.runs_from(3) == [(1, 3), (3, 4), (4, 7)]
    assert log.runs_from(5) == [(3, 5), (4, 7)]
    assert log.runs_from(8) == []


def test_what_is_trimmed_leaves_the_runs_of_what_is_retained() -> None:
    log = LogIndex(0, 0, 0)
    for first, last, epoch in ((1, 3, 1), (4, 6, 3), (7, 7, 4)):
        log.append(first, last, epoch)
    log.trim(5)
    assert (log.base_index, log.base_epoch) == (4, 3)
    assert log.runs_from(1) == [(3, 5), (4, 7)]
    log.trim(20)  # beyond its end: nothing
    assert (log.base_index, log.base_epoch) == (4, 3)
    log.trim(8)
    assert (log.base_index, log.last_epoch, log.runs_from(1)) == (7, 4, [])
