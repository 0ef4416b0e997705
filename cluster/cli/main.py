"""The command `onecopy`. Each command's module is imported only when that command is called."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import click

from cluster.exit_codes import EXIT_INTERRUPTED, EXIT_NOT_APPLIED, EXIT_REFUSED

COMMANDS = {
    "up": "cluster.cli.up:up",
    "serve": "cluster.cli.serve:serve",
    "put": "cluster.cli.kv:put",
    "get": "cluster.cli.kv:get",
    "delete": "cluster.cli.kv:delete",
    "txn": "cluster.cli.txn:txn",
    "list": "cluster.cli.kv:list_keys",
    "call": "cluster.cli.call:call",
    "watch": "cluster.cli.watch:watch",
    "lease": "cluster.cli.lease:lease",
    "lock": "cluster.cli.lock:lock",
    "elect": "cluster.cli.lock:elect",
    "status": "cluster.cli.cluster:status",
    "handover": "cluster.cli.cluster:handover",
    "remove": "cluster.cli.cluster:remove",
    "finish-upgrade": "cluster.cli.cluster:finish_upgrade",
    "groups": "cluster.cli.groups:groups",
    "member": "cluster.cli.member:member",
    "placement": "cluster.cli.placement:placement",
    "token": "cluster.cli.access:token",
    "role": "cluster.cli.access:role",
    "recover": "cluster.cli.recover:recover",
    "load": "cluster.cli.bulk:load",
    "dump": "cluster.cli.bulk:dump",
    "backup": "cluster.cli.backup:backup",
    "restore": "cluster.cli.restore:restore",
    "archive": "cluster.cli.archive:archive",
    "certs": "cluster.cli.certs:certs",
    "completion": "cluster.cli.completion:completion",
}

SERVER_COMMANDS = {
    "up": EXIT_NOT_APPLIED,
    "serve": EXIT_REFUSED,
    "certs": EXIT_NOT_APPLIED,
    "archive": EXIT_NOT_APPLIED,
    "backup": EXIT_NOT_APPLIED,
    "restore": EXIT_REFUSED,
    "recover": EXIT_NOT_APPLIED,
}
"""Commands that need the extra `server`, and how they end without it."""
ELSEWHERE = {"add": "serve", "join": "serve", "export": "dump", "import": "load"}
"""What is looked for under other names."""
OWN_PACKAGES = ("cluster", "datapath", "election")


class LazyGroup(click.Group):
    """A group whose commands are named by "module:function" and imported when used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click's signature
        """Return the commands in the order in which they are best learned."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import and return the command, or None where there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module, _, function = COMMANDS[cmd_name].partition(":")
        try:
            command = getattr(importlib.import_module(module), function)
        except ModuleNotFoundError as error:
            if cmd_name not in SERVER_COMMANDS or (error.name or "").startswith(OWN_PACKAGES):
                raise
            return _not_installed(cmd_name, error.name or "")
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that is named. Raises UsageError, which names one that is alike."""
        name = args[0] if args else ""
        near = ELSEWHERE.get(name) or next(iter(difflib.get_close_matches(name, COMMANDS)), "")
        if name not in COMMANDS and near:
            ctx.fail(f"No such command {name!r}. Did you mean: onecopy {near}")
        return super().resolve_command(ctx, args)

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        """Read the command line, and print what `--help` and `--version` ask for."""
        with _output_checked():
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, which may be asked for its own help."""
        with _output_checked():
            return super().invoke(ctx)


def _not_installed(name: str, missing: str) -> click.Command:
    """Return what stands for a server command where only the client is installed."""

    def refuse() -> None:
        from cluster.cli.common import fail  # noqa: PLC0415 -- rarely needed

        fail(
            f"'onecopy {name}' needs packages that are not installed ({missing})",
            "Install them with: pip install 'onecopy[server]'",
            SERVER_COMMANDS[name],
        )

    return click.Command(
        name,
        callback=refuse,
        help="Not installed. Install it with: pip install 'onecopy[server]'",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )


@contextlib.contextmanager
def _output_checked() -> Iterator[None]:
    """Raise OutputFailedError for what click itself could not print: help, the version.

    Ctrl-C that comes before or after what a command does has the exit code for it, too.
    """
    try:
        yield
    except KeyboardInterrupt:
        from cluster.terminal import say  # noqa: PLC0415 -- rarely needed

        say("interrupted")
        sys.exit(EXIT_INTERRUPTED)
    except OSError as error:
        from cluster.terminal import LOST_ERRNOS, output_failed  # noqa: PLC0415 -- rarely needed

        if error.errno not in LOST_ERRNOS or error.filename is not None:
            raise
        output_failed(error)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done; 1 refused, nothing applied; 2 usage; 3 no such key; 4 condition "
    "failed; 5 unknown outcome; 6 no node available; 7 storage full; 65 damaged "
    "backup; 74 done, but the output could not be written; 78 a node "
    "refused to start, or a restore its directory.",
)
@click.version_option(package_name="onecopy", message="onecopy %(version)s")
def main() -> None:
    """Run, inspect and use a replicated key-value service that loses no acknowledged write."""
    hold_standard_descriptors()


def hold_standard_descriptors() -> None:
    """Open /dev/null in place of each of descriptors 0, 1 and 2 that is closed.

    Else a socket or a file would get its number, messages would be written into it, and uvloop
    ends the process when it closes such a one. `sys.stdout` stays None: what is printed there is
    still known to be lost (`cluster.terminal`).
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one


if __name__ == "__main__":
    main(prog_name="onecopy")
