"""`onecopy member`: changes of a node that stays in the cluster."""

from __future__ import annotations

import click

from cluster.cli.cluster import show_view
from cluster.cli.common import CHANGE_INTERRUPTED, client_options, open_client


@click.group()
def member() -> None:
    """Change a node of the cluster."""


@member.command()
@click.argument("node")
@click.option("--client", metavar="HOST:PORT", default="", help="Its new address for clients.")
@click.option("--peer", metavar="HOST:PORT", default="", help="Its new address of the data path.")
@click.option("--raft", metavar="HOST:PORT", default="", help="Its new address for consensus.")
@client_options
def move(
    node: str,
    client: str,
    peer: str,
    raft: str,
    endpoints: str,
    timeout_ms: int,
    no_discover: bool,
    as_json: bool,
) -> None:
    """Have the cluster agree on other addresses of NODE.

    Give NODE the same addresses in its configuration file, and start it again: until then it stays
    reachable where it was, and `onecopy status` warns. (To edit the file alone and start NODE again
    does the same.)
    """
    if not (client or peer or raft):
        raise click.UsageError("give at least one of --client, --peer and --raft")
    with open_client(
        endpoints, timeout_ms, no_discover, as_json=as_json, interrupted=CHANGE_INTERRUPTED
    ) as found:
        view = found.move(node, client=client, peer=peer, raft=raft)
        show_view(view, as_json=as_json)
