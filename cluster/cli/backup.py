"""`onecopy backup`: write a backup of a running cluster, and check one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import click

from cluster.bulk.backup import BackupSummary, take_backup
from cluster.bulk.dump import open_output
from cluster.bulk.progress import ProgressView
from cluster.cli.backup_file import open_backup
from cluster.cli.bulk import run_fast
from cluster.cli.common import STDIN, client_options, fail, open_endpoints, report_errors, whom
from cluster.client.aio import AsyncClient
from cluster.client.backup import backup_pieces
from cluster.exit_codes import (
    EXIT_OUTPUT_FAILED,
    EXIT_UNAVAILABLE,
)
from cluster.terminal import OutputFailedError, say, say_json, show, show_bytes, show_json
from datapath.errors import BackupError, is_out_of_space
from datapath.storage.backup import verify_backup

NOT_COMPLETE = "The backup is not complete. An existing file is unchanged."


class BackupGroup(click.Group):
    """`onecopy backup FILE` is `onecopy backup create FILE`."""

    def resolve_command(
        self,
        ctx: click.Context,  # noqa: ARG002 -- click's signature
        args: list[str],
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that is named, or else `create`."""
        named = args[0] if args and args[0] in self.commands else "create"
        return named, self.commands[named], args[1:] if args[0] == named else args


@click.group(cls=BackupGroup, subcommand_metavar="FILE | verify FILE")
def backup() -> None:
    """Write a backup of a running cluster to FILE, or check one.

    `onecopy backup FILE` is short for `onecopy backup create FILE`.
    """


@backup.command(context_settings={"ignore_unknown_options": False})
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))
@click.option(
    "--stale",
    is_flag=True,
    help="Take what the node holds, without asking the primary: for a cluster that has none.",
)
@client_options
def create(
    file: Path, stale: bool, endpoints: str, timeout_ms: int, no_discover: bool, as_json: bool
) -> None:
    """Write a backup to FILE (- for standard output): one consistent state, at one revision.

    Any replica writes it, the first of --endpoints that can. It is checked while it comes, and FILE
    is replaced only once the backup is complete and durable.
    """
    urls = open_endpoints(endpoints)
    started = time.monotonic()

    async def main(write: Callable[[bytes], object], view: ProgressView) -> BackupSummary:
        written = 0

        def take(piece: bytes) -> None:
            nonlocal written
            written += len(piece)
            write(piece)

        async with (
            AsyncClient(urls, timeout_ms=timeout_ms, discover=not no_discover, **whom()) as client,
            contextlib.aclosing(
                backup_pieces(client, stale=stale, timeout_ms=timeout_ms)
            ) as pieces,
        ):
            return await take_backup(pieces, take, lambda items: view.update(items, written))

    rest = "What was written is no whole backup." if file == STDIN else NOT_COMPLETE
    with (
        report_errors(as_json=as_json, interrupted=rest[0].lower() + rest[1:-1]),
        ProgressView("backed up", None) as view,
    ):
        try:
            if file == STDIN:
                summary = run_fast(main(show_bytes, view))
            else:
                with open_output(file) as target:
                    summary = run_fast(main(target.write, view))
        except BackupError as error:
            fail(str(error), rest, EXIT_UNAVAILABLE)
        except OutputFailedError as error:
            problem = f"standard output: {error.message}"
            fail(problem, f"Write it elsewhere. {rest}", error.exit_code)
        except OSError as error:
            advice = "Free space there, or name another FILE. " * is_out_of_space(error.errno)
            fail(f"{file}: {error.strerror or error}", advice + rest, EXIT_OUTPUT_FAILED)
    if as_json:
        (say_json if file == STDIN else show_json)(summary.fields())
        return
    say(f"{_text(summary)}; {time.monotonic() - started:.1f} s")


@backup.command()
@click.argument(
    "file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)
)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def verify(file: Path, as_json: bool) -> None:
    """Read the whole backup FILE (- for standard input), and check that it can be restored."""
    with open_backup(file) as (reader, view):
        end = verify_backup(reader, lambda items: view.update(items, reader.position))
    summary = BackupSummary(reader.header, end, reader.position)
    if as_json:
        show_json(summary.fields())
    else:
        show(f"{file} is whole: {_text(summary)}")


def _text(summary: BackupSummary) -> str:
    header = summary.header
    made = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(header.created_s))
    return (
        f"revision {header.revision} of {header.source}, written by {header.node} at "
        f"{made}; {summary.end.items:,} items, {summary.size_bytes:,} bytes, digest "
        f"{summary.end.digest}"
    )
