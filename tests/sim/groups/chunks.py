"""A range of schedules of placement, as one piece of work, and what a run should have reached."""

from __future__ import annotations

from tests.sim.groups.schedule import Schedule
from tests.sim.runner import Outcome, run_plain

SITUATIONS = (
    *(f"machine: {kind}" for kind in (
        "down", "gone", "declared lost", "drain", "drain ended", "new")),
    *(f"{kind}: {how}" for kind in ("add", "hand_over", "remove") for how in ("done", "refused")),
    *(f"{kind}: witness" for kind in ("add", "remove")),
    "failed over", "a planner ended between two steps", "planners: 1", "planners: 2",
)  # fmt: skip


def run_chunk(seeds: range) -> Outcome:
    """Run these seeds."""
    return run_plain(seeds, Schedule)
