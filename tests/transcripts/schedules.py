"""Ten key schedules of the protocol, each told step by step; what happens is in `NAME.txt`.

The nodes are the simulator's, with the production replica. The cluster is a, b and c, all in sync,
with the primary a in epoch 1, unless a schedule says otherwise. A schedule's docstring heads its
transcript.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable

from election.view import TakeOver
from tests.sim.script import Cluster

LINES_MAX = 120
"""A transcript is there to be read."""
_OMITTED = re.compile(r"  \w -> \w  Heartbeat|  \w is connected to|  \w: its proposal has ended")
_LEARNED = re.compile(r"\w learns view \d+")
_HOUSEKEEPING = re.compile(
    r" (session|cluster_id|incarnation|tail_cut|incomplete|writable|required)=\S+"
)


class Told(Cluster):
    """A cluster whose schedule tells what it does."""

    def __init__(self, n_nodes: int = 3) -> None:
        super().__init__(n_nodes)
        self.world.clockwork.transcript = deque()

    def say(self, step: str) -> None:
        """Put a step of the schedule into the transcript."""
        self.world.clockwork.note(f"== {step}")

    def lines(self) -> list[str]:
        """Return what happened, without times, heartbeats, and what repeats what is known."""
        found: list[str] = []
        known: set[str] = set()
        for noted in self.world.clockwork.transcript:
            line = noted[10:]
            learned = _LEARNED.search(line)
            if _OMITTED.search(line) or (learned and learned[0] in known):
                continue
            if learned:
                known.add(learned[0])
            line = _HOUSEKEEPING.sub("", line).rstrip()
            found.append(line.removeprefix("  ") if line.startswith("  ==") else line)
        return found

    def state(self) -> list[str]:
        """Return a line for each node that is up: its log, and whether it serves."""
        cores = [(node.id, node.replica.state) for node in self.world.nodes.values() if node.is_up]
        return [
            f"  {name}: entries ..{state.log.last_index} commit {state.commit_index}"
            f"{' serves' if self.serving() == name else ''}"
            for name, state in cores
        ]


def a_write() -> Told:
    """A write is acknowledged when every in-sync replica has it on disk (D1)."""
    cluster = Told()
    cluster.say("a executes an operation")
    cluster.write()
    return cluster


def backup_falls_out_and_comes_back() -> Told:
    """A backup that does not answer is removed from the in-sync set, and joins again (D3, D7)."""
    cluster = Told()
    cluster.say("nothing gets from c to a; a executes an operation")
    cluster.cut("c", "a")
    primary = cluster.world.primary()
    assert primary is not None
    primary.append(1)
    cluster.until(lambda: cluster.in_sync() == "ab")
    cluster.run(20)
    cluster.say("the cut heals")
    cluster.rejoin()
    cluster.until(cluster.is_whole)
    return cluster


def primary_crashes() -> Told:
    """A backup takes over; the old primary cuts off what nobody else has (E1, D6)."""
    cluster = Told()
    cluster.say("nothing gets from a to the others; a writes an entry that nobody else gets")
    cluster.cut("a", "b")
    cluster.cut("a", "c")
    cluster["a"].append(1)
    cluster.run(10)
    cluster.say("a crashes")
    cluster["a"].crash()
    cluster.until(lambda: cluster.serving() not in ("", "a"))
    cluster.run(30)
    cluster.say("the cut heals, and a starts again")
    cluster.rejoin()
    cluster["a"].start()
    cluster.until(cluster.is_whole)
    return cluster


def paused_primary_wakes() -> Told:
    """A primary that was paused is replaced; when it wakes, its lease is over (D4)."""
    cluster = Told()
    cluster.say("a is paused")
    cluster["a"].pause()
    cluster.until(lambda: cluster.serving() not in ("", "a"))
    cluster.run(30)
    cluster.say("a wakes")
    cluster["a"].resume()
    assert not cluster["a"].replica.may_execute()
    cluster.until(cluster.is_whole)
    return cluster


def handover() -> Told:
    """A planned change of primary: the in-sync set stays whole."""
    cluster = Told()
    cluster.write()
    cluster.say("a is asked to hand over to c")
    cluster["a"].hand_over("c")
    cluster.until(lambda: cluster.serving() == "c")
    cluster.until(cluster.is_whole)
    return cluster


def handover_to_a_backup_that_dies() -> Told:
    """A handover waits for what is not committed; when its backup dies, it is given up."""
    cluster = Told()
    cluster.say("nothing gets from b to a; a executes an operation, and is asked to hand over to b")
    cluster.cut("b", "a")
    cluster["a"].append(1)
    cluster["a"].hand_over("b")
    cluster.run(10)
    cluster.say("b crashes")
    cluster["b"].crash()
    cluster.until(lambda: cluster.seen["handover given up"] == 1)
    cluster.until(cluster.commits)
    return cluster


def snapshot() -> Told:
    """A replica that is behind the retained log gets a snapshot, then the rest of the log."""
    cluster = Told()
    cluster.say("c crashes, and the others write and trim their logs")
    cluster["c"].crash()
    cluster.until(lambda: cluster.in_sync() == "ab")
    cluster.write(3)
    for name in "ab":
        cluster[name].trim(cluster[name].replica.state.commit_index)
    cluster.say("c starts again")
    cluster["c"].start()
    cluster.until(cluster.is_whole)
    return cluster


def lost_tail() -> Told:
    """A primary whose disk lost its log's tail yields to a backup that has it (decision 2)."""
    cluster = Told()
    cluster.write(3)
    cluster.say("a crashes, and its disk loses the last two entries")
    cluster["a"].crash(cluster["a"].disk.durable.records[-2].first_index)
    cluster.say("a starts again")
    cluster["a"].start()
    cluster.until(lambda: cluster.serving() in ("b", "c"))
    cluster.until(cluster.is_whole)
    return cluster


