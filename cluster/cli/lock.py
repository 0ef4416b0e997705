"""`onecopy lock` and `onecopy elect`: run a command while a lock is held, or while leading."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

import click

from cluster.cli.common import READ_INTERRUPTED, client_options, open_client
from cluster.client.errors import LockLostError
from cluster.client.sync_leasing import Lock
from cluster.terminal import for_terminal, show, show_json

COMMAND_LOOK_INTERVAL_S = 0.2
"""How often it is looked at whether the command has ended, or the lock is lost."""
KILL_AFTER_S = 10.0
"""How long a command may take to end after SIGTERM."""

_ttl = click.option(
    "--ttl",
    type=click.FloatRange(1, 86_400),
    default=10.0,
    show_default=True,
    help="Seconds after which the next in the queue gets it if this process has died.",
)
_wait = click.option(
    "--wait", type=click.FloatRange(0), help="Wait at most this many seconds [default: no limit]."
)
_command = click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)


@click.command()
@click.argument("name")
@_command
@_ttl
@_wait
@click.option("--note", default="", help="Text about the holder, shown to others.")
@client_options
def lock(
    name: str,
    command: tuple[str, ...],
    ttl: float,
    wait: float | None,
    note: str,
    endpoints: str,
    timeout_ms: int,
    no_discover: bool,
    as_json: bool,
) -> None:
    """Run COMMAND while holding the lock NAME, and exit with its exit code.

    COMMAND gets the token in ONECOPY_LOCK_TOKEN, and SIGTERM if the lock is lost. Put -- before
    COMMAND.
    """
    with open_client(endpoints, timeout_ms, no_discover, as_json=as_json) as client:
        held = client.lock(name, ttl=ttl, note=note, wait=wait)
        sys.exit(_run(held, command))


@click.command()
@click.argument("name")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@_ttl
@_wait
@click.option("--value", default="", help="Text about the leader, shown to others.")
@click.option(
    "--observe", is_flag=True, help="Without COMMAND: print the leader, now and at each change."
)
@client_options
def elect(
    name: str,
    command: tuple[str, ...],
    ttl: float,
    wait: float | None,
    value: str,
    observe: bool,
    endpoints: str,
    timeout_ms: int,
    no_discover: bool,
    as_json: bool,
) -> None:
    """Run COMMAND while leading the election NAME, and exit with its code. See onecopy lock.

    With --observe, print the leader until Ctrl-C: the revision of the change, then the leader's
    token and value, or "none".
    """
    if bool(command) == observe:
        raise click.UsageError("give either COMMAND, after --, or --observe")
    if observe:
        _observe(name, endpoints, timeout_ms, no_discover, as_json=as_json)
        return
    with open_client(endpoints, timeout_ms, no_discover, as_json=as_json) as client:
        sys.exit(_run(client.elect(name, ttl=ttl, value=value, wait=wait), command))


def _observe(
    name: str, endpoints: str, timeout_ms: int, no_discover: bool, *, as_json: bool
) -> None:
    with (
        open_client(
            endpoints, timeout_ms, no_discover, as_json=as_json, interrupted=READ_INTERRUPTED
        ) as client,
        suppress(KeyboardInterrupt),  # the way to end it
        client.observe(name, timeout_ms=timeout_ms) as events,
    ):
        for event in events:
            leader = event.leader
            if as_json:
                fields = None
                if leader is not None:
                    fields = {"token": leader.token, "lease": leader.lease, "value": leader.value}
                show_json({"revision": event.revision, "leader": fields})
            elif leader is None:
                show(f"{event.revision} none")
            else:
                show(f"{event.revision} {leader.token} {for_terminal(leader.value)}")


def _run(held: Lock, command: Sequence[str]) -> int:
    """Run the command while `held` is; return its exit code. Raises LockLostError."""
    with held:
        environment = {
            **os.environ,
            "ONECOPY_LOCK_NAME": held.name,
            "ONECOPY_LOCK_TOKEN": str(held.token),
        }
        try:
            process = subprocess.Popen(command, env=environment)  # noqa: S603 -- the user's own
        except OSError as error:
            raise click.UsageError(f"COMMAND cannot be run: {error}") from None
        try:
            while process.poll() is None:
                if held.wait_lost(COMMAND_LOOK_INTERVAL_S):
                    raise LockLostError(
                        f"the lock {held.name!r} was lost: the command was ended",
                        code="lock_lost",
                        status=412,
                    )
        finally:
            _end(process)
        return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(KILL_AFTER_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
