"""A program that follows its configuration: a live copy of the keys with a prefix, with asyncio.

    python examples/follow_config.py PREFIX

Prints the whole configuration now and after each change, until Ctrl-C. While no node can be reached
it keeps the last one; afterwards it catches up.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys

import onecopy


def show(config: dict[str, bytes]) -> None:
    """Print one state of the configuration."""
    pairs = (f"{key}={value.decode()}" for key, value in sorted(config.items()))
    print(f"now: {' '.join(pairs)}" if config else "none yet", flush=True)


async def main(prefix: str) -> None:
    """Follow it."""
    endpoints = os.environ.get("ONECOPY_ENDPOINTS")
    given = endpoints.split(",") if endpoints else onecopy.DEFAULT_ENDPOINTS
    async with onecopy.AsyncClient(given) as client, client.mirror(prefix) as config:
        known: dict[str, bytes] | None = None
        while True:
            # All that one revision has changed is there, or none of it.
            revision, current = config.snapshot()
            if current != known:  # else only time has passed
                show(current)
            known = current
            await config.changed(revision)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1]))
