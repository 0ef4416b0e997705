"""A counter that several programs increment, by compare-and-set.

    python examples/counter.py KEY TIMES

Prints the counter's value after each increment. Run several at once: the sum is exact, also while
the primary is killed.
"""

from __future__ import annotations

import os
import sys

import onecopy


def increment(client: onecopy.Client, key: str) -> int:
    """Add one to the counter under `key`, which need not exist yet; return its new value.

    Raises UnknownOutcomeError if it may have been added: `record_once.py` shows how to find out.
    """
    while True:
        entry = client.get(key)
        value = 1 if entry is None else int(entry.value) + 1
        try:
            if entry is None:
                client.put(key, str(value), if_absent=True)
            else:
                client.put(key, str(value), if_revision=entry.revision)
        except onecopy.PreconditionFailedError:
            continue  # another program changed it in between: read again
        return value


def main(key: str, times: int) -> None:
    """Increment the counter and print each value."""
    endpoints = os.environ.get("ONECOPY_ENDPOINTS")
    with onecopy.Client(endpoints.split(",") if endpoints else onecopy.DEFAULT_ENDPOINTS) as client:
        for _ in range(times):
            print(increment(client, key), flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], int(sys.argv[2]))
