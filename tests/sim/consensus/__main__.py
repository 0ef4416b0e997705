"""`python -m tests.sim.consensus`: run seeds, print what was reached, replay one."""

from __future__ import annotations

import argparse
import sys

from tests.sim.__main__ import report
from tests.sim.clockwork import ViolationError
from tests.sim.consensus.chunks import run_chunk
from tests.sim.consensus.coverage import SITUATIONS
from tests.sim.consensus.schedule import Schedule
from tests.sim.runner import default_jobs, run_seeds

PROGRAM = "tests.sim.consensus"


def replay(seed: int, *, verbose: bool) -> str:
    """Run a seed again with its transcript; return the violation, or ""."""
    schedule = Schedule(seed, trace=True)
    problem = ""
    try:
        schedule.run()
    except ViolationError as error:
        problem = str(error)
    if verbose or problem:
        print("\n".join(schedule.world.clockwork.transcript))
    return problem


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog=f"python -m {PROGRAM}", description=__doc__)
    parser.add_argument("--seeds", type=int, default=500, help="how many schedules")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=default_jobs(), help="how many processes")
    parser.add_argument("--seconds", type=float, help="end after so long")
    parser.add_argument("--seed", type=int, help="replay this one, with its transcript")
    parser.add_argument("--keep-going", action="store_true", help="report all failing seeds")
    parser.add_argument("-v", "--verbose", action="store_true")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        problem = replay(arguments.seed, verbose=arguments.verbose)
        print(f"seed {arguments.seed}: {problem or 'holds'}")
        return bool(problem)
    outcome = run_seeds(
        arguments.start,
        arguments.seeds,
        jobs=arguments.jobs,
        seconds=arguments.seconds,
        keep_going=arguments.keep_going,
        run_chunk=run_chunk,
    )
    if outcome.failures and not arguments.keep_going:
        replay(outcome.failures[0][0], verbose=True)
    return report(outcome, SITUATIONS, PROGRAM)


if __name__ == "__main__":
    sys.exit(main())
