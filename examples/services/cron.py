"""Tasks that are due at times, run once each, whoever is primary: a replicated cron.

    [services.cron]
    class = "cron:Cron"

A timer of this service looks every second for what is due, and puts it into a list that workers
read. That it is listed once is certain; a worker that acts on it outside has to expect that it does
so twice, if it dies between acting and `acted`.
"""

from __future__ import annotations

import time

import msgspec

from onecopy import ReadTransaction, Service, Transaction, every, operation, query


class Entry(msgspec.Struct):
    """`command` is due each `seconds`, from the Unix epoch on; `last`: when it last was."""

    name: str
    command: str
    seconds: int
    last: int = 0


class Due(msgspec.Struct):
    """One time at which an entry was due."""

    name: str
    command: str
    due: int


class Cron(Service):
    """Entries by name, and what was due and has not been acted on."""

    @operation
    def schedule(self, tx: Transaction, name: str, command: str, seconds: int) -> None:
        """Make an entry, or change one."""
        entry = Entry(name, command, seconds, _slot(time.time(), seconds))
        tx.put(b"entry/" + name.encode(), msgspec.json.encode(entry))

    @operation
    def cancel(self, tx: Transaction, name: str) -> None:
        """Take an entry away."""
        tx.delete(b"entry/" + name.encode())

    @every(seconds=1)
    def look(self, tx: Transaction) -> None:
        """List what is due. What was missed while there was no primary is listed once."""
        now = time.time()
        for key, value in tx.range(b"entry/", b"entry0", 1000):  # "0" follows "/"
            entry = msgspec.json.decode(value, type=Entry)
            slot = _slot(now, entry.seconds)
            if slot > entry.last:
                entry.last = slot
                due = Due(entry.name, entry.command, slot)
                tx.put(b"due/%012d/%b" % (slot, entry.name.encode()), msgspec.json.encode(due))
                tx.put(key, msgspec.json.encode(entry))

    @query
    def listed(self, tx: ReadTransaction, limit: int = 100) -> list[Due]:
        """Return what is due, the oldest first."""
        return [
            msgspec.json.decode(value, type=Due) for _, value in tx.range(b"due/", b"due0", limit)
        ]

    @operation
    def acted(self, tx: Transaction, name: str, due: int) -> None:
        """Take something off the list."""
        tx.delete(b"due/%012d/%b" % (due, name.encode()))


def _slot(now: float, seconds: int) -> int:
    return int(now) // seconds * seconds
