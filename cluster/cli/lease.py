"""`onecopy lease`: client leases by their ids, for scripts."""

from __future__ import annotations

import time
from contextlib import suppress

import click

from cluster.cli.common import READ_INTERRUPTED, client_options, open_client
from cluster.client.leasing import KEEP_ALIVE_SHARE
from cluster.terminal import for_terminal, say, show, show_json

_lease = click.argument("lease", metavar="LEASE")


@click.group()
def lease() -> None:
    """Grant, keep alive, inspect and revoke client leases.

    Keys hang on a lease (`lease` of a put in a transaction, `?lease=` of a PUT), and go when it
    ends.
    """


@lease.command()
@click.argument("ttl", type=click.FloatRange(1, 86_400))
@click.option(
    "--for", "key", default="", help="Where there are groups: a key that is to hang on it."
)
@client_options
def grant(
    ttl: float, key: str, endpoints: str, timeout_ms: int, no_discover: bool, as_json: bool
) -> None:
    """Begin a lease of TTL seconds and print its id. Keep it alive, or it ends."""
    with open_client(endpoints, timeout_ms, no_discover, as_json=as_json) as client:
        granted = client.grant_lease(ttl, key=key)
    if as_json:
        show_json({"lease": granted, "ttl_ms": int(ttl * 1000)})
    else:
        show(granted)


@lease.command("keep-alive")
@_lease
@click.option("--once", is_flag=True, help="Send one keep-alive and exit.")
@client_options
def keep_alive(
    lease: str, once: bool, endpoints: str, timeout_ms: int, no_discover: bool, as_json: bool
) -> None:
    """Keep LEASE alive until Ctrl-C.

    It exits with code 1 when the lease has ended, and with 6 if no node answers for --timeout-ms.
    """
    with (
        open_client(
            endpoints, timeout_ms, no_discover, as_json=as_json, interrupted=READ_INTERRUPTED
        ) as client,
        suppress(KeyboardInterrupt),  # the way to end it
    ):
        ttl = client.keep_lease_alive(lease)
        if as_json:
            show_json({"lease": lease, "ttl_ms": int(ttl * 1000)})
        else:
            ends = "" if once else "; Ctrl-C ends"
            say(f"lease {lease} lasts for {ttl:g} s from now{ends}")
        while not once:
            time.sleep(ttl * KEEP_ALIVE_SHARE)
            client.keep_lease_alive(lease)


@lease.command("list")
@client_options
def list_leases(endpoints: str, timeout_ms: int, no_discover: bool, as_json: bool) -> None:
    """Print all leases: id, TTL, and how many keys hang on each."""
    with open_client(
        endpoints, timeout_ms, no_discover, as_json=as_json, interrupted=READ_INTERRUPTED
    ) as client:
        for item in client.leases():
            if as_json:
                show_json(item)
            else:
                keys = "key" if item.keys == 1 else "keys"
                show(f"{item.lease} {item.ttl_ms / 1000:g} s, {item.keys} {keys}")


@lease.command()
@_lease
@client_options
def get(lease: str, endpoints: str, timeout_ms: int, no_discover: bool, as_json: bool) -> None:
    """Print the TTL of LEASE, what is left of it, and its keys and locks."""
    with open_client(
        endpoints, timeout_ms, no_discover, as_json=as_json, interrupted=READ_INTERRUPTED
    ) as client:
        found = client.lease_info(lease)
    if as_json:
        show_json(found)
        return
    show(f"lease {found.lease}: {found.left_ms / 1000:.1f} s of {found.ttl_ms / 1000:g} s are left")
    for key in found.keys:
        show(f"  key {for_terminal(key)}")
    for name in found.locks:
        show(f"  lock {for_terminal(name)}")


@lease.command()
@_lease
@client_options
def revoke(lease: str, endpoints: str, timeout_ms: int, no_discover: bool, as_json: bool) -> None:
    """End LEASE now: its keys are deleted, and its locks pass on."""
    with open_client(endpoints, timeout_ms, no_discover, as_json=as_json) as client:
        result = client.revoke_lease(lease)
    if as_json:
        show_json(result)
    else:
        keys = "key" if result.deleted == 1 else "keys"
        show(f"revoked: {result.deleted} {keys} deleted, revision {result.revision}")
