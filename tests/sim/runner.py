"""Many schedules side by side: each seed's run is its own, whoever makes it and in which order."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.sim.clockwork import ViolationError
from tests.sim.faults import Schedule

CHUNK_SEEDS = 50
"""So many seeds are one piece of work: short against a run, long against passing it on."""
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

    def add(self, part: Outcome) -> None:
        """Take another range's outcome in."""
        self.schedules += part.schedules
        self.cpu_s += part.cpu_s
        self.seen.update(part.seen)
        self.failures = sorted(self.failures + part.failures)[:FAILURES_KEPT]


def _run_chunk(seeds: range) -> Outcome:
    outcome = Outcome()
    began = time.process_time()
    for seed in seeds:
        try:
            outcome.seen.update(Schedule(seed).run())
        except ViolationError as error:
            outcome.failures.append((seed, str(error)))
    # A schedule is one big cycle of references, and collecting them while it runs costs a tenth.
    gc.collect()
    outcome.schedules = len(seeds)
    outcome.cpu_s = time.process_time() - began
    return outcome


def _prepare_worker() -> None:
    gc.collect()
    gc.freeze()
    gc.disable()


def _chunks(start: int, count: int) -> Iterator[range]:
    for first in range(start, start + count, CHUNK_SEEDS):
        yield range(first, min(first + CHUNK_SEEDS, start + count))


def run_seeds(
    start: int, count: int, *, jobs: int, seconds: float | None = None, keep_going: bool = True
) -> Outcome:
    """Run seeds from `start` on, in `jobs` processes, until `count` or the time is over.

    Without `keep_going` it ends soon after the first violation.
    """
    total = Outcome()
    began = shown = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs, _prepare_worker) as pool:
        for part in pool.imap_unordered(_run_chunk, _chunks(start, count)):
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
