"""Which situations a run of replicas over real consensus has reached."""

from __future__ import annotations

SITUATIONS = (
    # Of consensus.
    "leader elected", "view committed", "proposal refused", "request without an answer",
    "took effect after its time", "consensus not heard", "not proposed after all",
    "voter added", "voter removed", "snapshot sent", "crash at a step", "ended: failed fsync",
    "ended: disk full", "leader isolated", "stalled connection", "witness down", "consensus cut",
    # Of the replicas.
    "view change", "take-over", "take-over by the primary itself", "handover", "shrink", "grow",
    "addmember", "removemember", "confirm", "epoch opened", "step down", "log replay",
    "snapshot installed", "gave way", "refused as fenced", "waited for own promise",
    "lease expired", "too few in sync", "crash", "power cut", "pause", "one-way cut", "isolation",
    "split", "swizzle", "cut off", "disk stall", "full disk", "failed fsync", "clock rate change",
    # Of the clients.
    "client: put ok", "client: put unknown", "client: put not_applied",
    "client: first answer again", "client: read at a backup", "client: forwarded",
    *(f"replicas: {n}" for n in range(1, 6)), *(f"witnesses: {n}" for n in range(3)),
    *(f"lasting: {kind}" for kind in ("alone", "dead", "deaf to", "no consensus", "no disk")),
)  # fmt: skip
