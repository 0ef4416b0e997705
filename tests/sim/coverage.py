"""Which situations a run has reached. A big run that never reaches one of them proves less."""

from __future__ import annotations

from collections import Counter

ENOUGH_SCHEDULES = 1000
REMOVALS = (
    "done", "unknown", "is_primary", "membership_pending", "no_majority", "no_primary",
    "unknown_node", "unsafe_removal",
)  # fmt: skip
REFUSALS = ("not_enough_copies", "overloaded", "precondition_failed", "storage_full")
UNKNOWN = ("not_enough_copies", "timeout", "unknown_outcome")
LASTING = (
    "alone",
    "dead",
    "deaf to",
    "deaf to consensus",
    "no consensus",
    "no disk",
    "no majority",
)
SITUATIONS = (
    "view change", "take-over", "take-over by the primary itself", "handover", "handover given up",
    "shrink", "grow", "addmember", "removemember", "confirm", "proposal refused",
    "unknown: takes effect at once", "unknown: takes effect later", "unknown: never takes effect",
    "epoch opened", "step down", "truncation", "log replay", "redial", "late delivery",
    "snapshot begun", "snapshot installed", "lease expired", "gave way", "stall noticed",
    "waited for own promise", "promise withheld", "refused as fenced", "cut tail start",
    "cut tail yields", "incomplete start", "damage repaired", "told of its loss", "old copy",
    "put back", "alone with a loss that is noted", "reminded of its loss",
    "recovery: complete", "recovery: a loss is told or feared",
    "consensus not heard", "not proposed after all",
    "crash", "power cut", "pause",
    "one-way cut", "isolation", "consensus cut", "disk stall", "full disk", "damage", "lost tail",
    "too few in sync", "restart", "unsynced writes lost", "torn tail", "failed fsync", "swizzle",
    "split", "partial partition", "slow agreement", "witness down", "no majority", "outgrown",
    "clock rate change", "clock stopped", "left behind", "confirmed",
    "confirmed without a clock or a lease", "slow network", "far link", "slow disk",
    "broken connection",
    *(f"replicas: {n}" for n in range(1, 6)), *(f"witnesses: {n}" for n in range(3)),
    *(f"lasting: {kind}" for kind in LASTING),
    "cut off", "client: first answer again", "client: unknown outcome",
    "client: timeout", "client: asked twice", "client: read at a backup",
    "client: reads share a question", "client: an answer to a question that was given up",
    "client: no read without a lease", "client: put failed_condition", "client: put unknown",
    "client: put not_applied", "client: forwarded", "client: a link ended under a call",
    *(f"operator: removal {said}" for said in REMOVALS),
    *(f"operator: addition {said}" for said in ("done", "unknown", "removed")),
    "operator: removed by force",
    *(f"client: a keyed write is refused: {code}" for code in REFUSALS),
    *(f"client: without a key: {code}" for code in REFUSALS),
    *(f"client: unknown: {code}" for code in UNKNOWN), "client: recalled by a forwarder",
    "client: an attempt of a forwarder without a key is uncertain",
    "client: an attempt of a forwarder is uncertain", "client: idempotency_key_expired",
    "lease: ended by itself", "lease: ended in another epoch than it began", "lease: ended late",
    "lease: its primary stood still",
    "client: keepalive failed_condition", "client: call of a lease found out",
    "client: revoke: lease_not_found", "client: fenced: lease_not_found",
    "lock: fenced write", "client: fenced: lock_lost", "client: release: lock_lost",
    "client: acquire: lock_held", "client: acquire: lease_not_found", "lock: waited for",
    "lock: passed on to one that waited",
    "watch: read the log", "watch: resumed after a crash", "watch: events lost on their way",
    "watch: ahead of its node", "watch: history gone here", "watch: history gone everywhere",
    "watch: history gone amid a watch",
    "archive: a step failed", "archive: its store was away", "archive: gap found",
    "archive: a put landed late", "archive: a put was not answered", "archive: the log lacks it",
    "archive: begun anew",
    "caller: a right was revoked", "caller: read by rights of some age",
    *(f"caller: {kind} {said}" for kind in ("write", "read", "stale", "repeat")
      for said in ("done", "forbidden", "unauthenticated")),
    "trimmed while a snapshot is under way",
    "address moved", "addresses swapped", "all moved at once", "operator: move done",
    "operator: move unknown", "an old file is refused", "moved: by a peer",
    "moved: by its own member", "cannot listen", "not asked: second",
    *(f"link refused: {why}" for why in ("another node", "address", "cluster", "member", "second")),
    *(f"impostor: {kind}" for kind in ("clone", "stranger", "namesake", "other data", "emptied")),
    "clone where its original was", "clone believed where the move is not known",
    "dialled a clone", "impostor at a member's address", "clone refused: address",
    "clone refused: second", "twin refused: second", "stranger refused: cluster",
    "namesake refused: cluster",
    "other data refused: data", "emptied refused: cluster",
)  # fmt: skip


def missing(
    seen: Counter[str], schedules: int, situations: tuple[str, ...] = SITUATIONS
) -> list[str]:
    """Return the situations that a big enough run has not reached."""
    if schedules < ENOUGH_SCHEDULES:
        return []
    return [name for name in situations if not seen[name]]


def table(seen: Counter[str], situations: tuple[str, ...] = SITUATIONS) -> str:
    """Format the counts."""
    names = [*situations, *sorted(set(seen) - set(situations))]
    width = max(map(len, names))
    lines = [f"{name:<{width}} {seen[name]:>10}" for name in names]
    half = (len(lines) + 1) // 2
    right = [*lines[half:], ""]
    return "\n".join(f"{left}    {right[number]}" for number, left in enumerate(lines[:half]))
