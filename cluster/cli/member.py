"""`onecopy member`: changes of a node that stays in the cluster."""

from __future__ import annotations

import click

from cluster.cli.cluster import show_view
from cluster.cli.common import CHANGE_INTERRUPTED, client_options, open_client

_ELSEWHERE = {
    "add": "start the new node with its configuration file, and it joins: onecopy serve",
    "remove": "onecopy remove NODE",
    "list": "onecopy status",
    "promote": "a new node gets its vote by itself; to make one the primary: onecopy handover NODE",
    "replace": "start a node with a new id and an empty directory: onecopy serve; when it is in "
    "sync: onecopy remove NODE",
}


class MemberGroup(click.Group):
    """Says where the commands are that are looked for here."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that is named. Raises UsageError."""
        if args and args[0] in _ELSEWHERE:
            ctx.fail(f"No such command {args[0]!r}. Instead: {_ELSEWHERE[args[0]]}")
        return super().resolve_command(ctx, args)


@click.group(cls=MemberGroup)
def member() -> None:
    """Change a member of the cluster.

    A new node joins when it is started. To remove one: onecopy remove.
    """


@member.command()
@click.argument("node")
@click.option("--client", metavar="HOST:PORT", default="", help="New address for clients.")
@click.option("--peer", metavar="HOST:PORT", default="", help="New address for replication.")
@click.option("--raft", metavar="HOST:PORT", default="", help="New address for consensus.")
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
    """Change the addresses at which the cluster reaches NODE.

    Then set the same addresses in NODE's configuration file and restart it. Until then it stays
    reachable at the old ones, and `onecopy status` warns. (Editing the file and restarting NODE,
    without this command, has the same effect.)
    """
    if not (client or peer or raft):
        raise click.UsageError("give at least one of --client, --peer and --raft")
    with open_client(
        endpoints, timeout_ms, no_discover, as_json=as_json, interrupted=CHANGE_INTERRUPTED
    ) as found:
        view = found.move(node, client=client, peer=peer, raft=raft)
        show_view(view, as_json=as_json)
