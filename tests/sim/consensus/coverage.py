"""Which situations a run of the simulator of consensus has reached."""

from __future__ import annotations

SITUATIONS = (
    "leader elected", "view committed", "proposal committed", "proposal refused", "read answered",
    "request without an answer", "truncation", "voter added", "voter removed",
    "crash", "power cut", "power cut of all", "crash at a step", "restart", "pause", "stutter",
    "unsynced writes lost", "failed fsync", "ended: failed fsync", "ended: disk full",
    "one-way cut", "pair cut", "isolation", "leader isolated", "split",
    "split of five voters, 2|3", "split 2|3, the leader among the two",
    "split 2|3, the three elected another leader", "swizzle", "broken connection",
    "stalled connection", "slow network", "far link", "slow disk", "disk stall", "full disk",
    "clock rate change",
    "addition asked for", "removal asked for", "two operators at once", "added again",
    "stranger started", "address moved", "addresses swapped", "flood",
    "change behind a queue", "change made", "change judged in front of a queue",
    "change dropped in the queue", "step waited for the one before",
    "step waited for voters that answer", "deposed during a change",
    "old copy put back", "old copy refused", "quiet beside outsiders",
    "quiet beside a removed member", "quiet with one alone",
    "snapshot sent",
    *(f"founders: {n}" for n in range(1, 6)),
)  # fmt: skip
