"""A queue of jobs: each is given to one worker at a time, and again if that worker is not heard of.

    [services.jobs]
    class = "jobs:Jobs"

A worker calls `take`, does the work, and calls `done`. A job that is not done within its time goes
back into the queue, up to MAX_TRIES; `token` keeps a worker that was late from ending a job that
another one has by now.
"""

from __future__ import annotations

import time

import msgspec

from onecopy import ReadTransaction, RejectedError, Service, Transaction, every, operation, query

MAX_TRIES = 5
WAITING, TAKEN, DONE, FAILED = b"waiting/", b"taken/", b"done/", b"failed/"
MAX_GIVEN_BACK = 1000


class Job(msgspec.Struct):
    """One job. `token` names the try; `until` is when its worker's time is up."""

    number: int
    payload: str
    tries: int = 0
    token: int = 0
    until: float = 0.0
    result: str = ""


class Jobs(Service):
    """Jobs that wait, are taken, are done, or have failed too often."""

    @operation
    def add(self, tx: Transaction, payload: str) -> int:
        """Add a job; return its number."""
        number = int(tx.get(b"last") or b"0") + 1
        tx.put(b"last", str(number).encode())
        _put(tx, WAITING, Job(number, payload))
        return number

    @operation
    def take(self, tx: Transaction, seconds: float = 30.0) -> Job | None:
        """Return the oldest job that waits, to be done within `seconds`; None: there is none."""
        found = _first(tx, WAITING, 1)
        if not found:
            return None
        job = found[0]
        job.tries += 1
        job.token = tx.index  # a revision: it only rises
        job.until = time.time() + seconds
        _move(tx, WAITING, TAKEN, job)
        return job

    @operation
    def done(self, tx: Transaction, number: int, token: int, result: str = "") -> None:
        """End a job. Refuses with `lost` if its time was up, and it was given to another."""
        held = tx.get(_key(TAKEN, number))
        job = None if held is None else msgspec.json.decode(held, type=Job)
        if job is None or job.token != token:
            raise RejectedError("lost", f"job {number} is not yours any more")
        job.result = result
        _move(tx, TAKEN, DONE, job)

    @every(seconds=1)
    def give_back(self, tx: Transaction) -> None:
        """Put back the jobs whose workers' time is up."""
        now = time.time()
        for job in _first(tx, TAKEN, MAX_GIVEN_BACK):
            if job.until < now:
                _move(tx, TAKEN, FAILED if job.tries >= MAX_TRIES else WAITING, job)

    @query
    def jobs(self, tx: ReadTransaction, state: str, limit: int = 100) -> list[Job]:
        """Return jobs that are "waiting", "taken", "done" or "failed"."""
        return _first(tx, state.encode() + b"/", limit)


def _key(state: bytes, number: int) -> bytes:
    return state + b"%012d" % number


def _put(tx: Transaction, state: bytes, job: Job) -> None:
    tx.put(_key(state, job.number), msgspec.json.encode(job))


def _move(tx: Transaction, old: bytes, new: bytes, job: Job) -> None:
    tx.delete(_key(old, job.number))
    _put(tx, new, job)


def _first(tx: ReadTransaction, state: bytes, limit: int) -> list[Job]:
    pairs = tx.range(state, state[:-1] + b"0", limit)  # "0" follows "/"
    return [msgspec.json.decode(value, type=Job) for _, value in pairs]
