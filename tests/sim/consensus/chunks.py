"""A range of schedules of consensus, as one piece of work for `tests.sim.runner`."""

from __future__ import annotations

from tests.sim.consensus.schedule import Schedule
from tests.sim.runner import Outcome, run_plain


def run_chunk(seeds: range) -> Outcome:
    """Run these seeds."""
    return run_plain(seeds, Schedule)
