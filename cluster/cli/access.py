"""`onecopy token` and `onecopy role`: who may do what."""

from __future__ import annotations

import os
from pathlib import Path

import click

from cluster.cli.common import (
    CHANGE_INTERRUPTED,
    READ_INTERRUPTED,
    client_options,
    fail,
    open_client,
)
from cluster.client.results import RoleInfo, RoleRights, TokenInfo
from cluster.exit_codes import EXIT_NOT_APPLIED
from cluster.services.access_guard import draw_token, hash_line, principal_of
from cluster.terminal import printable, say, show, show_json


@click.group()
def token() -> None:
    """Make, list and revoke tokens."""


@token.command("init")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def init_token(file: Path) -> None:
    """Draw the first administrator's token into FILE, before the cluster is started.

    It prints the lines for the configuration file of every node; they hold only a hash.
    """
    drawn = draw_token()
    try:
        write_private(file, drawn.text + "\n")
    except FileExistsError:
        fail(f"{file} already exists", "Choose another file, or remove it.", EXIT_NOT_APPLIED)
    except OSError as error:
        fail(f"{file}: {error.strerror}", "", EXIT_NOT_APPLIED)
    say(f"The token is in {file}. Add to the configuration file of every node:")
    show(f'[access]\nadmin_token_hash = "{hash_line(drawn)}"')


def write_private(path: Path, text: str) -> None:
    """Write a new file that its owner alone can read. Raises OSError: FileExistsError, say."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 -- a descriptor
        file.write(text)


@token.command("create")
@click.argument("role")
@click.option("--note", default="", help="Whose it is, or what for.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="New file for the token, readable by you alone [default: standard output].",
)
@click.option(
    "--certificate",
    default="",
    metavar="NAME",
    help="Give ROLE to clients' certificates with this common name, in place of a token.",
)
@client_options
def create_token(
    role: str,
    note: str,
    output: Path | None,
    certificate: str,
    endpoints: str,
    timeout_ms: int,
    no_discover: bool,
    as_json: bool,
) -> None:
    """Make a token with ROLE. It is shown this once: the cluster keeps only a hash."""
    if output is not None and certificate:
        raise click.UsageError("--output is for a token, and --certificate makes none")
    if output is not None and output.exists():
        raise click.UsageError(f"--output: {output} already exists")
    with open_client(
        endpoints, timeout_ms, no_discover, as_json=as_json, interrupted=CHANGE_INTERRUPTED
    ) as client:
        made = client.create_token(role, note=note, certificate=certificate)
    if certificate:
        said = f"certificates of the name {certificate} have role {role}"
        show_json({"id": made.id, "role": role}) if as_json else say(said)
        return
    if output is None:
        show_json(made) if as_json else show(made.token)
        return
    try:
        write_private(output, made.token + "\n")
    except OSError as error:
        advice = f"The token is lost: revoke it with: onecopy token revoke {made.id}"
        fail(f"{output}: {error.strerror}", advice, EXIT_NOT_APPLIED)
    show_json({"id": made.id, "role": role}) if as_json else say(f"token {made.id} is in {output}")


@token.command("list")
@client_options
def list_tokens(endpoints: str, timeout_ms: int, no_discover: bool, as_json: bool) -> None:
    """List tokens by their ids, with their roles."""
    with open_client(
        endpoints, timeout_ms, no_discover, as_json=as_json, interrupted=READ_INTERRUPTED
    ) as client:
        found = client.list_tokens()
    if as_json:
        show_json({"tokens": found})
        return
    for item in found:
        show(printable(_token_line(item)))


def _token_line(item: TokenInfo) -> str:
    return f"{item.id}  {item.role}  {item.note}".rstrip()


@token.command("revoke")
@click.argument("token_id", metavar="ID")
@client_options
def revoke_token(
    token_id: str, endpoints: str, timeout_ms: int, no_discover: bool, as_json: bool
) -> None:
    """Revoke the token with this ID: it is refused everywhere within about a second."""
    if (shown := principal_of(token_id)) is not None:
        raise click.UsageError(
            f"that is a token, and its ID is {shown.token}: `ps` shows arguments"
        )
    with open_client(
        endpoints, timeout_ms, no_discover, as_json=as_json, interrupted=CHANGE_INTERRUPTED
    ) as client:
        client.revoke_token(token_id)
    show_json({"revoked": token_id}) if as_json else show(printable(f"revoked {token_id}"))


@click.group()
def role() -> None:
    """Make, list and delete roles."""


@role.command("set")
@click.argument("name")
@click.option("--read", multiple=True, metavar="PREFIX", help="Keys that may be read.")
@click.option("--write", multiple=True, metavar="PREFIX", help="Keys that may be written.")
@click.option("--watch", multiple=True, metavar="PREFIX", help="Keys that may be watched.")
@click.option("--lock", multiple=True, metavar="PREFIX", help="Locks and elections.")
@click.option("--call", multiple=True, metavar="SERVICE", help="A service; '*': all.")
@click.option("--admin", is_flag=True, help="Everything, and changes of the cluster.")
@client_options
def set_role(
    name: str,
    read: tuple[str, ...],
    write: tuple[str, ...],
    watch: tuple[str, ...],
    lock: tuple[str, ...],
    call: tuple[str, ...],
    admin: bool,
    endpoints: str,
    timeout_ms: int,
    no_discover: bool,
    as_json: bool,
) -> None:
    """Make role NAME, or replace all its rights. An empty PREFIX is everything.

    Options may be given several times: onecopy role set app --read app/ --read shared/
    """
    rights = RoleRights(read, write, watch, lock, call, admin)
    with open_client(
        endpoints, timeout_ms, no_discover, as_json=as_json, interrupted=CHANGE_INTERRUPTED
    ) as client:
        client.set_role(name, rights)
    found = RoleInfo(name, rights)
    show_json(found) if as_json else show(printable(_role_line(found)))


@role.command("list")
@client_options
def list_roles(endpoints: str, timeout_ms: int, no_discover: bool, as_json: bool) -> None:
    """List roles and their rights."""
    with open_client(
        endpoints, timeout_ms, no_discover, as_json=as_json, interrupted=READ_INTERRUPTED
    ) as client:
        found = client.list_roles()
    if as_json:
        show_json({"roles": found})
        return
    for item in found:
        show(printable(_role_line(item)))


def _role_line(item: RoleInfo) -> str:
    rights = item.rights
    if rights.admin:
        return f"{item.name}: admin"
    parts = [
        f"{right} {', '.join(repr(prefix) for prefix in getattr(rights, right))}"
        for right in ("read", "write", "watch", "lock", "call")
        if getattr(rights, right)
    ]
    return f"{item.name}: {'; '.join(parts) or 'status only'}"


@role.command("delete")
@click.argument("name")
@client_options
def delete_role(
    name: str, endpoints: str, timeout_ms: int, no_discover: bool, as_json: bool
) -> None:
    """Delete role NAME. Its tokens have to be revoked before."""
    with open_client(
        endpoints, timeout_ms, no_discover, as_json=as_json, interrupted=CHANGE_INTERRUPTED
    ) as client:
        client.delete_role(name)
    show_json({"deleted": name}) if as_json else show(printable(f"deleted {name}"))
