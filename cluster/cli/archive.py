"""`onecopy archive`: what an archive holds, and whether it can be restored."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import click
import msgspec

from cluster.archive.catalog import RestorableSpan, RestorePlan
from cluster.archive.errors import ArchiveError, ArchiveUnavailableError
from cluster.archive.object_store import UnusableUrlError, open_store
from cluster.archive.reading import Archive, OnRevision, as_text
from cluster.archive.verifying import verify_span
from cluster.bulk.progress import ProgressView
from cluster.cli.common import fail, report_disk_errors
from cluster.exit_codes import EXIT_DAMAGED, EXIT_UNAVAILABLE
from cluster.terminal import printable, show, show_json
from datapath.errors import BackupError
from datapath.storage.environment import DEFAULT_MAP_SIZE_BYTES

cluster_option = click.option(
    "--cluster-id", default="", help="Which cluster's, if the archive holds several."
)


class SpanDocument(msgspec.Struct, frozen=True):
    """Revisions that can be restored one by one."""

    first: int
    last: int
    from_time: str
    to_time: str
    bases: int
    pieces: int
    digest: str | msgspec.UnsetType = msgspec.UNSET


class ArchiveDocument(msgspec.Struct, frozen=True):
    """What an archive holds of a cluster; between two spans it has a gap."""

    cluster_id: str
    spans: list[SpanDocument]


@click.group()
def archive() -> None:
    """Look into the archive of a cluster ([archive] in its configuration file).

    To make a cluster of it: onecopy restore.
    """


@archive.command("show")
@click.argument("url")
@cluster_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show_archive(url: str, cluster_id: str, as_json: bool) -> None:
    """Show which revisions and times the archive at URL can restore."""
    with errors_told():
        found = open_archive(url, cluster_id)
        _tell(
            ArchiveDocument(
                found.cluster_id, [_document(found, span) for span in found.catalog.spans()]
            ),
            as_json=as_json,
        )


@archive.command("verify")
@click.argument("url")
@cluster_option
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="Where there is room for twice the state [default: the system's temporary directory].",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(url: str, cluster_id: str, directory: Path | None, as_json: bool) -> None:
    """Read all of the archive at URL, replay it, and compare the state with each base state.

    What is damaged or missing is named, and the exit code is 65.
    """
    disk_errors = report_disk_errors(
        if_full="Free space there, or name a directory with room: --dir.",
        else_="Name another directory: --dir.",
    )
    with errors_told(), disk_errors:
        found = open_archive(url, cluster_id)
        documents = []
        for span in found.catalog.spans():
            with (
                tempfile.TemporaryDirectory(dir=directory, prefix="onecopy-") as temporary,
                progress_of(span.first, span.last) as view,
            ):
                digest = verify_span(
                    found,
                    span,
                    Path(temporary),
                    map_size_bytes=DEFAULT_MAP_SIZE_BYTES,
                    progress=view,
                )
            documents.append(msgspec.structs.replace(_document(found, span), digest=digest))
        _tell(ArchiveDocument(found.cluster_id, documents), as_json=as_json)


def open_archive(url: str, cluster_id: str) -> Archive:
    """Open an archive. Raises ArchiveError, and click.UsageError for a URL that names none."""
    try:
        store = open_store(url)
    except UnusableUrlError as error:
        raise click.UsageError(f"URL: {error}") from None
    return Archive(store, cluster_id)


def is_url(source: str) -> bool:
    """Whether this names an archive, not a file."""
    return "://" in source


def parse_moment(text: str) -> int:
    """Return a time with its offset from UTC, ISO 8601, in ms since 1970. Raises UsageError."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError(f"--to-time: {text!r} is not like 2026-11-28T09:30:00Z") from None
    if moment.tzinfo is None:
        raise click.UsageError(
            f"--to-time: {text!r} has no offset from UTC: add Z for UTC, or one like +02:00"
        )
    return int(moment.timestamp() * 1000)


class Point(NamedTuple):
    """A point of an archive: how to reach it, and about when it was (ms since 1970)."""

    archive: Archive
    plan: RestorePlan
    time_ms: int


def open_point(url: str, cluster_id: str, to_revision: int | None, to_time: str | None) -> Point:
    """Look up a revision or a time; the newest revision if both are None. Ends as `errors_told`."""
    time_ms = None if to_time is None else parse_moment(to_time)
    with errors_told():
        found = open_archive(url, cluster_id)
        plan = found.at_revision(to_revision) if time_ms is None else found.at_time(time_ms)
        time_ms = found.time_of(plan)
    return Point(found, plan, time_ms)


@contextlib.contextmanager
def progress_of(first: int, last: int) -> Iterator[OnRevision]:
    """Show how far a replay from `first` to `last` is."""
    with ProgressView("replayed", last - first) as view:
        yield lambda revision: view.update(revision - first, revision - first)


@contextlib.contextmanager
def errors_told() -> Iterator[None]:
    """End the command for what can go wrong with an archive, with what to do."""
    try:
        yield
    except ArchiveUnavailableError as error:
        fail(
            printable(str(error)),
            "Check the URL, the credentials and the network.",
            EXIT_UNAVAILABLE,
        )
    except (ArchiveError, BackupError) as error:
        fail(
            printable(str(error)),
            "See what can be restored with: onecopy archive show URL",
            EXIT_DAMAGED,
        )


def _document(found: Archive, span: RestorableSpan) -> SpanDocument:
    return SpanDocument(
        span.first,
        span.last,
        as_text(span.bases[0].time_ms),
        as_text(found.time_of(found.at_revision(span.last))),
        len(span.bases),
        len(span.pieces),
    )


def _tell(document: ArchiveDocument, *, as_json: bool) -> None:
    if as_json:
        show_json(document)
        return
    lines = [f"cluster {document.cluster_id}"]
    lines += [
        f"revisions {span.first} to {span.last}, {span.from_time} to {span.to_time}: "
        f"{span.bases} base states, {span.pieces} pieces"
        + (f", digest {span.digest}" if span.digest else "")
        for span in document.spans
    ]
    if not document.spans:
        lines.append("no base state: nothing can be restored")
    show(printable("\n".join(lines), keep="\n"))
