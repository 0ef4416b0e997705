"""`onecopy placement`: which machine holds which node of which replica group."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import click

from cluster.cli.common import (
    CHANGE_INTERRUPTED,
    READ_INTERRUPTED,
    caller_options,
    fail,
    open_endpoints,
    report_errors,
    timeout_option,
    whom,
)
from cluster.client.errors import NotAppliedError, UnavailableError, UnknownOutcomeError
from cluster.client.sync import Client
from cluster.exit_codes import EXIT_NOT_APPLIED
from cluster.groups.fleet import FleetFile, FleetFileError, decode_fleet
from cluster.groups.placement import GroupState, PlacementStep, plan_placement
from cluster.terminal import printable, say, show, show_json

POLL_S = 1.0
START_TIMEOUT_S = 120.0
_Command = TypeVar("_Command", bound=Callable[..., None])


@click.group()
def placement() -> None:
    """Place the nodes of replica groups on machines, as a file describes them."""


def _options(function: _Command) -> _Command:
    timeout = timeout_option("Time limit of each request, retries included.")
    file = click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
    return file(timeout(caller_options(function)))


@placement.command()
@_options
def plan(file: Path, timeout_ms: int, as_json: bool) -> None:
    """Show the next step of each group of FILE. Nothing is changed."""
    with _fleet(file, timeout_ms, as_json=as_json, interrupted=READ_INTERRUPTED) as fleet:
        steps = fleet.plan()
    if as_json:
        show_json(steps)
    elif steps:
        show("\n".join(map(_line, steps)))
    else:
        show("every node is in its place")


@placement.command()
@click.option(
    "--start",
    metavar="COMMAND",
    default="",
    help="Run `COMMAND GROUP NODE MACHINE ROLE` to start a new node. Default: say which one, and "
    "wait.",
)
@click.option(
    "--wait-s",
    type=click.IntRange(1, 86_400),
    default=600,
    show_default=True,
    help="Give up when no step could be made for this long.",
)
@_options
def apply(file: Path, start: str, wait_s: int, timeout_ms: int, as_json: bool) -> None:
    """Carry out the steps of each group of FILE, until every node is in its place.

    May be interrupted and run again. A group's primary refuses what would endanger its data.
    """
    with _fleet(file, timeout_ms, as_json=as_json, interrupted=CHANGE_INTERRUPTED) as fleet:
        last = time.monotonic()
        while steps := fleet.plan():
            made = [step for step in steps if fleet.make(step, start)]
            for step in made:
                show_json(step) if as_json else show(_line(step))
            if made:
                last = time.monotonic()
                continue
            if time.monotonic() - last > wait_s:
                why = "; ".join(f"{step.group}: {step.reason}" for step in steps)
                fail(
                    f"no step could be made for {wait_s} s ({why})",
                    "Remove the cause, and run the command again.",
                    EXIT_NOT_APPLIED,
                )
            time.sleep(POLL_S)
    if not as_json:
        show("every node is in its place")


class _Fleet:
    """The groups of a file, asked and changed. `_coming`: the node that each waits for."""

    def __init__(self, file: FleetFile, clients: dict[str, Client]) -> None:
        self._file = file
        self._clients = clients
        self._coming: dict[str, str] = {}
        self._told: dict[str, str] = {}

    def plan(self) -> list[PlacementStep]:
        """Ask every group, and plan. A group that does not answer is said, and left out."""
        states: list[GroupState] = []
        waiting: list[PlacementStep] = []
        for group, client in self._clients.items():
            try:
                state = self._file.observed(group, client.status())
            except UnavailableError as error:
                waiting.append(PlacementStep(kind="wait", group=group, reason=error.detail))
                continue
            if not state.view.primary:
                reason = "it has no primary"
                waiting.append(PlacementStep(kind="wait", group=group, reason=reason))
                continue
            states.append(state)
            if state.view.member(self._coming.get(group, "")) is not None:
                del self._coming[group]
        return [
            self._waits(step.group) if step.group in self._coming else step
            for step in plan_placement(self._file.described(), states)
        ] + waiting

    def _waits(self, group: str) -> PlacementStep:
        reason = f"{self._coming[group]} was started and has not come in yet: see its log"
        return PlacementStep(kind="wait", group=group, reason=reason)

    def make(self, step: PlacementStep, start: str) -> bool:
        """Make a step; whether it was made. What is refused is said, and planned anew."""
        client = self._clients[step.group]
        try:
            if step.kind == "add":
                self._add(step, start)
            elif step.kind == "hand_over":
                client.handover(step.node)
            elif step.kind == "remove":
                client.remove(step.node)
            else:
                return False
        except (NotAppliedError, UnknownOutcomeError) as error:
            if self._told.get(step.group) != error.detail:
                self._told[step.group] = error.detail
                say(printable(f"{step.group}: {error.detail}"))
            return False
        self._told.pop(step.group, None)
        return True

    def _add(self, step: PlacementStep, start: str) -> None:
        if start:
            command = [*shlex.split(start), step.group, step.node, step.machine, step.role]
            try:
                done = subprocess.run(command, check=False, timeout=START_TIMEOUT_S)  # noqa: S603
                problem = f"ended with {done.returncode}" if done.returncode else ""
            except (OSError, subprocess.TimeoutExpired) as error:
                problem = str(error)
            if problem:
                advice = "The node was not started. Mend the command, and run this again."
                fail(f"--start: {shlex.join(command)}: {problem}", advice, EXIT_NOT_APPLIED)
        else:
            say(
                printable(
                    f"start {step.role} {step.node} of group {step.group} on {step.machine}: add "
                    f'[nodes.{step.node}] with role = "{step.role}" to the group\'s configuration '
                    f"file, and run `onecopy serve --node {step.node}` with an empty data directory"
                )
            )
        self._coming[step.group] = step.node


@contextmanager
def _fleet(file: Path, timeout_ms: int, *, as_json: bool, interrupted: str) -> Iterator[_Fleet]:
    """Read the file, and open a client for each group. Raises UsageError."""
    try:
        found = decode_fleet(file.read_text(encoding="utf-8"))
        with report_errors(as_json=as_json, interrupted=interrupted), ExitStack() as stack:
            clients = {
                group: stack.enter_context(
                    Client(
                        open_endpoints(",".join(section.endpoints)),
                        timeout_ms=timeout_ms,
                        **whom(),
                    )
                )
                for group, section in found.groups.items()
            }
            yield _Fleet(found, clients)
    except (FleetFileError, OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{file}: {error}") from None


def _line(step: PlacementStep) -> str:
    where = f" on {step.machine}" if step.kind == "add" else ""
    where += " as a witness" if step.role == "witness" else ""
    node = f" {step.node}{where}" if step.node else ""
    return printable(f"{step.group}: {step.kind.replace('_', ' ')}{node} ({step.reason})")
