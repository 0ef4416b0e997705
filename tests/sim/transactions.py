"""Transactions that simulated clients ask for: drawn, carried out on paper, judged.

Each begins and ends with a list of all keys of its group, on either branch, so that its answer says
what stood there before its writes and after them.
"""

from __future__ import annotations

import random as random_module
from collections.abc import Callable
from typing import Any

import msgspec

from cluster.services.txn import (
    Comparison,
    DeleteRangeStep,
    DeleteStep,
    ListStep,
    PutStep,
    Txn,
    TxnRelation,
    TxnStep,
    compare,
    encode_txn,
)
from datapath.keyspaces import after_prefix
from datapath.operations import Operation

Items = list[tuple[str, str, int]]
Writes = list[tuple[str, str | None]]
CLEAR_LIMIT = 1000
KEYS_PER_GROUP = 3


def items_of(listed: Any) -> Items:
    """Return the items of a range's or a list's result."""
    items, _ = listed
    return [(key.decode(), value.decode(), revision) for key, value, revision, *_ in items]


class Asked(msgspec.Struct, frozen=True):
    """A transaction on the keys of a group; `txn` None: the group is removed by `delete_range`."""

    prefix: str
    txn: Txn | None

    def operation(self, repeat_key: str, min_copies: int, first_after: int) -> Operation:
        """Return what is sent."""
        start = self.prefix.encode()
        args: tuple[Any, ...] = (start, after_prefix(start), CLEAR_LIMIT)
        if self.txn is not None:
            args = (encode_txn(self.txn),)
        method = "delete_range" if self.txn is None else "txn"
        return Operation(method, args, repeat_key, "all", min_copies, first_after)

    @property
    def values(self) -> list[tuple[str, str]]:
        """The (key, value) that it may write."""
        steps = self.txn.then if self.txn else ()
        return [
            (step.key.decode(), (step.value or b"").decode())
            for step in steps
            if isinstance(step, PutStep)
        ]

    @property
    def may_delete(self) -> list[str]:
        """The keys that it may remove, of those that there are."""
        if self.txn is None:
            return [f"{self.prefix}k{number}" for number in range(KEYS_PER_GROUP)]
        removing = [
            step.key if isinstance(step, DeleteStep) else step.start
            for step in self.txn.then
            if isinstance(step, DeleteStep | DeleteRangeStep)
        ]
        return [key.decode() for key in removing]

    def holds(self, before: Items) -> bool:
        """Whether its comparisons hold of what stood there."""
        found = {key: (value, revision) for key, value, revision in before}
        return all(_holds(found, comparison) for comparison in self.txn.comparisons)  # type: ignore[union-attr]

    def writes(self, before: Items) -> Writes:
        """Return what it writes, of what stood there, where its comparisons hold."""
        written: Writes = []
        held = [key for key, _, _ in before]
        for step in self.txn.then if self.txn else ():
            match step:
                case PutStep(key, value):
                    written.append((key.decode(), (value or b"").decode()))
                case DeleteStep(key):
                    written += [(key.decode(), None)] if key.decode() in held else []
                case DeleteRangeStep(start, end):
                    written += [
                        (key, None)
                        for key in held
                        if start <= key.encode() and (end is None or key.encode() < end)
                    ]
        return written


def _holds(found: dict[str, tuple[str, int]], comparison: Any) -> bool:
    value, revision = found.get(comparison.key.decode(), (None, 0))
    if comparison.target == "value":
        seen = (value or "").encode()
        return value is not None and compare(comparison.relation, seen, comparison.operand)
    number = revision if comparison.target == "revision" else int(value is not None)
    return compare(comparison.relation, number, comparison.operand)


def draw(
    random: random_module.Random,
    prefix: str,
    keys: list[str],
    number: int,
    revision_of: Callable[[str], int | None],
) -> Asked:
    """Draw one. `revision_of`: the revision of a key that some client knows of."""
    if random.random() < 0.15:
        return Asked(prefix, None)
    listed = ListStep(prefix.encode(), after_prefix(prefix.encode()))
    comparisons = tuple(_comparison(random, random.choice(keys), revision_of, number)
                        for _ in range(random.choice((0, 1, 1, 2))))  # fmt: skip
    shuffled = random.sample(keys, len(keys))
    steps: list[TxnStep] = []
    for place, key in enumerate(shuffled[: random.randint(1, len(keys))]):
        kind = random.random()
        if kind < 0.7:
            steps.append(PutStep(key.encode(), f"t{number}.{place}".encode()))
        elif kind < 0.85:
            steps.append(DeleteStep(key.encode()))
        else:
            steps.append(DeleteRangeStep(key.encode(), key.encode() + b"\0"))
    return Asked(prefix, Txn(comparisons, (listed, *steps, listed), (listed,)))


def _comparison(
    random: random_module.Random, key: str, revision_of: Callable[[str], int | None], number: int
) -> Comparison:
    revision = revision_of(key)
    kind = random.random()
    if revision is None or kind < 0.4:
        return Comparison(key.encode(), "exists", "eq", random.randint(0, 1))
    if kind < 0.5:
        return Comparison(key.encode(), "value", "ne", f"t{number}.0".encode())
    relations: tuple[TxnRelation, ...] = ("eq", "eq", "ne", "lt", "gt")
    return Comparison(key.encode(), "revision", random.choice(relations), revision)
