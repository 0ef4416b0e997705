"""The history of what clients asked and were told, and the check that one copy explains it.

    history = History("seed 42")
    put = history.put(client=1, key="a/x", value="v1", now_ns=100)
    put.done(now_ns=200, revision=7, created=True)
    get = history.get(client=2, key="a/x", now_ns=150)
    get.got(now_ns=160, value="v1", revision=7)
    history.check(tmp_path).require()

Times are plain integers of one clock, in nanoseconds (a simulator's own will do): only their order
counts, and equal times count as concurrent. All keys are absent when a history begins. Values are
short texts, each written by one put only (`digest_of` makes one of a large value).

Operations whose outcome stays unknown, and those that never ended, are open to the history's end:
they may take effect at any time after their call, once, or never. What `not_applied` names must
never show. Repeats under one idempotency key are one operation, from the first call to the last
answer. Reads that failed are left out; stale reads need only return what was once written. Writes
with ack=local may be lost, and have no place here: give them keys of their own.

A transaction names the prefix that covers all of its keys, and what stood there before its writes.
The checker does not guess at one whose outcome is unknown: all operations on its prefix are left
out then. Find out what became of it (by its idempotency key) where that can be done. The same holds
of calls of leases and locks, and what has the same key; of a keep-alive, only itself is left out.

Check a kept file again: python -m tests.support.history FILE
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

import msgspec

from tests.support.go_tools import checker

LeaseKind = Literal[
    "grant", "keepalive", "revoke", "acquire", "withdraw", "release", "fenced", "look"
]
"""Of a lease, or of a lock.

`fenced` is a write that names a lock and a token; `look` a read of who holds a lock.
"""
Kind = Literal["put", "get", "delete", "range", "txn", LeaseKind]
Outcome = Literal["open", "ok", "failed_condition", "not_applied", "unknown", "failed"]
"""`open`: not ended yet, treated as `unknown`. `failed`: a read that gave nothing."""
Status = Literal["linearizable", "violation", "undecided"]

LEASE_KINDS: tuple[LeaseKind, ...] = get_args(LeaseKind)
TIMEOUT_S = 60.0
_NOT_SAID = -1
"""In place of the revision that a failed condition saw."""


def digest_of(value: bytes) -> str:
    """Return a short text in place of a large value."""
    return hashlib.blake2b(value, digest_size=8).hexdigest()


class Item(msgspec.Struct, array_like=True, gc=False):
    """One item of a range's answer."""

    key: str
    value: str
    revision: int


