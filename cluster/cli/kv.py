"""`onecopy put`, `get`, `delete` and `list`."""

from __future__ import annotations

import os
import sys
from typing import BinaryIO, Literal

import click

from cluster.cli.common import (
    READ_INTERRUPTED,
    check_after,
    client_options,
    fail,
    group_option,
    head_fields,
    idempotency_options,
    min_copies_option,
    open_client,
    read_source,
    value_fields,
)
from cluster.cli.txn import delete_keys
from cluster.client.results import Item
from cluster.exit_codes import EXIT_NOT_FOUND
from cluster.terminal import for_terminal, say_json, show, show_json, show_value
from datapath.operations import Consistency

IF_REVISION_HELP = "Only if the key is at this revision."


stale_option = click.option(
    "--stale", is_flag=True, help="Read this node's own state, which may be behind."
)
confirmed_option = click.option(
    "--confirmed",
    is_flag=True,
    help="Have the in-sync replicas confirm the read: it then depends on no clock, and takes one "
    "more round trip between nodes.",
)


def consistency_of(*, stale: bool, confirmed: bool) -> Consistency:
    """Return what --stale and --confirmed ask for. Raises UsageError for both."""
    if stale and confirmed:
        raise click.UsageError("--stale and --confirmed cannot be combined")
    return "stale" if stale else "confirmed" if confirmed else "linearizable"


@click.command()
@click.argument("key")
@click.argument("value", required=False)
@click.option(
    "--file",
    "source",
    type=click.File("rb"),
    help="Read the value from this file (- for standard input).",
)
@click.option("--if-revision", type=click.IntRange(min=1), help=IF_REVISION_HELP)
@click.option("--if-absent", is_flag=True, help="Only if the key does not exist.")
@click.option(
    "--ack",
    type=click.Choice(["all", "local"]),
    default="all",
    show_default=True,
    help="all: acknowledge once every in-sync replica has the write on disk. local: once the "
    "primary has; a failover may lose it, and reads may return the old value for a moment.",
)
@min_copies_option
@idempotency_options
@client_options
def put(
    key: str,
    value: str | None,
    source: BinaryIO | None,
    if_revision: int | None,
    if_absent: bool,
    ack: Literal["all", "local"],
    min_copies: int,
    idempotency_key: str,
    idempotency_after: int | None,
    endpoints: str,
    timeout_ms: int,
    no_discover: bool,
    as_json: bool,
) -> None:
    """Write VALUE (or a file's bytes) under KEY."""
    if (value is None) == (source is None):
        raise click.UsageError("give either VALUE or --file FILE (- for standard input)")
    if if_absent and if_revision is not None:
        raise click.UsageError("--if-absent and --if-revision cannot be combined")
    body = os.fsencode(value) if value is not None else read_source(source)
    check_after(idempotency_key, idempotency_after)
    with open_client(endpoints, timeout_ms, no_discover, as_json=as_json) as client:
        result = client.put(
            key,
            body,
            if_revision=if_revision,
            if_absent=if_absent,
            ack=ack,
            min_copies=min_copies,
            idempotency_key=idempotency_key,
            idempotency_after=idempotency_after,
        )
    if as_json:
        show_json(result)
    else:
        word = "created" if result.created else "replaced"
        copies = "copy" if result.copies == 1 else "copies"
        show(f"{word}: revision {result.revision}, {result.copies} {copies}")


@click.command()
@click.argument("key")
@stale_option
@confirmed_option
@click.option(
    "--max-staleness-ms", type=click.IntRange(0), help="With --stale: maximum age of what is read."
)
@client_options
def get(
    key: str,
    stale: bool,
    confirmed: bool,
    max_staleness_ms: int | None,
    endpoints: str,
    timeout_ms: int,
    no_discover: bool,
    as_json: bool,
) -> None:
    """Write the value of KEY to standard output, byte for byte.

    Only committed values are read: a preceding put with --ack local may not be visible yet.
    """
    if max_staleness_ms is not None and not stale:
        raise click.UsageError("--max-staleness-ms needs --stale")
    with open_client(
        endpoints, timeout_ms, no_discover, as_json=as_json, interrupted=READ_INTERRUPTED
    ) as client:
        entry = client.get(
            key,
            consistency=consistency_of(stale=stale, confirmed=confirmed),
            max_staleness_ms=max_staleness_ms,
        )
    if entry is None:
        _no_such_key(key, as_json=as_json)
    elif as_json:
        who = {"node": entry.node, "epoch": entry.epoch}
        show_json({"key": key, **value_fields(entry.value), **head_fields(entry), **who})
    else:
        show_value(entry.value)


