"""A program that follows its configuration: polls one key and applies every change, with asyncio.

    python examples/follow_config.py KEY

Prints each new configuration until Ctrl-C. While no node can be reached it keeps the last one.
Polling sees the newest state, not each one in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator

import onecopy

POLL_INTERVAL_S = 0.2


async def changes(client: onecopy.AsyncClient, key: str) -> AsyncIterator[bytes | None]:
    """Yield the key's value now and after each change; None while there is no such key."""
    seen: int | None = -1  # no revision is negative: the first look is a change
    while True:
        try:
            # Linearizable, the default: a stale read, of another node, could go back in time.
            entry = await client.get(key)
        except onecopy.UnavailableError as error:
            print(f"keeping the last configuration: {error.detail}", file=sys.stderr, flush=True)
        else:
            revision = None if entry is None else entry.revision
            if revision != seen:
                seen = revision
                yield None if entry is None else entry.value
        await asyncio.sleep(POLL_INTERVAL_S)


async def main(key: str) -> None:
    """Print each configuration."""
    endpoints = os.environ.get("ONECOPY_ENDPOINTS")
    given = endpoints.split(",") if endpoints else onecopy.DEFAULT_ENDPOINTS
    async with onecopy.AsyncClient(given, timeout_ms=2000) as client:
        async for value in changes(client, key):
            print("none yet" if value is None else f"now: {value.decode()}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1]))
