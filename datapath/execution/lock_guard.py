"""Whether a lock is held under a token: what any operation may ask for to be carried out (K3).

Under a lock's name the keyspace LOCKS has what begins with the token of its holder, as 64 bits,
big-endian. A token is the revision at which the lock was taken: tokens of a name only rise (K1).
The rest of the keyspace is the lock service's own.
"""

from __future__ import annotations

from datapath.errors import RejectedError

TOKEN_SIZE_BYTES = 8


def holds_lock(held: bytes | None, token: int) -> bool:
    """Whether what stands under a lock's name says that it is held under `token`."""
    return held is not None and int.from_bytes(held[:TOKEN_SIZE_BYTES]) == token


def lock_lost(name: bytes, token: int, next_index: int) -> RejectedError:
    """Make the refusal of what was to be done under a lock that is not held under `token`.

    It is for good where the token is of the past: a token that was lost never comes back.
    """
    return RejectedError(
        "lock_lost",
        f"lock {name.decode('utf-8', 'backslashreplace')!r} is not held under token {token}: "
        "take it again, and read again what it protects",
        for_good=token < next_index,
    )