class Operation(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One operation of one client: what was asked, when, and what came of it.

    `revision` is a write's own; of a get, the value's; of a range, the store's at which it was
    read; of a failed condition, the key's (0: absent, -1: not said). Elsewhere 0 is "not said". The
    methods end it, once.
    """

    client: int
    kind: Kind
    call_ns: int
    key: str = ""
    value: str = ""
    if_revision: int | None = None
    if_any: bool = False
    if_absent: bool = False
    prefix: str = ""
    start: str = ""
    end: str = ""
    stale: bool = False
    note: str = ""  # for the picture: a node, a number of attempts, …
    outcome: Outcome = "open"
    return_ns: int | None = None
    revision: int = 0
    created: bool = False
    deleted: bool = False
    found: str | None = None
    items: list[Item] | None = None
    writes: list[tuple[str, str | None]] = []
    clears: bool = False
    count: int = 0
    lease: int = 0
    token: int = 0
    ttl_ms: int = 0
    code: str = ""

    def _end(self, now_ns: int, outcome: Outcome, *kinds: Kind) -> None:
        if self.outcome != "open":
            raise ValueError(f"ended as {self.outcome} before: {self}")
        if self.kind not in kinds:
            raise ValueError(f"a {self.kind} does not end so: {self}")
        if now_ns < self.call_ns:
            raise ValueError(f"ends at {now_ns}, before its call: {self}")
        self.outcome, self.return_ns = outcome, now_ns

    def done(self, now_ns: int, *, revision: int, created: bool) -> None:
        """A put is acknowledged. `created`: the key was not there before."""
        self._end(now_ns, "ok", "put")
        self.revision, self.created = revision, created

    def removed(self, now_ns: int, *, deleted: bool, revision: int = 0) -> None:
        """A delete is acknowledged. `deleted`: the key was there; only then `revision` counts."""
        self._end(now_ns, "ok", "delete")
        self.deleted, self.revision = deleted, revision

    def got(self, now_ns: int, value: str | None, revision: int = 0) -> None:
        """A get found this value, None if the key is absent."""
        self._end(now_ns, "ok", "get")
        self.found, self.revision = value, revision

    def listed(self, now_ns: int, items: Iterable[tuple[str, str, int]], *, revision: int) -> None:
        """A range found these (key, value, revision), all that there are, at this revision."""
        self._end(now_ns, "ok", "range")
        self.items, self.revision = [Item(*item) for item in items], revision

    def transacted(
        self,
        now_ns: int,
        items: Iterable[tuple[str, str, int]],
        writes: Iterable[tuple[str, str | None]],
        *,
        revision: int,
    ) -> None:
        """A transaction found these items with its prefix, and then wrote these; None: removed.

        `revision` is 0 if it wrote nothing.
        """
        self._end(now_ns, "ok", "txn")
        self.items, self.writes = [Item(*item) for item in items], list(writes)
        self.revision = revision

    def cleared(self, now_ns: int, count: int, *, revision: int) -> None:
        """All keys with its prefix are removed; there were `count`. `revision`: 0 for none."""
        self._end(now_ns, "ok", "txn")
        self.clears, self.count, self.revision = True, count, revision

    def granted(self, now_ns: int, *, lease: int = 0, token: int = 0, revision: int = 0) -> None:
        """A call of a lease or a lock is acknowledged.

        `lease`: the one that it began or named, or, of a look, the holder's. `token`: under which
        the lock is held, of a look, or of an acquire or a withdrawal, whose lease holds it; else 0.
        """
        self._end(now_ns, "ok", *LEASE_KINDS)
        self.lease, self.token, self.revision = lease or self.lease, token or self.token, revision

    def refused(self, now_ns: int, code: str) -> None:
        """A call of a lease or a lock is refused, by what there is; `code` is the problem's."""
        self._end(now_ns, "failed_condition", *LEASE_KINDS)
        self.code = code

    def condition_failed(self, now_ns: int, *, seen_revision: int | None = None) -> None:
        """A write's condition did not hold. The key had this revision; 0: was absent."""
        self._end(now_ns, "failed_condition", "put", "delete")
        self.revision = _NOT_SAID if seen_revision is None else seen_revision

    def not_applied(self, now_ns: int) -> None:
        """A write did not happen and never will."""
        self._end(now_ns, "not_applied", "put", "delete", "txn", *LEASE_KINDS)

    def unknown(self, now_ns: int) -> None:
        """The client has given up on a write; it may have happened, or may yet."""
        self._end(now_ns, "unknown", "put", "delete", "txn", *LEASE_KINDS)

    def failed(self, now_ns: int) -> None:
        """A read gave nothing."""
        self._end(now_ns, "failed", "get", "range", "look")


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the checker says of one history.

    "undecided": the time was over before it knew; for a test that is a failure too. `reasons` are
    sentences; `largest` is the number of operations in the largest part checked as one; `file`
    and `picture` are kept for what is not linearizable ("" otherwise).
    """

    history: str
    status: Status
    operations: int
    unknown: int
    parts: int
    largest: int
    seconds: float
    reasons: tuple[str, ...] = ()
    picture: str = ""
    file: str = ""

    @property
    def ok(self) -> bool:
        return self.status == "linearizable"

    def __str__(self) -> str:
        figures = (
            f"{self.operations} operations, {self.unknown} of them unknown, in {self.parts} parts, "
            f"the largest of {self.largest}, checked in {self.seconds:.2f} s"
        )
        lines = [f"history {self.history!r}: {self.status}; {figures}", *self.reasons]
        if self.picture:
            lines.append(f"picture: {self.picture}")
        if self.file:
            command = shlex.join(["python", "-m", "tests.support.history", self.file])
            lines.append(f"again: {command}")
        return "\n  ".join(lines)

    def require(self) -> None:
        """Raise AssertionError unless the history is linearizable."""
        if not self.ok:
            raise AssertionError(str(self))


class History:
    """What a set of clients did to a set of keys that all were absent at the beginning."""

    def __init__(self, name: str = "history") -> None:
        self.name = name
        self.operations: list[Operation] = []
        self._clients = itertools.count(1_000_000)

    def __len__(self) -> int:
        return len(self.operations)

    def new_client(self) -> int:
        """Return a client number for somebody whose last operation stays open."""
        return next(self._clients)

    def _add(self, operation: Operation) -> Operation:
        self.operations.append(operation)
        return operation

    def put(
        self,
        client: int,
        key: str,
        value: str,
        now_ns: int,
        *,
        if_revision: int | None = None,
        if_any: bool = False,
        if_absent: bool = False,
        note: str = "",
    ) -> Operation:
        """A put is asked for. End it: `done`, `condition_failed`, `not_applied`, `unknown`."""
        return self._add(
            Operation(
                client=client,
                kind="put",
                call_ns=now_ns,
                key=key,
                value=value,
                if_revision=if_revision,
                if_any=if_any,
                if_absent=if_absent,
                note=note,
            )
        )

    def delete(
        self,
        client: int,
        key: str,
        now_ns: int,
        *,
        if_revision: int | None = None,
        if_any: bool = False,
        note: str = "",
    ) -> Operation:
        """A delete is asked for. End it: `removed`, or as a put."""
        return self._add(
            Operation(
                client=client,
                kind="delete",
                call_ns=now_ns,
                key=key,
                if_revision=if_revision,
                if_any=if_any,
                note=note,
            )
        )

    def get(
        self, client: int, key: str, now_ns: int, *, stale: bool = False, note: str = ""
    ) -> Operation:
        """A get is asked for. End it: `got`, `failed`."""
        return self._add(
            Operation(client=client, kind="get", call_ns=now_ns, key=key, stale=stale, note=note)
        )

    def range(
        self,
        client: int,
        now_ns: int,
        *,
        prefix: str = "",
        start: str = "",
        end: str = "",
        stale: bool = False,
        note: str = "",
    ) -> Operation:
        """A range is asked for: keys with `prefix`, from `start` on, before `end` ("": no bound).

        End it: `listed` (with all its items, never one page of several), `failed`. All keys that a
        range covers are checked as one part: let ranges cover few keys.
        """
        return self._add(
            Operation(
                client=client,
                kind="range",
                call_ns=now_ns,
                prefix=prefix,
                start=start,
                end=end,
                stale=stale,
                note=note,
            )
        )

    def transaction(self, client: int, now_ns: int, *, prefix: str, note: str = "") -> Operation:
        """A transaction on keys with `prefix` is asked for. End it: `transacted`, `cleared`, …."""
        return self._add(
            Operation(client=client, kind="txn", call_ns=now_ns, prefix=prefix, note=note)
        )

    def lease_call(
        self,
        client: int,
        kind: LeaseKind,
        now_ns: int,
        *,
        key: str,
        lease: int = 0,
        token: int = 0,
        ttl_ms: int = 0,
    ) -> Operation:
        """A call of a lease or a lock. End it: `granted`, `refused`, `not_applied`, `unknown`.

        `key` is what is checked as one: a lock's name, or a name for a lease that claims no lock.
        All calls that name one lease have one key. `lease`: the caller's, 0 where the call begins
        one. `token`: of a release and a fenced write.
        """
        return self._add(
            Operation(
                client=client,
                kind=kind,
                call_ns=now_ns,
                key=key,
                lease=lease,
                token=token,
                ttl_ms=ttl_ms,
            )
        )

    def write(self, file: Path) -> None:
        """Write the history as NDJSON: a line with its name, then one for each operation."""
        file.write_bytes(b"".join(self._lines()))

    def _lines(self) -> Iterator[bytes]:
        yield msgspec.json.encode({"history": self.name}) + b"\n"
        open_prefixes = tuple(
            operation.prefix
            for operation in self.operations
            if operation.kind == "txn" and operation.outcome in {"open", "unknown"}
        )
        open_leases = {
            operation.key
            for operation in self.operations
            if operation.kind in LEASE_KINDS
            and operation.kind not in {"keepalive", "look"}
            and operation.outcome in {"open", "unknown"}
        }
        for operation in self.operations:
            if operation.kind in LEASE_KINDS and (
                operation.key in open_leases or operation.outcome in {"open", "unknown", "failed"}
            ):
                continue
            if open_prefixes and (operation.prefix or operation.key).startswith(open_prefixes):
                continue
            yield msgspec.json.encode(operation) + b"\n"

    def check(self, directory: Path, timeout_s: float = TIMEOUT_S) -> Verdict:
        """Say whether the history is linearizable; keep in `directory` what shows that it is not.

        Raises go_tools.ToolError where there is no checker.
        """
        return check_many([self], directory, timeout_s)[0]


def check_many(
    histories: Sequence[History], directory: Path, timeout_s: float = TIMEOUT_S
) -> list[Verdict]:
    """Check many histories, each on its own, in one process; return a verdict for each.

    `timeout_s` is for each history. A failing one is left as a file, with its picture, in
    `directory`. Raises go_tools.ToolError.
    """
    if not histories:
        return []
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=directory, suffix=".ndjson") as file:
        for history in histories:
            file.writelines(history._lines())
        file.flush()
        verdicts = _run(Path(file.name), directory, timeout_s, len(histories))
    if len(verdicts) != len(histories):
        raise RuntimeError(f"{len(verdicts)} verdicts of {len(histories)} histories")
    return [
        verdict if verdict.ok else _kept(verdict, history, directory)
        for verdict, history in zip(verdicts, histories, strict=True)
    ]


def _kept(verdict: Verdict, history: History, directory: Path) -> Verdict:
    """Keep a failing history as a file of its own."""
    slug = re.sub(r"[^A-Za-z0-9]+", "-", history.name).strip("-") or "history"
    path = directory / f"{slug}.ndjson"
    history.write(path)
    return msgspec.structs.replace(verdict, file=str(path))


def _run(file: Path, pictures: Path, timeout_s: float, n_histories: int) -> list[Verdict]:
    done = subprocess.run(
        [str(checker()), f"-timeout={timeout_s}s", f"-pictures={pictures}", str(file)],
        capture_output=True,
        # Finding what is wrong, and drawing it, takes as long again.
        timeout=3 * timeout_s * n_histories + 60,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the checker failed: {done.stderr.decode(errors='replace')}")
    return [msgspec.json.decode(line, type=Verdict) for line in done.stdout.splitlines()]


def main() -> None:
    """Check a kept file again; exit with 1 unless all in it is linearizable."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--timeout-s", type=float, default=TIMEOUT_S)
    args = parser.parse_args()
    with args.file.open("rb") as lines:
        n_histories = sum(line.startswith(b'{"history"') for line in lines)
    verdicts = _run(args.file, args.file.parent, args.timeout_s, n_histories)
    for verdict in verdicts:
        print(verdict)
    sys.exit(not all(verdict.ok for verdict in verdicts))


if __name__ == "__main__":
    main()
