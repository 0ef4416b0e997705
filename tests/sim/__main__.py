"""`python -m tests.sim`: run seeds, print what was reached, replay one."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.sim.clockwork import ViolationError
from tests.sim.coverage import missing, table
from tests.sim.faults import Schedule
from tests.sim.histories import Histories


def replay(seed: int, *, verbose: bool) -> str:
    """Run a seed again with its transcript; return the violation, or ""."""
    schedule = Schedule(seed, trace=True)
    problem = ""
    try:
        schedule.run()
    except ViolationError as error:
        problem = str(error)
    histories = Histories(every=0 if problem else 1)
    histories.add(schedule)
    problem = problem or histories.check().get(seed, "")
    if verbose or problem:
        print("\n".join(schedule.world.clockwork.transcript))
    return problem


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many schedules")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="replay this one, with its transcript")
    parser.add_argument("--keep-going", action="store_true", help="report all failing seeds")
    parser.add_argument(
        "--histories",
        type=int,
        default=1,
        metavar="N",
        help="let Porcupine check what clients were told in every n-th seed (0: never)",
    )
    parser.add_argument("-v", "--verbose", action="store_true")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        problem = replay(arguments.seed, verbose=arguments.verbose)
        print(f"seed {arguments.seed}: {problem or 'holds'}")
        return bool(problem)
    seen: Counter[str] = Counter()
    began = time.perf_counter()
    failed: list[tuple[int, str]] = []
    histories = Histories(arguments.histories)
    for seed in range(arguments.start, arguments.start + arguments.seeds):
        schedule = Schedule(seed)
        try:
            seen.update(schedule.run())
            histories.add(schedule)
        except ViolationError as error:
            failed.append((seed, str(error)))
            print(f"seed {seed}: {error}", flush=True)
            if not arguments.keep_going:
                replay(seed, verbose=True)
                break
        if histories.failed and not arguments.keep_going:
            break
    failed += sorted(histories.check().items())
    for verdict in histories.failed.values():
        print(verdict)
    seconds = time.perf_counter() - began
    print(table(seen))
    done = arguments.seeds if arguments.keep_going or not failed else seed - arguments.start + 1
    print(
        f"{done} schedules, {seen['simulated ms'] / 1000:.0f} simulated seconds, "
        f"{seen['events']} events in {seconds:.1f} s: {done / seconds:.0f} schedules/s, "
        f"{seen['simulated ms'] / 1000 / seconds:.0f} simulated s/s, "
        f"{seen['events'] / seconds:.0f} events/s"
    )
    print(histories)
    if failed:
        print(f"{len(failed)} failed; first: python -m tests.sim --seed {failed[0][0]}")
        return 1
    never = missing(seen, done)
    if never:
        print(f"never happened: {', '.join(never)}")
    return bool(never)


if __name__ == "__main__":
    sys.exit(main())