def take_over_that_commits_late() -> Told:
    """While its own take-over may commit, a backup promises nothing (decision 1)."""
    cluster = Told(2)
    cluster.say("there are a and b; a is cut off from consensus, and b from a")
    cluster.cut_consensus("a")
    cluster.hold_proposals("b")
    cluster.isolate("b")
    cluster.until(lambda: cluster.held(TakeOver))
    cluster.say("b reaches a again; consensus has not decided yet")
    cluster.rejoin()
    cluster.run(300)
    assert cluster.serving() == ""
    cluster.say("consensus decides for b")
    cluster.let_proposals_through(held=True)
    cluster.report_unknown("b")
    cluster.until(lambda: cluster.serving() == "b")
    cluster.say("a reaches consensus again")
    cluster.mend_consensus("a")
    cluster.until(cluster.is_whole)
    return cluster


def primary_without_consensus() -> Told:
    """Without consensus a primary goes on while all answer; when one does not, it gives way."""
    cluster = Told()
    cluster.say("a is cut off from consensus, and executes an operation")
    cluster.cut_consensus("a")
    cluster.write()
    assert cluster.serving() == "a"
    cluster.say("c crashes")
    cluster["c"].crash()
    cluster.until(lambda: cluster.serving() == "b", within_ms=4000)
    cluster.run(30)
    return cluster


SCHEDULES: tuple[Callable[[], Told], ...] = (
    a_write,
    backup_falls_out_and_comes_back,
    primary_crashes,
    paused_primary_wakes,
    handover,
    handover_to_a_backup_that_dies,
    snapshot,
    lost_tail,
    take_over_that_commits_late,
    primary_without_consensus,
)


def transcript(schedule: Callable[[], Told]) -> str:
    """Run a schedule and return its transcript: the docstring, then what happened."""
    cluster = schedule()
    lines = [f"# {schedule.__doc__}", "", *cluster.lines(), "== in the end", *cluster.state()]
    return "\n".join([*lines, ""])
