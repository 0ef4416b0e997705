"""`onecopy status`, `handover`, `finish-upgrade` and `remove`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from cluster.cli.common import CHANGE_INTERRUPTED, READ_INTERRUPTED, client_options, open_client
from cluster.client.errors import NotAppliedError
from cluster.client.results import ViewSummary
from cluster.terminal import printable, say, show, show_json
from datapath.operations import ArchiveState, ClusterStatus

FORCIBLE = frozenset({"unsafe_removal", "membership_pending", "no_majority", "no_primary"})
"""Why a removal is refused where --force can do something about it."""

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
def status(endpoints: str, timeout_ms: int, no_discover: bool, as_json: bool) -> None:
    """Show the primary, the in-sync replicas, and the state of each node."""
    with open_client(
        endpoints, timeout_ms, no_discover, as_json=as_json, interrupted=READ_INTERRUPTED
    ) as client:
        found = client.status()
        scheme = client.endpoints[0].partition("://")[0]
    if as_json:
        show_json(found)
    else:
        show(_table(found, scheme))


@click.command()
@click.argument("node")
@client_options
def handover(node: str, endpoints: str, timeout_ms: int, no_discover: bool, as_json: bool) -> None:
    """Make NODE, an in-sync replica, the primary. No pending request fails."""
    with open_client(
        endpoints, timeout_ms, no_discover, as_json=as_json, interrupted=CHANGE_INTERRUPTED
    ) as client:
        show_view(client.handover(node), as_json=as_json)


@click.command()
@client_options
def finish_upgrade(endpoints: str, timeout_ms: int, no_discover: bool, as_json: bool) -> None:
    """Let the cluster use what the new release supports, once every node runs it.

    From then on no node of an older release can take part: this cannot be undone.
    """
    with open_client(
        endpoints, timeout_ms, no_discover, as_json=as_json, interrupted=CHANGE_INTERRUPTED
    ) as client:
        show_view(client.finish_upgrade(), as_json=as_json)


@click.command()
@click.argument("node")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option(
    "--force",
    is_flag=True,
    help="If the cluster refuses, show what the removal may lose, and remove NODE anyway once "
    "its id has been typed again.",
)
@click.option(
    "--yes-remove",
    metavar="NODE",
    default="",
    help="With --force: NODE's id, in place of typing it again.",
)
@client_options
def remove(
    node: str,
    yes: bool,
    force: bool,
    yes_remove: str,
    endpoints: str,
    timeout_ms: int,
    no_discover: bool,
    as_json: bool,
) -> None:
    """Remove NODE from the cluster for good. Its id cannot be used again.

    The cluster refuses if the removal could lose acknowledged writes or the majority, and says what
    to do first. Run it on a machine of the cluster, unless [api] admin_from allows other machines.
    """
    if yes_remove and (yes_remove != node or not force):
        raise click.UsageError(f"--yes-remove needs --force, and must repeat the id: {node}")
    if not yes and not yes_remove:
        click.confirm(f"Remove {node} for good?", abort=True, err=True)
    with open_client(
        endpoints, timeout_ms, no_discover, as_json=as_json, interrupted=CHANGE_INTERRUPTED
    ) as client:
        try:
            view = client.remove(node)
        except NotAppliedError as error:
            if not force or error.code not in FORCIBLE:
                raise
            say(printable(error.detail))
        else:
            show_view(view, as_json=as_json)
            return
    if not yes_remove:
        typed = click.prompt(f"Type the id of the node to remove it by force ({node})", err=True)
        if typed != node:
            raise click.UsageError(f"{typed!r} is not {node!r}: nothing was removed")
    with open_client(
        endpoints, timeout_ms, no_discover, as_json=as_json, interrupted=CHANGE_INTERRUPTED
    ) as client:
        show_view(client.remove(node, force=True), as_json=as_json)


def show_view(view: ViewSummary, *, as_json: bool) -> None:
    """Print a new view, in a line or as JSON."""
    if as_json:
        show_json(view)
        return
    in_sync = " ".join(view.in_sync)
    show(printable(f"epoch {view.epoch}: primary {view.primary}, in sync: {in_sync}"))


def _archive_line(archive: ArchiveState) -> str:
    place = "place not known yet" if archive.revision is None else f"revision {archive.revision}"
    lag = f"{archive.lag_ms / 1000:.0f} s behind" if archive.lag_ms else "complete"
    line = printable(f"archive: {place}, {lag}")
    if archive.problem:
        line += click.style(printable(f"; it cannot be written: {archive.problem}"), fg="yellow")
    return line


def columns(rows: Sequence[Sequence[str]], coloured: int | None = None) -> list[str]:
    """Return rows, the first of them a head, as lines; one column is coloured as states are."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        if row is not rows[0] and coloured is not None:
            padded[coloured] = click.style(padded[coloured], fg=STATE_COLOURS.get(row[coloured]))
        lines.append("  ".join(padded).rstrip())
    return lines


def _table(found: ClusterStatus, scheme: str) -> str:
    head = ("NODE", "ROLE", "STATE", "IN SYNC", "VOTE", "APPLIED", "LAG", "VERSION", "URL")
    rows: list[tuple[str, ...]] = [head]
    for node, item in sorted(found.nodes.items()):
        in_sync = "-" if item.role == "witness" else "yes" if node in found.in_sync else "no"
        numbers = ["-" if n is None else str(n) for n in (item.applied_index, item.lag)]
        url = f"{scheme}://{item.client}"
        vote = {None: "?", True: "yes", False: "no"}[item.votes]
        cells = (node, item.role, item.state, in_sync, vote, *numbers, item.version or "?", url)
        rows.append(tuple(map(printable, cells)))
    title = (
        f"cluster {found.cluster}: epoch {found.epoch}, version {found.version}, "
        f"level {found.level}, "
    )
    lines = [printable(title + f"primary {found.primary or 'none'}")]
    lines += columns(rows, coloured=2)
    if found.archive is not None:
        lines.append(_archive_line(found.archive))
    lines += [click.style(printable(f"warning: {text}"), fg="yellow") for text in found.warnings]
    voteless = sorted(node for node, item in found.nodes.items() if item.votes is False)
    if voteless:
        names = printable(", ".join(voteless))
        lines.append(
            f"{names}: no vote yet, so it cannot become primary, even if in sync. It gets its vote "
            "once a majority of the voters answers and no removed node still has one."
        )
    return "\n".join(lines)
