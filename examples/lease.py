"""One worker at a time: a lease by conditional writes, with the work's state in the same key.

    python examples/lease.py KEY WORKER STEPS [TTL_S]

The worker takes the lease, does the steps that are missing up to STEPS, and saves after each one
how many are done. Run two: the second waits. Stop or kill the first: the second goes on from the
last step saved.

A lease is a bet on time. A worker that was suspended (SIGSTOP, a long pause) still believes that
it holds the lease when it wakes. That is harmless here, because every save is a write on the
condition that nobody has written since: one that has lost the lease changes nothing, and learns
it. The lease only saves work, by keeping two from doing the same step. A lock whose holder then
writes somewhere else, without such a condition, does not have this property.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass, replace

import onecopy

POLL_INTERVAL_S = 0.2
STEP_S = 0.1  # how long a step of the example's work takes


class LeaseLostError(Exception):
    """Another worker has taken the lease. Nothing was saved."""


@dataclass(frozen=True)
class Record:
    """What the key holds. `worker` "" if nobody holds the lease; `done` is the work's state."""

    worker: str
    ttl_s: float
    done: int


class Lease:
    """The lease under `key`. It ends if the holder saves nothing for `ttl_s`."""

    def __init__(self, client: onecopy.Client, key: str, worker: str, ttl_s: float) -> None:
        self._client = client
        self._key = key
        self._own = Record(worker, ttl_s, 0)
        self._revision = 0  # of this worker's last write

    def acquire(self) -> int:
        """Wait for the lease, and return how many steps are done."""
        watched, since = 0, time.monotonic()
        while True:
            asked_at = time.monotonic()
            entry = self._client.get(self._key)
            if entry is None:
                if self._write(self._own, revision=None):
                    return 0
                continue
            if entry.revision != watched:  # its holder is alive, as of this look
                watched, since = entry.revision, time.monotonic()
            found = Record(**json.loads(entry.value))
            # Only this program's clock counts: the record has not changed for all its TTL.
            if not found.worker or asked_at - since > found.ttl_s:
                if self._write(replace(self._own, done=found.done), revision=entry.revision):
                    return found.done
                continue  # another worker was faster
            time.sleep(POLL_INTERVAL_S)

    def save(self, done: int) -> None:
        """Save the work's state, which renews the lease. Raises LeaseLostError."""
        if not self._write(replace(self._own, done=done), revision=self._revision):
            raise LeaseLostError(self._key)

    def release(self, done: int) -> None:
        """Save the work's state and let another worker take the lease at once."""
        if not self._write(Record("", 0, done), revision=self._revision):
            raise LeaseLostError(self._key)

    def _write(self, record: Record, revision: int | None) -> bool:
        """Write if the key is still at `revision` (None: absent); return whether it was."""
        value = json.dumps(asdict(record))
        try:
            if revision is None:
                put = self._client.put(self._key, value, if_absent=True)
            else:
                put = self._client.put(self._key, value, if_revision=revision)
        except onecopy.PreconditionFailedError:
            return False
        self._revision = put.revision
        return True


def main(key: str, worker: str, steps: int, ttl_s: float = 2.0) -> None:
    """Take the lease, do the missing steps, and print each one."""
    endpoints = os.environ.get("ONECOPY_ENDPOINTS")
    with onecopy.Client(endpoints.split(",") if endpoints else onecopy.DEFAULT_ENDPOINTS) as client:
        lease = Lease(client, key, worker, ttl_s)
        done = lease.acquire()
        try:
            while done < steps:
                time.sleep(STEP_S)  # the work
                done += 1
                lease.save(done)
                print(f"{worker} has done step {done}", flush=True)
            lease.release(done)
        except LeaseLostError:
            sys.exit(f"{worker} has lost the lease: step {done} was not saved by this worker")


if __name__ == "__main__":
    if len(sys.argv) not in {4, 5}:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *map(float, sys.argv[4:]))
