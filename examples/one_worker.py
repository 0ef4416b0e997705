"""One worker at a time, by a lock: the next goes on where the last one stopped.

    python examples/one_worker.py JOB WORKER STEPS [TTL_S]

The worker waits for the lock of the job, does the steps that are missing up to STEPS, and saves
after each how many are done. Run two: the second waits. Stop or kill the first: the second goes on.

A worker that was suspended (SIGSTOP, a closed lid) still believes that it holds the lock when it
wakes. That is harmless, because every save is written on the condition that the lock is held
(`if_lock`): one that has lost it changes nothing, and learns it.
"""

from __future__ import annotations

import os
import sys
import time

import onecopy

STEP_S = 0.1  # how long a step of the example's work takes


def work(client: onecopy.Client, job: str, worker: str, steps: int, ttl_s: float) -> None:
    """Do the missing steps, and print each. Raises LockLostError: that step was not saved."""
    with client.lock(job, ttl=ttl_s, note=worker) as lock:
        saved = client.get(job)
        for step in range(int(saved.value) + 1 if saved else 1, steps + 1):
            time.sleep(STEP_S)  # the work
            client.put(job, str(step), if_lock=lock.condition)
            print(f"{worker} has done step {step}", flush=True)


def main(job: str, worker: str, steps: int, ttl_s: float = 2.0) -> None:
    """Work until all steps are done."""
    endpoints = os.environ.get("ONECOPY_ENDPOINTS")
    with onecopy.Client(endpoints.split(",") if endpoints else onecopy.DEFAULT_ENDPOINTS) as client:
        try:
            work(client, job, worker, steps, ttl_s)
        except onecopy.LockLostError:
            sys.exit(f"{worker} has lost the lock: its last step was not saved")


if __name__ == "__main__":
    if len(sys.argv) not in {4, 5}:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *map(float, sys.argv[4:]))
