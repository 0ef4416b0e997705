"""The keyspaces of the replicated state, by number: eight ordered maps of byte keys, each its own.

Every service has one. Those that stand here by name belong to what is built in; the users' own
services share SERVICES, each under its name and a zero byte.
"""

from __future__ import annotations

import functools

KEYSPACES = 8
KV = 0
CLIENTS, CLIENT_ORDER, CLIENT_SUMS = 1, 2, 3
"""The client table's (`datapath.execution.client_table`); no service may open them."""
LEASES = 4
LOCKS = 5
SERVICES = 6
ROLES = 7
"""Tokens, roles, and what is known of the first ones (`cluster.services.access`)."""

OPEN_TO_SERVICES = frozenset({KV, LEASES, LOCKS, SERVICES, ROLES})


def after_prefix(prefix: bytes) -> bytes | None:
    """Return the smallest key above all that begin with `prefix`; None: there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None


def covers(prefix: bytes, start: bytes, end: bytes | None) -> bool:
    """Whether all names with start <= name < end begin with `prefix`."""
    highest = _after(prefix)
    if highest is None:  # of an empty prefix, or one that has only 0xff: nothing lies above it
        return start >= prefix
    return start >= prefix and end is not None and end <= highest


_after = functools.lru_cache(maxsize=1024)(after_prefix)  # asked with each request of a caller


def check_open(which: int | str) -> int:
    """Return the number of a keyspace if a service may open it. Raises ValueError."""
    if not isinstance(which, int) or which not in OPEN_TO_SERVICES:
        raise ValueError(f"keyspace {which} is not open to services")
    return which
