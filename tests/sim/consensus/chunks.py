"""A range of schedules of consensus, as one piece of work for `tests.sim.runner`."""

from __future__ import annotations

import gc

from tests.sim.clockwork import ViolationError
from tests.sim.consensus.schedule import Schedule
from tests.sim.runner import Outcome, cpu_s


def run_chunk(seeds: range) -> Outcome:
    """Run these seeds."""
    outcome = Outcome()
    began = cpu_s()
    for seed in seeds:
        try:
            outcome.seen.update(Schedule(seed).run())
        except ViolationError as error:
            outcome.failures.append((seed, str(error)))
    gc.collect()
    outcome.schedules = len(seeds)
    outcome.cpu_s = cpu_s() - began
    return outcome