@click.command()
@click.argument("key", required=False)
@click.option("--prefix", default="", help="Delete all keys with this prefix.")
@click.option("--start", default="", help="Delete all keys from this one on.")
@click.option("--end", default="", help="With --start: stop before this key.")
@click.option("--if-revision", type=click.IntRange(min=1), help=IF_REVISION_HELP)
@min_copies_option
@idempotency_options
@client_options
def delete(
    key: str | None,
    prefix: str,
    start: str,
    end: str,
    if_revision: int | None,
    min_copies: int,
    idempotency_key: str,
    idempotency_after: int | None,
    endpoints: str,
    timeout_ms: int,
    no_discover: bool,
    as_json: bool,
) -> None:
    """Delete KEY, or all keys of a range.

    The exit code is 3 if there is no KEY. A range is deleted in several requests.
    """
    is_range = bool(prefix or start or end)
    if is_range == (key is not None):
        raise click.UsageError("give either KEY, or --prefix, --start or --end (not empty)")
    if is_range and (if_revision is not None or idempotency_key):
        raise click.UsageError("--if-revision and --idempotency-key need a KEY")
    check_after(idempotency_key, idempotency_after)
    with open_client(endpoints, timeout_ms, no_discover, as_json=as_json) as client:
        if key is None:
            delete_keys(client, prefix, start, end, min_copies=min_copies, as_json=as_json)
            return
        result = client.delete(
            key,
            if_revision=if_revision,
            min_copies=min_copies,
            idempotency_key=idempotency_key,
            idempotency_after=idempotency_after,
        )
    if as_json:
        show_json(result)
        if not result.deleted:
            sys.exit(EXIT_NOT_FOUND)
    elif result.deleted:
        show(f"deleted: revision {result.revision}")
    else:
        _no_such_key(key, as_json=False)


@click.command(name="list")
@click.option("--prefix", default="", help="Only keys with this prefix.")
@click.option("--start", default="", help="First key to list.")
@click.option("--end", default="", help="Stop before this key.")
@click.option("--limit", type=click.IntRange(1), help="Maximum number of keys.")
@click.option(
    "--long", "with_size", is_flag=True, help="Also print revision and size, separated by tabs."
)
@stale_option
@confirmed_option
@group_option
@client_options
def list_keys(
    prefix: str,
    start: str,
    end: str,
    limit: int | None,
    with_size: bool,
    stale: bool,
    confirmed: bool,
    group: str,
    endpoints: str,
    timeout_ms: int,
    no_discover: bool,
    as_json: bool,
) -> None:
    """Print keys in order, one per line. With --json, one object per line, values included."""
    shown = 0
    with open_client(
        endpoints, timeout_ms, no_discover, as_json=as_json, interrupted=READ_INTERRUPTED
    ) as client:
        for item in client.list(
            prefix,
            start=start,
            end=end,
            keys_only=not (with_size or as_json),
            consistency=consistency_of(stale=stale, confirmed=confirmed),
            page_size=min(limit or 500, 500),
            group=group,
        ):
            _show_item(item, with_size=with_size, as_json=as_json)
            shown += 1
            if shown == limit:
                break


def _show_item(item: Item, *, with_size: bool, as_json: bool) -> None:
    if as_json:
        show_json({"key": item.key, **value_fields(item.value), **head_fields(item)})
    elif with_size:
        show(f"{item.revision}\t{len(item.value)}\t{for_terminal(item.key)}")
    else:
        show(for_terminal(item.key))


def _no_such_key(key: str, *, as_json: bool) -> None:
    if as_json:
        body = {"code": "key_not_found", "detail": f"there is no key {key!r}"}
        say_json({"error": {**body, "exit_code": EXIT_NOT_FOUND}})
        sys.exit(EXIT_NOT_FOUND)
    fail(f"there is no key {key!r}", "", EXIT_NOT_FOUND)
