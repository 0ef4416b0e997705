"""A process that increments a number in the store under a lock, again and again, until it is ended.

    python -m tests.nodes.locked_counter if_lock|time ENDPOINT...

It prints a word a line of each increment: "done", "unknown" (it may or may not be applied), "lost"
(refused, or not tried: the lock was lost). "time" writes without If-Lock, right after it has made
sure that by its clock it still holds the lock: what locks by time alone do.
"""

from __future__ import annotations

import sys
import time

from cluster.client.errors import ClientError, LockLostError, UnknownOutcomeError
from cluster.client.sync import Client

LOCK, KEY = "counter", "number"
TTL_S = 1.0
WORK_S = 0.1


def increment(client: Client, *, by_time: bool) -> str:
    with client.lock(LOCK, ttl=TTL_S) as lock:
        found = client.get(KEY)
        number = 0 if found is None else int(found.value)
        time.sleep(WORK_S / 10)
        lock.check()
        time.sleep(WORK_S)
        client.put(KEY, str(number + 1), if_lock=None if by_time else lock.condition)
    return "done"


def main(mode: str, endpoints: list[str]) -> None:
    with Client(endpoints, timeout_ms=5000) as client:
        while True:
            try:
                word = increment(client, by_time=mode == "time")
            except UnknownOutcomeError:
                word = "unknown"
            except LockLostError:
                word = "lost"
            except ClientError:
                word = "failed"
            print(word, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
