"""`onecopy txn`, and `onecopy delete` of a range."""

from __future__ import annotations

import sys
from typing import BinaryIO, Literal

import click

from cluster.bulk.progress import ProgressView
from cluster.cli.common import (
    check_after,
    client_options,
    head_fields,
    idempotency_options,
    min_copies_option,
    open_client,
    read_source,
    value_fields,
)
from cluster.client.results import (
    GetResult,
    Item,
    Page,
    TxnDeleteResult,
    TxnOperationResult,
    TxnPutResult,
    TxnResult,
)
from cluster.client.sync import Client
from cluster.exit_codes import EXIT_PRECONDITION_FAILED
from cluster.terminal import for_terminal, say, show, show_json


@click.command()
@click.argument("source", type=click.File("rb"), default="-", metavar="[FILE]")
@click.option("--ack", type=click.Choice(["all", "local"]), default="all", show_default=True,
              help="As for put.")  # fmt: skip
@min_copies_option
@idempotency_options
@client_options
def txn(
    source: BinaryIO,
    ack: Literal["all", "local"],
    min_copies: int,
    idempotency_key: str,
    idempotency_after: int | None,
    endpoints: str,
    timeout_ms: int,
    no_discover: bool,
    as_json: bool,
) -> None:
    """Run the transaction in FILE (default: standard input): JSON with "if", "then" and "else".

    All of it is applied, or nothing. The exit code is 4 if a condition does not hold; then "else"
    has been executed.
    """
    document = read_source(source)
    check_after(idempotency_key, idempotency_after)
    with open_client(endpoints, timeout_ms, no_discover, as_json=as_json) as client:
        result = client.transact(
            document,
            ack=ack,
            min_copies=min_copies,
            idempotency_key=idempotency_key,
            idempotency_after=idempotency_after,
        )
    if as_json:
        _show_as_json(result)
    else:
        word = "succeeded" if result.succeeded else "not succeeded"
        copies = "copy" if result.copies == 1 else "copies"
        show(f"{word}: revision {result.revision}, {result.copies} {copies}")
        for done in result.results:
            _show_result(done)
    if not result.succeeded:
        sys.exit(EXIT_PRECONDITION_FAILED)


def _show_as_json(result: TxnResult) -> None:
    show_json(
        {
            "succeeded": result.succeeded,
            "revision": result.revision,
            "epoch": result.epoch,
            "copies": result.copies,
            "results": [_fields(done) for done in result.results],
            "idempotency_key": result.idempotency_key,
        }
    )


def _fields(done: TxnOperationResult) -> object:
    match done:
        case TxnPutResult():
            return {"put": done}
        case TxnDeleteResult():
            return {"delete": done}
        case Page():
            return {"list": {"items": list(map(_key_fields, done.items)), "cursor": done.cursor}}
        case GetResult():
            return {"get": _key_fields(done)}
        case None:
            return {"get": None}


def _key_fields(found: GetResult | Item) -> dict[str, object]:
    return {"key": found.key, **value_fields(found.value), **head_fields(found)}


def _show_result(done: TxnOperationResult) -> None:
    match done:
        case TxnPutResult():
            show("put: created" if done.created else "put: replaced")
        case TxnDeleteResult():
            show(f"delete: {_count(done.deleted)}")
        case Page():
            more = ", and more follow" if done.cursor else ""
            show(f"list: {_count(len(done.items))}{more}")
            for item in done.items:
                show(f"  {for_terminal(item.key)}")
        case GetResult():
            text = done.value.decode("utf-8", "backslashreplace")
            show(f"get {for_terminal(done.key)}: {for_terminal(text)}")
        case None:
            show("get: no such key")


def _count(number: int) -> str:
    return "1 key" if number == 1 else f"{number:,} keys"


def delete_keys(client: Client, prefix: str, start: str, end: str, *, min_copies: int,
                as_json: bool) -> None:  # fmt: skip
    """Delete a range, request by request, with its progress on standard error."""
    deleted = revision = 0
    cursor: str | None = None
    try:
        with ProgressView("deleted", None) as view:
            while True:
                done = client.delete_range(
                    prefix, start=start, end=end, cursor=cursor, min_copies=min_copies
                )
                deleted, revision, cursor = deleted + done.deleted, done.revision, done.cursor
                view.update(deleted, 0)
                if cursor is None:
                    break
    except BaseException:
        if deleted:
            say(f"{_count(deleted)} deleted so far; the same command again deletes the rest")
        raise
    if as_json:
        show_json({"deleted": deleted, "revision": revision})
    else:
        show(f"deleted: {_count(deleted)}, revision {revision}")
