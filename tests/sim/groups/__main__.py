"""`python -m tests.sim.groups`: run seeds, print what was reached, replay one."""

from __future__ import annotations

import sys

from tests.sim.__main__ import carry_out, make_parser, violation_of
from tests.sim.groups.chunks import SITUATIONS, run_chunk
from tests.sim.groups.schedule import Schedule

PROGRAM = "tests.sim.groups"


def replay(seed: int, *, verbose: bool) -> str:
    """Run a seed again with its transcript; return the violation, or ""."""
    schedule = Schedule(seed, trace=True)
    problem = violation_of(schedule)
    if verbose or problem:
        print("\n".join(schedule.transcript))
    return problem


def main() -> int:
    """Run the command line."""
    arguments = make_parser(PROGRAM, __doc__, seeds=200).parse_args()
    return carry_out(arguments, replay, SITUATIONS, PROGRAM, run_chunk=run_chunk)


if __name__ == "__main__":
    sys.exit(main())
