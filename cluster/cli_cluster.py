"""`onecopy status`, `handover` and `remove`."""

from __future__ import annotations

import click

from cluster.cli_common import client_options, open_client, show_json
from cluster.client_types import ViewSummary
from datapath.operations import ClusterStatus

STATE_COLOURS = {
    "primary": "green",
    "backup": "cyan",
    "witness": "blue",
    "learner": "yellow",
    "snapshot": "yellow",
    "unreachable": "red",
}


@click.command()
@client_options
def status(endpoints: str, timeout_ms: int, as_json: bool) -> None:
    """Show who is in charge, who is in sync, and how far each node is."""
    with open_client(endpoints, timeout_ms, as_json=as_json) as client:
        found = client.status()
    if as_json:
        show_json(found)
    else:
        click.echo(_table(found))


@click.command()
@click.argument("node")
@client_options
def handover(node: str, endpoints: str, timeout_ms: int, as_json: bool) -> None:
    """Make NODE (a replica in sync) the primary. No waiting request fails."""
    with open_client(endpoints, timeout_ms, as_json=as_json) as client:
        _show_view(client.handover(node), as_json=as_json)


@click.command()
@click.argument("node")
@click.option("--yes", is_flag=True, help="Do not ask.")
@client_options
def remove(node: str, yes: bool, endpoints: str, timeout_ms: int, as_json: bool) -> None:
    """Take NODE out of the cluster for good. Its id is never to be used again."""
    if not yes:
        click.confirm(f"Remove {node} for good?", abort=True, err=True)
    with open_client(endpoints, timeout_ms, as_json=as_json) as client:
        _show_view(client.remove(node), as_json=as_json)


def _show_view(view: ViewSummary, *, as_json: bool) -> None:
    if as_json:
        show_json(view)
        return
    in_sync = " ".join(view.in_sync)
    click.echo(f"epoch {view.epoch}: primary {view.primary}, in sync: {in_sync}")


def _table(found: ClusterStatus) -> str:
    head = ("NODE", "ROLE", "STATE", "IN SYNC", "APPLIED", "LAG", "URL")
    rows: list[tuple[str, ...]] = [head]
    for node, item in sorted(found.nodes.items()):
        in_sync = "-" if item.role == "witness" else "yes" if node in found.in_sync else "no"
        numbers = ["-" if n is None else str(n) for n in (item.applied_index, item.lag)]
        url = f"http://{item.client}"
        rows.append((node, item.role, item.state, in_sync, *numbers, url))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    title = f"cluster {found.cluster}: epoch {found.epoch}, version {found.version}, "
    lines = [title + f"primary {found.primary or 'none'}"]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        if row is not head:
            cells[2] = click.style(cells[2], fg=STATE_COLOURS.get(row[2]))
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
