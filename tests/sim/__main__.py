"""`python -m tests.sim`: run seeds, print what was reached, replay one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any, Protocol

from tests.sim.clockwork import ViolationError
from tests.sim.coverage import SITUATIONS, missing, table
from tests.sim.faults import Schedule
from tests.sim.histories import Histories
from tests.sim.runner import Outcome, default_jobs, run_seeds

PROGRAM = "tests.sim"


def replay(seed: int, *, verbose: bool, schedule_type: type[Schedule] = Schedule) -> str:
    """Run a seed again with its transcript; return the violation, or ""."""
    schedule = schedule_type(seed, trace=True)
    problem = violation_of(schedule)
    histories = Histories(every=0 if problem else 1)
    histories.add(schedule)
    problem = problem or histories.check().get(seed, "")
    if verbose or problem:
        print("\n".join(schedule.world.clockwork.transcript))
    return problem


class Runnable(Protocol):
    """A schedule, of whichever simulator."""

    def run(self) -> object:
        """Run it. Raises ViolationError."""


def violation_of(schedule: Runnable) -> str:
    """Run a schedule; return the violation, or ""."""
    try:
        schedule.run()
    except ViolationError as error:
        return str(error)
    return ""


def report(
    outcome: Outcome, situations: tuple[str, ...] = SITUATIONS, program: str = PROGRAM
) -> int:
    """Print what came of it; return the exit code."""
    seen = outcome.seen
    simulated_s, seconds, done = seen["simulated ms"] / 1000, outcome.seconds, outcome.schedules
    if not done:
        print("no schedule has ended")
        return 1
    print(table(seen, situations))
    print(
        f"{done} schedules, {simulated_s:.0f} simulated seconds, {seen['events']} events in "
        f"{seconds:.1f} s: {done / seconds:.0f} schedules/s, {simulated_s / seconds:.0f} simulated "
        f"s/s; {done / outcome.cpu_s:.0f} schedules/s of one core"
    )
    if outcome.histories:
        print(
            f"{outcome.histories} histories of {outcome.operations} operations, {outcome.unknown} "
            f"of them unknown, were checked by Porcupine"
        )
    for seed, problem in outcome.failures:
        print(f"seed {seed}: {problem}")
    if outcome.failures:
        first = outcome.failures[0][0]
        print(f"{len(outcome.failures)} failed; replay: python -m {program} --seed {first}")
        return 1
    never = missing(seen, done, situations)
    if never:
        print(f"never happened: {', '.join(never)}")
    return bool(never)


def make_parser(program: str, description: str | None, seeds: int) -> argparse.ArgumentParser:
    """Return what the command lines of both simulators take; `seeds` is the default."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=description)
    parser.add_argument("--seeds", type=int, default=seeds, help="how many schedules")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=default_jobs(), help="how many processes")
    parser.add_argument("--seconds", type=float, help="end after so long")
    parser.add_argument("--seed", type=int, help="replay this one, with its transcript")
    parser.add_argument("--keep-going", action="store_true", help="report all failing seeds")
    parser.add_argument("-v", "--verbose", action="store_true")
    return parser


def add_histories(parser: argparse.ArgumentParser) -> None:
    """Add how often Porcupine checks."""
    parser.add_argument(
        "--histories",
        type=int,
        default=1,
        metavar="N",
        help="let Porcupine check what clients were told in every n-th seed (0: never)",
    )


def carry_out(
    arguments: argparse.Namespace,
    replay: Callable[..., str],
    situations: tuple[str, ...] = SITUATIONS,
    program: str = PROGRAM,
    **options: Any,
) -> int:
    """Replay a seed, or run many with `options` of `run_seeds`; return the exit code."""
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
        **options,
    )
    if outcome.failures and not arguments.keep_going:
        replay(outcome.failures[0][0], verbose=True)
    return report(outcome, situations, program)


def main() -> int:
    """Run the command line."""
    parser = make_parser(PROGRAM, __doc__, seeds=1000)
    add_histories(parser)
    arguments = parser.parse_args()
    return carry_out(arguments, replay, histories_every=arguments.histories)


if __name__ == "__main__":
    sys.exit(main())
