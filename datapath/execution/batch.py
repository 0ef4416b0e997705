"""What the pipeline executes together."""

from __future__ import annotations

import msgspec

from datapath.execution.tail import PendingAnswer
from datapath.records import Entry


class Batch(msgspec.Struct):
    """What was executed together, and becomes one record. `first_index`: of its first entry.

    `in_sync`: how many replicas are; `copies`: how many must hold it. `next_index`: of its next
    entry. `size_bytes` of its entries; `reserved_bytes`: so much the disk has room for.
    `has_repeats`: among its answers.
    """

    first_index: int
    in_sync: int
    copies: int
    next_index: int
    entries: list[Entry] = []
    answers: list[PendingAnswer] = []
    size_bytes: int = 0
    reserved_bytes: int = 0
    has_repeats: bool = False
