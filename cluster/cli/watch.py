"""`onecopy watch`: changes, found by polling."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import NoReturn

import click

from cluster.cli.common import client_options, open_client, value_fields
from cluster.client.sync import Client
from cluster.terminal import for_terminal, say, show, show_json

SHOWN_VALUE_CHARS = 200  # on a terminal; --json has it whole


@click.command()
@click.option("--prefix", default="", help="Only keys with this prefix.")
@click.option(
    "--interval-ms",
    type=click.IntRange(10, 3_600_000),
    default=500,
    show_default=True,
    help="Time between two polls.",
)
@client_options
def watch(
    prefix: str, interval_ms: int, endpoints: str, timeout_ms: int, no_discover: bool, as_json: bool
) -> None:
    """Print changes of keys until Ctrl-C.

    This polls: it compares revisions at each interval. A value that was replaced, or a key that
    came and went, between two looks is not seen. What is printed did exist, in the order of
    revisions; deletions come with the revision of the look that missed the key.
    """
    with (
        open_client(endpoints, timeout_ms, no_discover, as_json=as_json) as client,
        suppress(KeyboardInterrupt),  # the way to end it
    ):
        _watch(client, prefix, interval_ms / 1000, as_json=as_json)


def _watch(client: Client, prefix: str, interval_s: float, *, as_json: bool) -> NoReturn:
    seen, revision = _revisions(client, prefix)
    if not as_json:
        say(f"watching {len(seen)} keys from revision {revision}; Ctrl-C ends")
    while True:
        time.sleep(interval_s)
        newest = client.page(prefix, limit=1, keys_only=True).revision
        if newest == revision:
            continue
        current, revision = _revisions(client, prefix)
        _show_changes(client, seen, current, revision, as_json=as_json)
        seen = current


def _revisions(client: Client, prefix: str) -> tuple[dict[str, int], int]:
    """Return each key's revision, and the revision of the first page: nothing older is missing."""
    found: dict[str, int] = {}
    page = client.page(prefix, limit=1000, keys_only=True)
    revision = page.revision
    while True:
        found.update((item.key, item.revision) for item in page.items)
        if not page.cursor:
            return found, revision
        page = client.page(prefix, limit=1000, keys_only=True, cursor=page.cursor)


def _show_changes(
    client: Client,
    seen: dict[str, int],
    current: dict[str, int],
    revision: int,
    *,
    as_json: bool,
) -> None:
    changed = sorted((new, key) for key, new in current.items() if new != seen.get(key))
    for _, key in changed:
        entry = client.get(key)
        if entry is None:  # deleted since; the next look says so
            continue
        current[key] = entry.revision
        if as_json:
            fields = {"key": key, **value_fields(entry.value), "revision": entry.revision}
            show_json({"event": "put", **fields})
        else:
            text = entry.value[:SHOWN_VALUE_CHARS].decode("utf-8", "replace")
            show(f"{entry.revision} put {for_terminal(key)} {for_terminal(text)}")
    for key in sorted(seen.keys() - current.keys()):
        if as_json:
            show_json({"event": "delete", "key": key, "revision": revision})
        else:
            show(f"{revision} delete {for_terminal(key)}")
