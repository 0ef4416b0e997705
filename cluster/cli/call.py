"""`onecopy call`: call a method of a user's service."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from cluster.cli.common import (
    check_after,
    client_options,
    idempotency_options,
    open_client,
)
from cluster.cli.kv import confirmed_option, consistency_of, stale_option
from cluster.terminal import show


@click.command()
@click.argument("service")
@click.argument("method")
@click.argument("arguments", nargs=-1, metavar="[NAME=VALUE | NAME:=JSON]...")
@click.option("--read", is_flag=True, help="METHOD is a query: run it at any node.")
@stale_option
@confirmed_option
@idempotency_options
@client_options
def call(
    service: str,
    method: str,
    arguments: tuple[str, ...],
    read: bool,
    stale: bool,
    confirmed: bool,
    idempotency_key: str,
    idempotency_after: int | None,
    endpoints: str,
    timeout_ms: int,
    no_discover: bool,
    as_json: bool,
) -> None:
    """Call METHOD of SERVICE, and print its result as JSON.

    NAME=VALUE gives an argument as text, which is converted to a number where the method takes one;
    NAME:=JSON gives one as JSON: onecopy call shop reserve item=apple count=2 tags:='["red"]'
    """
    named = _named(arguments)
    check_after(idempotency_key, idempotency_after)
    consistency = consistency_of(stale=stale, confirmed=confirmed)
    with open_client(endpoints, timeout_ms, no_discover, as_json=as_json) as client:
        found = client.service(
            service,
            reads=read or stale or confirmed,
            from_text=True,
            consistency=consistency,
            idempotency_key=idempotency_key,
            idempotency_after=idempotency_after,
        )
        result = getattr(found, method)(**named)
    text = msgspec.json.encode({"result": result} if as_json else result)
    show(text.decode() if as_json else msgspec.json.format(text).decode())


def _named(arguments: tuple[str, ...]) -> dict[str, Any]:
    """Return the named arguments. Raises UsageError."""
    named: dict[str, Any] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        is_json = name.endswith(":")
        name = name.removesuffix(":")
        if not equals or not name.isidentifier():
            raise click.UsageError(f"{argument!r} is not NAME=VALUE or NAME:=JSON")
        if name in named:
            raise click.UsageError(f"argument {name!r} is given twice")
        try:
            named[name] = msgspec.json.decode(value.encode()) if is_json else value
        except (msgspec.DecodeError, UnicodeError) as error:
            raise click.UsageError(f"argument {name!r} is not JSON: {error}") from None
    return named
