"""One of several programs leads; the others know which, and one of them follows when it is gone.

    python examples/leader.py ELECTION NAME

Run several with different names. Each shows that it is there by a key on a lease, which goes when
the program does; whoever leads prints the members whenever they change.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys

import onecopy

TTL_S = 2.0  # how long the others wait for one that is gone


async def main(election: str, name: str) -> None:
    """Be a member, and lead when it is one's turn."""
    endpoints = os.environ.get("ONECOPY_ENDPOINTS")
    given = endpoints.split(",") if endpoints else onecopy.DEFAULT_ENDPOINTS
    async with onecopy.AsyncClient(given) as client, client.lease(TTL_S) as lease:
        prefix = f"members/{election}/"
        await client.put(prefix + name, "", lease=lease.id)
        leader = await client.leader(election)
        print(f"{name}: the leader is {leader.value if leader else 'not known yet'}", flush=True)
        async with client.elect(election, ttl=TTL_S, value=name) as leading:
            print(f"{name} leads, under token {leading.token}", flush=True)
            async with client.mirror(prefix) as members:
                await lead(members, prefix, leading)
        sys.exit(f"{name} leads no more")


async def lead(members: onecopy.AsyncMirror, prefix: str, leading: onecopy.AsyncLock) -> None:
    """Print the members and follow them, until the lead is lost."""
    lost = asyncio.create_task(leading.lost.wait())
    shown: set[str] = set()
    while not lost.done():
        revision, found = members.snapshot()
        if found.keys() != shown:
            print("members:", *(key.removeprefix(prefix) for key in sorted(found)), flush=True)
        shown = set(found)
        changed = asyncio.create_task(members.changed(revision))
        await asyncio.wait({lost, changed}, return_when=asyncio.FIRST_COMPLETED)
        changed.cancel()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1], sys.argv[2]))
