"""Moves an amount from one account to another, all or nothing, by a transaction.

    python examples/transfer.py FROM TO AMOUNT TIMES

Prints both balances after each transfer. Run several at once, in any directions: the sum of all
accounts never changes, also while the primary is killed. An account that is not there has 100.
"""

from __future__ import annotations

import os
import sys

import onecopy

INITIAL = 100


def transfer(client: onecopy.Client, source: str, target: str, amount: int) -> tuple[int, int]:
    """Move `amount`; return both new balances.

    Raises ValueError if `source` has less. The client repeats a transfer whose answer is lost under
    the same idempotency key, so that it is made once.
    """
    while True:
        entries = client.txn().get(source).get(target).commit().results
        found = [entry if isinstance(entry, onecopy.GetResult) else None for entry in entries]
        balances = [INITIAL if entry is None else int(entry.value) for entry in found]
        after = balances[0] - amount, balances[1] + amount
        if after[0] < 0:
            raise ValueError(f"{source} has {balances[0]}, less than {amount}")
        txn = client.txn()
        for key, entry in zip((source, target), found, strict=True):
            txn.if_(key, revision=0 if entry is None else entry.revision)
        txn.put(source, str(after[0])).put(target, str(after[1]))
        if txn.commit().succeeded:
            return after
        # Another program changed one of them in between: read again.


def main(source: str, target: str, amount: int, times: int) -> None:
    """Transfer, and print the balances."""
    endpoints = os.environ.get("ONECOPY_ENDPOINTS")
    with onecopy.Client(endpoints.split(",") if endpoints else onecopy.DEFAULT_ENDPOINTS) as client:
        for _ in range(times):
            print(*transfer(client, source, target, amount), flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
