"""The log does what a list would do, whatever is done to it, and across restarts."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from datapath.records import Record
from datapath.storage.log import Log
from tests.unit.datapath.storage.storage_faults import (
    SEGMENT_SIZE_BYTES,
    PowerLossFiles,
    abandon,
    held,
    record,
)

Step = tuple[str, int, int]

KINDS = [
    "append",
    "append",
    "append durable",
    "sync",
    "truncate",
    "drop",
    "reset",
    "reopen",
    "kill",
]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.integers(1, 6),
        st.integers(0, 1500),
    ),
    max_size=40,
)


class Model:
    """What the log should hold."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.base = (0, 0)
        self.before = (0, 0)  # (index, epoch) before the first record held
        self.epoch = 1

    @property
    def last(self) -> tuple[int, int]:
        if self.records:
            return self.records[-1].last_index, self.records[-1].epoch
        return self.before

    def grow(self, count: int, size: int) -> list[Record]:
        fresh: list[Record] = []
        first = self.last[0] + 1
        for number in range(count):
            if (size + number) % 7 == 0:
                self.epoch += 1
            fresh.append(record(first, entries=1 + size % 3, epoch=self.epoch, size=size // count))
            first = fresh[-1].last_index + 1
        return fresh


def check_equal(log: Log, model: Model) -> None:
    assert (log.last_index, log.last_epoch) == model.last
    assert (log.first_index - 1, log.base_epoch) == model.before
    assert held(log) == [item.data for item in model.records]
    known = {model.before[0]: model.before[1]}
    for item in model.records:
        known.update(dict.fromkeys(range(item.first_index, item.last_index + 1), item.epoch))
    for index in range(model.before[0] - 1, model.last[0] + 2):
        assert log.epoch_at(index) == known.get(index)
    starts: dict[int, int] = {}
    for item in model.records:
        starts.setdefault(item.epoch, item.first_index)
    assert log.epochs() == sorted(starts.items())


def reopen(directory: Path, model: Model) -> Log:
    return Log.open(
        directory,
        segment_size_bytes=SEGMENT_SIZE_BYTES,
        base_index=model.base[0],
        base_epoch=model.base[1],
    )


def drop(log: Log, model: Model, number: int) -> None:
    if not model.records:
        return
    at = model.records[number % len(model.records)]
    log.drop_before(at.first_index)
    assert log.first_index <= at.first_index
    while model.records and model.records[0].last_index < log.first_index:
        gone = model.records.pop(0)
        model.before = (gone.last_index, gone.epoch)
    model.base = max(model.base, model.before)


def truncate(log: Log, model: Model, number: int) -> None:
    open_to_it = [item for item in model.records if item.first_index > model.base[0]]
    if open_to_it:
        at = open_to_it[number % len(open_to_it)]
        log.truncate(at.first_index)
        model.records = [item for item in model.records if item.first_index < at.first_index]
        model.epoch = max(model.epoch, model.last[1])


def reset(log: Log, model: Model, number: int) -> None:
    model.epoch += 1
    model.base = model.before = (number, model.epoch)
    model.records = []
    log.reset(number, model.epoch)


@given(STEPS)
@example([("append", 1, 0), ("truncate", 1, 0), ("append", 1, 1499), ("reset", 1, 0)])
@settings(max_examples=80, deadline=None)
def test_behaves_like_a_list_of_records(steps: list[Step]) -> None:
    changes: dict[str, Callable[[Log, Model, int], None]] = {
        "drop": drop,
        "truncate": truncate,
        "reset": reset,
    }
    with tempfile.TemporaryDirectory() as name:
        directory, model = Path(name) / "log", Model()
        log = reopen(directory, model)
        for kind, count, number in steps:
            if kind.startswith("append"):
                fresh = model.grow(count, number)
                log.append(fresh, durable=kind.endswith("durable"))
                model.records += fresh
            elif kind == "sync":
                log.sync()
            elif kind == "reopen":
                log.close()
                log = reopen(directory, model)
            elif kind == "kill":  # the page cache outlives the process
                abandon(log)
                log = reopen(directory, model)
            else:
                changes[kind](log, model, number)
            assert not log.tail_cut
            check_equal(log, model)
        log.close()


@given(STEPS, st.randoms(use_true_random=False))
@example([("append durable", 3, 50), ("append", 2, 5)], random.Random(0))  # the least that tells
@settings(max_examples=80, deadline=None)
def test_a_power_cut_loses_nothing_synced_and_makes_nothing_up(
    steps: list[Step], chance: random.Random
) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory, model, files = Path(name) / "log", Model(), PowerLossFiles()
        log = Log.open(directory, segment_size_bytes=SEGMENT_SIZE_BYTES, files=files)
        synced = 0
        for kind, count, number in steps:
            if kind.startswith("append"):
                fresh = model.grow(count, number)
                log.append(fresh, durable=kind.endswith("durable"))
                model.records += fresh
                if kind.endswith("durable"):
                    synced = len(model.records)
            elif kind in ("sync", "reopen", "kill"):
                log.sync()
                synced = len(model.records)
            elif kind == "truncate":
                truncate(log, model, number)
                synced = min(synced, len(model.records))
        abandon(log)
        files.lose_power(directory, Path(name) / "after", chance)
        after = Log.open(Path(name) / "after", segment_size_bytes=SEGMENT_SIZE_BYTES)
        found = held(after)
        assert found == [item.data for item in model.records[: len(found)]]
        assert len(found) >= synced
        # What is left is a log like any other.
        after.append([record(after.last_index + 1, epoch=max(after.last_epoch, 1))], durable=True)
        after.close()
        again = Log.open(Path(name) / "after", segment_size_bytes=SEGMENT_SIZE_BYTES)
        assert held(again)[:-1] == found
        assert not again.tail_cut
        again.close()
