"""What clients were told, and what contradicts it at once: cheap checks without Porcupine.

They find less than the checker does, and say so in one sentence when they do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from datapath.operations import Result
from tests.sim.transactions import Asked, items_of
from tests.support.history import Operation


class Known(msgspec.Struct, frozen=True):
    """The newest write of a key that some ended operation knows of."""

    revision: int
    is_there: bool


class Claims:
    """Judges answers by those that had ended before the operation began (its `floors`)."""

    def __init__(self, fail: Callable[[str], None]) -> None:
        self._report = fail
        self._puts: dict[str, tuple[str, Operation]] = {}  # value -> the key, and who writes it
        self._not_written: set[str] = set()  # by transactions that carried out their other branch
        self._revisions: dict[str, int] = {}  # value -> the revision it was seen with
        self._writes: dict[int, Operation] = {}  # revision -> the write acknowledged with it
        self._known: dict[str, Known] = {}
        self._may_delete: dict[str, list[Operation]] = {}

    def fail(self, text: str) -> None:
        """What clients were told cannot be."""
        self._report(text)

    def floors(self) -> Mapping[str, Known]:
        """Return what is known now; keep it to judge an operation that begins now."""
        return self._known  # replaced, never changed

    def revision(self, key: str) -> int | None:
        """Return a revision to make a condition of."""
        known = self._known.get(key)
        return known.revision if known else None

    # -- operations begin

    def will_put(self, entry: Operation) -> None:
        """A put is asked for."""
        self._puts[entry.value] = entry.key, entry

    def will_delete(self, entry: Operation) -> None:
        """A delete is asked for."""
        self._may_delete.setdefault(entry.key, []).append(entry)

    def will_transact(self, entry: Operation, asked: Asked) -> None:
        """A transaction is asked for."""
        for key, value in asked.values:
            self._puts[value] = key, entry
        for key in asked.may_delete:
            self._may_delete.setdefault(key, []).append(entry)

    # -- and end

    def put(self, entry: Operation, floors: Mapping[str, Known]) -> None:
        """A put was acknowledged."""
        self._write(entry, floors)
        self._is_value(entry.key, entry.value, entry.revision)
        self._learn(entry.key, entry.revision, is_there=True)

    def deleted(self, entry: Operation, floors: Mapping[str, Known]) -> None:
        """A delete was acknowledged."""
        if entry.deleted:
            self._write(entry, floors)
            self._learn(entry.key, entry.revision, is_there=False)
        else:
            self._absent(entry, entry.key, floors)

    def transacted(
        self, entry: Operation, asked: Asked, result: Result, floors: Mapping[str, Known]
    ) -> None:
        """A transaction was carried out. T1, within its own answer."""
        if asked.txn is None:
            if entry.revision:
                self._revision_of(entry, asked.may_delete, floors)
            return
        succeeded, results = result.value
        before = {key: (value, revision) for key, value, revision in items_of(results[0])}
        for key, (value, revision) in before.items():
            self._found(key, value, revision, floors)
        for key in floors:
            if key.startswith(entry.prefix) and key not in before:
                self._absent(entry, key, floors)
        if succeeded is not asked.holds(items_of(results[0])):
            self.fail(f"T1: a transaction says {succeeded} of {before}: {asked}")
        if not succeeded:
            self._not_written.update(value for _, value in asked.values)
            return
        after = dict(before)
        for key, written in entry.writes:
            after.pop(key, None)
            if written is not None:
                after[key] = (written, entry.revision)
        shown = {key: (value, revision) for key, value, revision in items_of(results[-1])}
        if shown != after:
            self.fail(f"T1: a transaction saw {shown} after its writes, not {after}: {asked}")
        if entry.revision:
            self._revision_of(entry, [key for key, _ in entry.writes], floors)
        for key, written in entry.writes:
            if written is not None:
                self._is_value(key, written, entry.revision)
            self._learn(key, entry.revision, is_there=written is not None)

    def got(self, entry: Operation, floors: Mapping[str, Known]) -> None:
        """A get was answered."""
        if entry.found is None:
            self._absent(entry, entry.key, floors)
        else:
            self._found(entry.key, entry.found, entry.revision, floors)

    def listed(self, entry: Operation, floors: Mapping[str, Known]) -> None:
        """A range was answered."""
        items = {item.key: item for item in entry.items or ()}
        for item in items.values():
            self._found(item.key, item.value, item.revision, floors)
        for key in floors:
            if key.startswith(entry.prefix) and key not in items:
                self._absent(entry, key, floors)

    def condition_failed(self, entry: Operation, floors: Mapping[str, Known]) -> None:
        """A condition did not hold; the key had revision `entry.revision`, 0: was absent."""
        if entry.revision:
            self._not_older(entry.key, entry.revision, floors)
            self._learn(entry.key, entry.revision, is_there=True)
        else:
            self._absent(entry, entry.key, floors)

    def is_last(self, entry: Operation) -> None:
        """A range over the state at the end: what was acknowledged last is still there."""
        items = {item.key: item.revision for item in entry.items or ()}
        for key, known in self._known.items():
            if not key.startswith(entry.prefix):
                continue
            if (
                known.is_there
                and items.get(key, 0) < known.revision
                and (key in items or not self._deletes(key))
            ):
                self.fail(f"{key} with revision {known.revision} is lost at the end")
            if not known.is_there and 0 < items.get(key, 0) < known.revision:
                self.fail(f"the delete {known.revision} of {key} is lost at the end")

    # -- what may not be

    def _write(self, entry: Operation, floors: Mapping[str, Known]) -> None:
        self._revision_of(entry, [entry.key], floors)

    def _revision_of(
        self, entry: Operation, keys: Iterable[str], floors: Mapping[str, Known]
    ) -> None:
        other = self._writes.setdefault(entry.revision, entry)
        if other is not entry:
            self.fail(f"revision {entry.revision} was given to two writes: {other}, {entry}")
        for key in keys:
            known = floors.get(key)
            if known is not None and entry.revision <= known.revision:
                self.fail(
                    f"{entry.kind} of {key} has revision {entry.revision}, and {known.revision} "
                    "was known before it was asked for"
                )

    def _found(self, key: str, value: str, revision: int, floors: Mapping[str, Known]) -> None:
        self._is_value(key, value, revision)
        self._not_older(key, revision, floors)
        self._learn(key, revision, is_there=True)

    def _is_value(self, key: str, value: str, revision: int) -> None:
        written_to, put = self._puts.get(value, (None, None))
        if put is None or written_to != key:
            self.fail(f"{key} has value {value!r}, which nobody has put there")
        elif value in self._not_written:
            self.fail(f"T1: {key} has value {value!r} of a branch that was not carried out: {put}")
        elif put.outcome in ("not_applied", "failed_condition"):
            self.fail(f"{key} has value {value!r}, and its put was said to have ended: {put}")
        other = self._revisions.setdefault(value, revision)
        if other != revision:
            self.fail(
                f"D8: {value!r} of {key} is there with revision {revision}, and was with {other}: "
                "executed twice"
            )

    def _not_older(self, key: str, revision: int, floors: Mapping[str, Known]) -> None:
        known = floors.get(key)
        if known is not None and revision < known.revision:
            self.fail(
                f"{key} was read with revision {revision}, and {known.revision} was known before: "
                "stale"
            )

    def _absent(self, entry: Operation, key: str, floors: Mapping[str, Known]) -> None:
        known = floors.get(key)
        if known is not None and known.is_there and not self._deletes(key):
            self.fail(
                f"{key} was absent for a {entry.kind}, had revision {known.revision} before, and "
                "nobody may have deleted it"
            )

    def _deletes(self, key: str) -> bool:
        return any(
            item.outcome not in ("not_applied", "failed_condition")
            for item in self._may_delete.get(key, ())
        )

    def _learn(self, key: str, revision: int, *, is_there: bool) -> None:
        known = self._known.get(key)
        if known is None or known.revision < revision:
            self._known = {**self._known, key: Known(revision, is_there)}
