"""`onecopy watch`: changes as they commit."""

from __future__ import annotations

from contextlib import suppress

import click

from cluster.cli.common import client_options, open_client, value_fields
from cluster.client.results import Change
from cluster.terminal import for_terminal, say, show, show_json

SHOWN_VALUE_CHARS = 200  # on a terminal; --json has it whole


@click.command()
@click.argument("key", required=False)
@click.option("--prefix", help="Only keys with this prefix; without it and without KEY, all keys.")
@click.option("--start", help="Only keys from this one on.")
@click.option("--end", help="Only keys before this one.")
@click.option(
    "--after",
    type=click.IntRange(0, 2**63 - 1),
    help="Start with the change after this revision, if history goes back that far [default: now].",
)
@client_options
def watch(
    key: str | None,
    prefix: str | None,
    start: str | None,
    end: str | None,
    after: int | None,
    endpoints: str,
    timeout_ms: int,
    no_discover: bool,
    as_json: bool,
) -> None:
    """Print changes of KEY, or of many keys, as they commit, until Ctrl-C.

    Every change is printed once, in the order of revisions, even if nodes fail meanwhile. The
    command exits if no node can be reached for --timeout-ms. To continue later, pass the last
    revision as --after.
    """
    if (key, prefix, start, end) == (None, None, None, None):
        prefix = ""
    with (
        open_client(endpoints, timeout_ms, no_discover, as_json=as_json) as client,
        suppress(KeyboardInterrupt),  # the way to end it
        client.watch(
            prefix, key=key, start=start, end=end, after=after, timeout_ms=timeout_ms
        ) as events,
    ):
        if not as_json:
            say(f"watching from revision {events.revision}; Ctrl-C ends")
        for event in events:
            for change in event.changes:
                _show(change, as_json=as_json)


def _show(change: Change, *, as_json: bool) -> None:
    name, value = for_terminal(change.key), change.value
    if as_json:
        fields: dict[str, object] = {"event": "delete" if value is None else "put"}
        fields |= {"key": change.key, "revision": change.revision}
        fields |= {"reason": change.reason} if value is None else value_fields(value)
        show_json(fields)
    elif value is None:
        show(f"{change.revision} {change.reason} {name}")
    else:
        text = value[:SHOWN_VALUE_CHARS].decode("utf-8", "replace")
        show(f"{change.revision} put {name} {for_terminal(text)}")
