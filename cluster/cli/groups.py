"""`onecopy groups`: which groups there are, and the map that tells clients where they are."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import click
import msgspec

from cluster.cli.cluster import columns
from cluster.cli.common import (
    CHANGE_INTERRUPTED,
    READ_INTERRUPTED,
    Whom,
    client_options,
    open_client,
    open_endpoints,
    whom,
)
from cluster.client.errors import ClientError
from cluster.client.sync import Client
from cluster.exit_codes import EXIT_UNAVAILABLE
from cluster.groups.group_map import Group, GroupMap, GroupMapError, GroupsDocument, check_map
from cluster.groups.relay import as_reached
from cluster.terminal import printable, show, show_json

MAX_ASKED_AT_ONCE = 16
"""Groups that are asked for their status at once."""


class GroupSummary(msgspec.Struct, frozen=True):
    """A group as `onecopy groups status` shows it; without `nodes` none of them has answered."""

    id: str
    primary: str = ""
    epoch: int = 0
    nodes_up: int = 0
    nodes: int = 0
    revision: int = 0
    note: str = ""


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
    first = as_reached(offered.first.endpoints, by_tls=_by_tls(",".join(urls)))[0]
    with open_client(
        first, timeout_ms, False, as_json=as_json, interrupted=CHANGE_INTERRUPTED
    ) as client:
        published = client.publish_groups(offered)
    if as_json:
        show_json(published)
    else:
        show(f"published version {published.version} of the map: {len(owned)} groups")


@groups.command("status")
@client_options
def groups_status(endpoints: str, timeout_ms: int, no_discover: bool, as_json: bool) -> None:
    """Show each group's primary, epoch, nodes and revision; exits with 6 if one has no primary."""
    with (
        open_client(
            endpoints, timeout_ms, no_discover, as_json=as_json, interrupted=READ_INTERRUPTED
        ) as client,
        ThreadPoolExecutor(MAX_ASKED_AT_ONCE) as pool,
    ):
        found = client.groups()
        known = (found.own,) if found.map is None else found.map.groups
        ask = partial(_ask, by_tls=_by_tls(endpoints), timeout_ms=timeout_ms, caller=whom())
        states = list(pool.map(ask, known))
    if as_json:
        show_json({"groups": states})
    else:
        rows: list[tuple[str, ...]] = [
            ("GROUP", "PRIMARY", "EPOCH", "NODES UP", "REVISION", "NOTE")
        ]
        rows += [tuple(map(printable, _cells(state))) for state in states]
        show("\n".join(columns(rows)))
    if any(not state.primary for state in states):
        sys.exit(EXIT_UNAVAILABLE)


def _by_tls(endpoints: str) -> bool:
    """Whether the given endpoints are reached by TLS: then a map's are, too."""
    return all(url.startswith("https:") for url in open_endpoints(endpoints))


def _ask(group: Group, *, by_tls: bool, timeout_ms: int, caller: Whom) -> GroupSummary:
    """Ask a group how it is."""
    try:
        urls = as_reached(group.endpoints, by_tls=by_tls)
        with Client(urls, timeout_ms=timeout_ms, **caller) as client:
            found = client.status()
    except (ClientError, ValueError) as error:
        return GroupSummary(group.id, note=str(error))
    nodes = found.nodes.values()
    applied = [item.applied_index for item in nodes if item.applied_index is not None]
    return GroupSummary(
        group.id,
        found.primary,
        found.epoch,
        sum(item.state not in {"unreachable", "removed"} for item in nodes),
        len(nodes),
        max(applied, default=0),
        "; ".join(found.warnings),
    )


def _cells(state: GroupSummary) -> tuple[str, ...]:
    up = f"{state.nodes_up} of {state.nodes}" if state.nodes else "?"
    revision = str(state.revision) if state.nodes else "?"
    return state.id, state.primary or "none", str(state.epoch), up, revision, state.note


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
