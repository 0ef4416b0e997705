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

TTL_S = 5.0  # how long the others wait for one that is gone


async def main(election: str, name: str) -> None:
    """Be a member, and lead when it is one's turn; anew whenever either is lost."""
    endpoints = os.environ.get("ONECOPY_ENDPOINTS")
    given = endpoints.split(",") if endpoints else onecopy.DEFAULT_ENDPOINTS
    async with onecopy.AsyncClient(given, timeout_ms=60_000) as client:
        while True:
            async with client.lease(TTL_S) as lease:
                await client.put(f"members/{election}/{name}", "", lease=lease.id)
                standing = asyncio.create_task(stand(client, election, name))
                lost = asyncio.create_task(lease.lost.wait())
                await asyncio.wait({standing, lost}, return_when=asyncio.FIRST_COMPLETED)
                lost.cancel()
                standing.cancel()
                await asyncio.wait({standing})
                if not standing.cancelled():
                    standing.result()  # raises what has failed
            print(f"{name} did not reach the cluster for too long, and begins anew", flush=True)


async def stand(client: onecopy.AsyncClient, election: str, name: str) -> None:
    """Wait for one's turn to lead, and lead."""
    leader = await client.leader(election)
    print(f"{name}: the leader is {leader.value if leader else 'not known yet'}", flush=True)
    prefix = f"members/{election}/"
    async with (
        client.elect(election, ttl=TTL_S, value=name) as leading,
        client.mirror(prefix) as members,
    ):
        print(f"{name} leads, under token {leading.token}", flush=True)
        await lead(members, prefix, leading)


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
