"""Many schedules side by side: each seed's run is its own, whoever makes it and in which order."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from tests.sim.clockwork import ViolationError
from tests.sim.faults import Schedule
from tests.sim.histories import Histories

CHUNK_SEEDS = 50
"""So many seeds are one piece of work: short against a run, long against passing it on."""
CHUNKS_PER_WORKER = 20
"""A process ends after so many and another one takes its place: without the garbage collector,
which costs more, it grows and becomes slower."""
PROGRESS_S = 1.0
FAILURES_KEPT = 100
Failure = tuple[int, str]


@dataclass
class Outcome:
    """What came of a range of seeds. `failures`: (seed, violation), by seed, the first ones."""

    schedules: int = 0
    cpu_s: float = 0.0
    seconds: float = 0.0
    seen: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    histories: int = 0
    operations: int = 0
    unknown: int = 0

    def add(self, part: Outcome) -> None:
        """Take another range's outcome in."""
        self.schedules += part.schedules
        self.cpu_s += part.cpu_s
        self.seen.update(part.seen)
        self.histories += part.histories
        self.operations += part.operations
        self.unknown += part.unknown
        self.failures = sorted(self.failures + part.failures)[:FAILURES_KEPT]


def run_replicas(
    seeds: range, histories_every: int, schedule_type: type[Schedule] = Schedule
) -> Outcome:
    """Run these seeds of the replicas' schedules."""
    outcome, histories = Outcome(), Histories(histories_every)
    began = cpu_s()
    for seed in seeds:
        schedule = schedule_type(seed)
        try:
            outcome.seen.update(schedule.run())
            histories.add(schedule)
        except ViolationError as error:
            outcome.failures.append((seed, str(error)))
    outcome.failures += histories.check().items()
    outcome.histories, outcome.operations = histories.checked, histories.operations
    outcome.unknown = histories.unknown
    # A schedule is one big cycle of references, and collecting them while it runs costs a tenth.
    del schedule, histories
    gc.collect()
    outcome.schedules = len(seeds)
    outcome.cpu_s = cpu_s() - began
    return outcome


class PlainSchedule(Protocol):
    """A schedule without clients' histories."""

    def run(self) -> Counter[str]:
        """Run it; return what was seen. Raises ViolationError."""


def run_plain(seeds: range, schedule_type: Callable[[int], PlainSchedule]) -> Outcome:
    """Run these seeds of schedules of which Porcupine has nothing to check."""
    outcome = Outcome()
    began = cpu_s()
    for seed in seeds:
        try:
            outcome.seen.update(schedule_type(seed).run())
        except ViolationError as error:
            outcome.failures.append((seed, str(error)))
    gc.collect()
    outcome.schedules = len(seeds)
    outcome.cpu_s = cpu_s() - began
    return outcome


def cpu_s() -> float:
    """Return the CPU time of this process and of the checkers that it has started."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _prepare_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    gc.collect()
    gc.freeze()
    gc.disable()


def _chunks(start: int, count: int) -> Iterator[range]:
    for first in range(start, start + count, CHUNK_SEEDS):
        yield range(first, min(first + CHUNK_SEEDS, start + count))


def run_seeds(
    start: int,
    count: int,
    *,
    jobs: int,
    seconds: float | None = None,
    keep_going: bool = True,
    histories_every: int = 1,
    run_chunk: Callable[[range], Outcome] | None = None,
) -> Outcome:
    """Run seeds from `start` on, in `jobs` processes, until `count` or the time is over.

    Porcupine checks what clients were told in every n-th seed (`histories_every`; 0: in none).
    `run_chunk` runs the schedules of another simulator than the replica's.
    Without `keep_going` it ends soon after the first violation. An interrupt ends it, too.
    """
    total = Outcome()
    began = shown = time.monotonic()
    context = multiprocessing.get_context("spawn")
    run_chunk = run_chunk or partial(run_replicas, histories_every=histories_every)
    with (
        context.Pool(jobs, _prepare_worker, (), CHUNKS_PER_WORKER) as pool,
        contextlib.suppress(KeyboardInterrupt),
    ):
        for part in pool.imap_unordered(run_chunk, _chunks(start, count)):
            total.add(part)
            for seed, problem in part.failures:
                print(f"seed {seed}: {problem}", file=sys.stderr, flush=True)
            now = time.monotonic()
            total.seconds = now - began
            if now - shown >= PROGRESS_S:
                shown = now
                _show_progress(total, count)
            if (seconds is not None and total.seconds >= seconds) or (
                total.failures and not keep_going
            ):
                break
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return total


def _show_progress(total: Outcome, count: int) -> None:
    line = (
        f"{total.schedules} of {count} schedules, {total.schedules / total.seconds:.0f}/s, "
        f"{len(total.failures)} failed"
    )
    is_terminal = sys.stderr.isatty()
    print(line, end="\r" if is_terminal else "\n", file=sys.stderr, flush=True)


def default_jobs() -> int:
    """Return how many processes are of use here."""
    return os.cpu_count() or 1
