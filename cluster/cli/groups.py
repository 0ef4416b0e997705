"""`onecopy groups`: which groups there are, and the map that tells clients where they are."""

from __future__ import annotations

import click

from cluster.cli.common import CHANGE_INTERRUPTED, READ_INTERRUPTED, client_options, open_client
from cluster.groups.group_map import Group, GroupMap, GroupMapError, GroupsDocument, check_map
from cluster.terminal import printable, show, show_json


@click.group()
def groups() -> None:
    """Show, and publish, where the groups of a deployment are."""


@groups.command("show")
@client_options
def show_groups(endpoints: str, timeout_ms: int, no_discover: bool, as_json: bool) -> None:
    """Show the group of the node that is asked, and the map that it knows."""
    with open_client(
        endpoints, timeout_ms, no_discover, as_json=as_json, interrupted=READ_INTERRUPTED
    ) as client:
        found = client.groups()
    if as_json:
        show_json(found)
    else:
        show(_table(found))


@groups.command()
@click.argument("urls", nargs=-1, required=True, metavar="URL...")
@client_options
def publish(
    urls: tuple[str, ...], endpoints: str, timeout_ms: int, no_discover: bool, as_json: bool
) -> None:
    """Ask one node of each group (its URL) for its slots and endpoints, and publish the map.

    All slots must be there, each in one group. Name every group each time; --endpoints is ignored.
    """
    del endpoints, no_discover
    owned: list[Group] = []
    held: list[GroupMap] = []
    for url in urls:
        with open_client(
            url, timeout_ms, True, as_json=as_json, interrupted=READ_INTERRUPTED
        ) as client:
            found = client.groups()
        owned.append(found.own)
        held += [found.map] if found.map is not None else []
    version = max((each.version for each in held), default=0)
    offered = GroupMap(version + 1, tuple(owned))
    try:
        check_map(offered)
    except GroupMapError as error:
        raise click.UsageError(f"these groups make no map: {error}") from None
    first = offered.first.endpoints[0]
    with open_client(
        first, timeout_ms, False, as_json=as_json, interrupted=CHANGE_INTERRUPTED
    ) as client:
        published = client.publish_groups(offered)
    if as_json:
        show_json(published)
    else:
        show(f"published version {published.version} of the map: {len(owned)} groups")


def _table(found: GroupsDocument) -> str:
    if found.map is None:
        return printable(
            f"group {found.own.id}; no map is known yet: onecopy groups publish URL..."
        )
    lines = [printable(f"group {found.own.id}, map version {found.map.version}")]
    for group in found.map.groups:
        slots = ",".join(f"{first}-{last}" for first, last in group.slots)
        lines.append(printable(f"{group.id}  {slots}  {' '.join(group.endpoints)}"))
    return "\n".join(lines)
