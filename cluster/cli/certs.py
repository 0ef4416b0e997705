"""`onecopy certs`: an authority of one's own, and the certificates of nodes and clients."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from cluster.certificates.authority import Authority, valid_for
from cluster.certificates.facts import (
    EXPIRY_WARNING_DAYS,
    CertificateError,
    CertificateFacts,
    facts_of,
    read_certificates,
    utc_now,
)
from cluster.certificates.hosts import hosts_of
from cluster.cli.common import fail
from cluster.cli.config_option import config_option
from cluster.config.file import load_config
from cluster.config.model import ConfigError
from cluster.exit_codes import EXIT_NOT_APPLIED
from cluster.terminal import printable, show, show_json

directory_option = click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default="certs",
    show_default=True,
    help="Directory of the authority and its certificates.",
)
days_option = click.option(
    "--days", type=click.IntRange(1, 36_500), help="Days until it expires [default: 365]."
)


@click.group()
def certs() -> None:
    """Make, renew, show and revoke the certificates of a cluster.

    Keep DIR, which holds the authority's key, on a machine of its own; a node needs ca.crt, ca.crl,
    and its own certificate and key.
    """


@certs.command()
@directory_option
@click.option("--days", type=click.IntRange(1, 36_500), help="[default: 3650].")
def ca(directory: Path, days: int | None) -> None:
    """Make a certificate authority."""
    with _errors_told():
        _tell(Authority(directory).create(None if days is None else valid_for(days)))


@certs.command()
@click.argument("nodes", nargs=-1)
@config_option("Configuration file that names the nodes and their addresses.")
@click.option("--host", "hosts", multiple=True, help="A further host name or address; repeatable.")
@days_option
@directory_option
def node(
    nodes: tuple[str, ...], path: Path, hosts: tuple[str, ...], days: int | None, directory: Path
) -> None:
    """Make the certificates of NODES, or of all nodes of the configuration that have none."""
    with _errors_told():
        config = load_config(path)
        authority = Authority(directory)
        has = authority.names()
        for each in nodes or [each for each in config.nodes if each not in has]:
            if each not in config.nodes:
                raise CertificateError(
                    f"{config.path} has no node {each!r}; the nodes: {', '.join(config.nodes)}"
                )
            names = (*hosts_of(config, each), *hosts)
            validity = None if days is None else valid_for(days)
            _tell(authority.issue_node(each, names, validity))


@certs.command()
@click.argument("name")
@days_option
@directory_option
def client(name: str, days: int | None, directory: Path) -> None:
    """Make a client's certificate, by which the cluster knows it as NAME."""
    with _errors_told():
        validity = None if days is None else valid_for(days)
        _tell(Authority(directory).issue_client(name, validity))


@certs.command()
@click.argument("names", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Renew every node's and client's.")
@days_option
@directory_option
def renew(names: tuple[str, ...], everything: bool, days: int | None, directory: Path) -> None:
    """Make new certificates and keys for NAMES, for the same hosts as before.

    Copy them over the old ones on each machine: the nodes take them up without a restart.
    """
    if bool(names) == everything:
        raise click.UsageError("name what is to be renewed, or give --all")
    with _errors_told():
        authority = Authority(directory)
        for each in names or authority.names():
            _tell(authority.renew(each, None if days is None else valid_for(days)))


@certs.command()
@click.argument("name")
@directory_option
def revoke(name: str, directory: Path) -> None:
    """Revoke NAME's certificate. Copy ca.crl to every node: they take it up by themselves."""
    with _errors_told():
        _tell(Authority(directory).revoke(name))


@certs.command()
@directory_option
@click.option("--days", type=click.IntRange(1, 36_500), help="[default: 3650].")
def rotate(directory: Path, days: int | None) -> None:
    """Replace the authority, step one: make a new one, and trust it beside the old one.

    Copy ca.crt and ca.crl to every node and client. Then make and copy new certificates with
    `renew --all`, and at last drop the old authority with `retire`.
    """
    with _errors_told():
        _tell(Authority(directory).rotate(None if days is None else valid_for(days)))


@certs.command()
@directory_option
def retire(directory: Path) -> None:
    """Replace the authority, last step: trust the old one no more. Copy ca.crt and ca.crl."""
    with _errors_told():
        _tell(Authority(directory).retire())


@certs.command("show")
@click.argument("files", nargs=-1, type=click.Path(dir_okay=False, path_type=Path))
@directory_option
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def show_certificates(files: tuple[Path, ...], directory: Path, as_json: bool) -> None:
    """Show certificates: those in FILES, or all of the directory."""
    with _errors_told():
        found = [
            (str(path), facts_of(certificate))
            for path in files or sorted(directory.glob("*.crt"))
            for certificate in read_certificates(path)
        ]
        if not found:
            raise CertificateError(
                f"{directory} holds no certificates; make an authority with: onecopy certs ca"
            )
    if as_json:
        show_json([{"file": path, **msgspec.structs.asdict(facts)} for path, facts in found])
        return
    for path, facts in found:
        show(printable(_line(path, facts)))


def _line(path: str, facts: CertificateFacts) -> str:
    days = facts.days_left(utc_now())
    until = f"until {facts.not_after:%Y-%m-%d %H:%M} UTC"
    if days < 0:
        until += ", EXPIRED"
    elif days < EXPIRY_WARNING_DAYS:
        until += f", {days:.0f} days left"
    names = f" for {' '.join(facts.names)}" if facts.names else ""
    return f"{path}: {facts.kind} {facts.subject}{names}; {until}; issued by {facts.issuer}"


def _tell(path: Path) -> None:
    show(printable(f"wrote {path}"))


@contextlib.contextmanager
def _errors_told() -> Iterator[None]:
    """End the program with a message where something cannot be done."""
    try:
        yield
    except (CertificateError, ConfigError) as error:
        fail(str(error), "", EXIT_NOT_APPLIED)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}", "", EXIT_NOT_APPLIED)
