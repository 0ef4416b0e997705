"""Histories of a true store, made at random, are accepted; with one lie in them they are not.

The maker knows when each operation took effect, which the checker has to find out. The lie is one
read of what was true before the last write, although that had ended when the read began: nothing
can explain it, since each value is written once (but absence may be explained by another delete).
"""

from __future__ import annotations

import heapq
import random
from pathlib import Path

import pytest

from tests.support.history import History, Operation, check_many

HISTORIES = 150
OPERATIONS = 120
CLIENTS = 5
KEYS = [f"g{group}/{key}" for group in range(2) for key in "abc"]


class Store:
    """The true store, and what it held: each key's (value, revision) over time."""

    def __init__(self) -> None:
        self.revision = 0
        self.items: dict[str, tuple[str, int]] = {}
        self.writes: dict[str, list[tuple[Operation, tuple[str, int] | None]]] = {}

    def write(self, operation: Operation) -> tuple[bool, bool]:
        """Execute a write; return (whether the condition held, whether the key was there)."""
        key = operation.key
        held = self.items.get(key)
        if (operation.if_absent and held) or (operation.if_any and not held):
            return False, held is not None
        if operation.if_revision is not None and (not held or held[1] != operation.if_revision):
            return False, held is not None
        if operation.kind == "put" or held:
            self.revision += random.Random(self.revision).randint(1, 3)
            self.writes.setdefault(key, []).append((operation, held))
        if operation.kind == "put":
            self.items[key] = (operation.value, self.revision)
        else:
            self.items.pop(key, None)
        return True, held is not None


def make_history(seed: int, *, lying: bool) -> History:
    """Return a history."""
    rng = random.Random(seed)
    history = History(f"{'lying' if lying else 'true'} {seed}")
    store = Store()
    lies: list[tuple[Operation, tuple[str, int] | None]] = []
    # (time, order, what): an operation's effect, or its end; a client calls again at its end.
    queue: list[tuple[int, int, Operation | int]] = [
        (client, client, client) for client in range(CLIENTS)
    ]
    order, unknown = CLIENTS, 0
    while queue:
        now, _, what = heapq.heappop(queue)
        order += 1
        if isinstance(what, Operation):
            execute(store, what, now + rng.randint(0, 20), lies)
            continue
        if len(history) == OPERATIONS:
            continue
        operation = draw(rng, history, store, what, now)
        effect = now + rng.randint(0, 20)
        end = effect + 20
        if operation.kind in {"put", "delete"} and rng.random() < 0.1:
            operation.unknown(effect)
            unknown += 1
            if rng.random() < 0.6:
                queue.append((effect + rng.choice((0, 5, 500)), order, operation))
            what = CLIENTS + unknown
        else:
            queue.append((effect, order, operation))
        queue.append((end + rng.randint(1, 20), -order, what))
        heapq.heapify(queue)
    if not lying:
        return history
    deleted = {operation.key for operation in history.operations if operation.kind == "delete"}
    lies = [(read, before) for read, before in lies if before or read.key not in deleted]
    operation, before = rng.choice(lies)
    operation.found, operation.revision = before or (None, 0)
    return history


def draw(rng: random.Random, history: History, store: Store, client: int, now: int) -> Operation:
    key = rng.choice(KEYS)
    _, revision = store.items.get(key, ("", 1))
    dice = rng.random()
    if dice < 0.35:
        return history.get(client, key, now)
    if dice < 0.45:
        return history.range(client, now, prefix=key[:3])
    if dice < 0.55:
        return history.delete(client, key, now, if_revision=rng.choice((None, revision)))
    condition = rng.choice(
        ({}, {}, {"if_absent": True}, {"if_any": True}, {"if_revision": revision})
    )
    return history.put(client, key, f"v{len(history)}", now, **condition)


def execute(
    store: Store,
    operation: Operation,
    end: int,
    lies: list[tuple[Operation, tuple[str, int] | None]],
) -> None:
    """Let an operation take effect, and tell its client, if that still listens."""
    if operation.kind == "range":
        items = sorted(store.items.items())
        found = [(key, *item) for key, item in items if key.startswith(operation.prefix)]
        operation.listed(end, found, revision=store.revision)
        return
    held = store.items.get(operation.key)
    if operation.kind == "get":
        operation.got(end, *(held or (None, 0)))
        writes = store.writes.get(operation.key)
        if writes:
            last, before = writes[-1]
            if last.outcome == "ok" and (last.return_ns or 0) < operation.call_ns:
                lies.append((operation, before))
        return
    fits, was_there = store.write(operation)
    if operation.outcome == "unknown":
        return
    if not fits:
        operation.condition_failed(end, seen_revision=held[1] if held else 0)
    elif operation.kind == "put":
        operation.done(end, revision=store.revision, created=not was_there)
    else:
        operation.removed(end, deleted=was_there, revision=store.revision)


@pytest.mark.parametrize("lying", [False, True], ids=["true", "lying"])
def test_random_histories(lying: bool, tmp_path: Path) -> None:
    first = random.SystemRandom().randrange(10**6)
    histories = [make_history(first + number, lying=lying) for number in range(HISTORIES)]
    wanted = "violation" if lying else "linearizable"
    verdicts = check_many(histories, tmp_path, timeout_s=20)
    wrong = [str(verdict) for verdict in verdicts if verdict.status != wanted]
    assert not wrong, "\n".join(wrong)
