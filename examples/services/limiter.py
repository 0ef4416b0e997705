"""Limits how often something may be done, for many programs together: token buckets.

    [services.limiter]
    class = "limiter:Limiter"

An operation may read the clock: it runs once, on the primary, and only what it writes travels. The
clock of the next primary may differ, so time that would go backwards counts as no time.
"""

from __future__ import annotations

import time

import msgspec

from onecopy import RejectedError, Service, Transaction, operation


class Bucket(msgspec.Struct):
    """Tokens that are left, and the time of day when they were counted."""

    tokens: float
    counted_at: float


class Limiter(Service):
    """Token buckets by name: `per_second` come in, and no more than `burst` are kept."""

    @operation
    def take(
        self, tx: Transaction, name: str, per_second: float, burst: float, tokens: float = 1
    ) -> float:
        """Take tokens out of a bucket; return how many are left. Refuses with `too_often`."""
        now = time.time()
        held = tx.get(name.encode())
        bucket = Bucket(burst, now) if held is None else msgspec.json.decode(held, type=Bucket)
        passed = max(0.0, now - bucket.counted_at)
        bucket.tokens = min(burst, bucket.tokens + passed * per_second)
        bucket.counted_at = max(now, bucket.counted_at)
        if bucket.tokens < tokens:
            wait_s = (tokens - bucket.tokens) / per_second
            raise RejectedError("too_often", f"{name}: try again in {wait_s:.1f} s")
        bucket.tokens -= tokens
        tx.put(name.encode(), msgspec.json.encode(bucket))
        return bucket.tokens
