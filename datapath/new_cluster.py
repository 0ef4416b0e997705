"""Where the log of a cluster begins that is made of another one's data, by a restore or a recovery.

B2: what the former cluster has given out after the state that was kept is not known: revisions, and
with them lock tokens and ETags, and epochs. The new one goes on above all of them, by a margin that
is told. Nobody can have given out more than `MAX_REVISIONS_PER_S` since the state was read; the
fixed part of the margin makes up for clocks that are wrong by eleven days. The part that grows with
the age also keeps two clusters apart that are restored from one backup, one after the other
(docs/decisions/0032-backup-and-restore.md).
"""

from __future__ import annotations

from typing import NamedTuple

REVISION_MARGIN = 10**12
MAX_REVISIONS_PER_S = 10**6
EPOCH_MARGIN = 10**6
MAX_EPOCHS_PER_S = 1
MAX_FIRST_REVISION = 2**52
"""Half of what JSON's numbers hold exactly in every language."""


class Position(NamedTuple):
    """A place in a log: the revision, which is the index, and the epoch of an entry."""

    revision: int
    epoch: int


def begin_after(state: Position, age_s: float) -> Position:
    """Return the position after which a new cluster's log begins (B2).

    `state` is that of the data; `age_s` how long ago it was read, by the machines' clocks (below
    0, as where a clock was set back, counts as 0). Raises ValueError: revisions would be used up.
    """
    age = max(0, int(age_s) + 1)
    index = state.revision + REVISION_MARGIN + age * MAX_REVISIONS_PER_S
    if index > MAX_FIRST_REVISION:
        raise ValueError(
            f"the new cluster would begin at revision {index}, above {MAX_FIRST_REVISION}: the state is "
            f"at revision {state.revision}, and {age} s old by the clock of this machine; set the "
            "clock right, if it is wrong"
        )
    return Position(index, state.epoch + EPOCH_MARGIN + age * MAX_EPOCHS_PER_S)
