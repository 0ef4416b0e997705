"""`python -m tests.sim.joint`: run seeds, print what was reached, replay one."""

from __future__ import annotations

import sys
from functools import partial

from tests.sim.__main__ import add_histories, carry_out, make_parser
from tests.sim.__main__ import replay as replay_of
from tests.sim.joint.coverage import SITUATIONS
from tests.sim.joint.schedule import JointSchedule
from tests.sim.runner import run_replicas

PROGRAM = "tests.sim.joint"


def main() -> int:
    """Run the command line."""
    parser = make_parser(PROGRAM, __doc__, seeds=200)
    add_histories(parser)
    arguments = parser.parse_args()
    return carry_out(
        arguments,
        partial(replay_of, schedule_type=JointSchedule),
        SITUATIONS,
        PROGRAM,
        run_chunk=partial(
            run_replicas, histories_every=arguments.histories, schedule_type=JointSchedule
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
