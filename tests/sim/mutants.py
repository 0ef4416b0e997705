"""Each rule's guard, taken out: a test or the simulator has to notice, or it proves nothing.

`python -m tests.sim.mutants` tries every mutant and prints who noticed it: a named test, or the
simulator after so many seeds. It fails if one is not noticed, or if a rule has none.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import pytest
from hypothesis import Phase, settings

from datapath.errors import SafetyError
from tests.sim.access_mutants import ACCESS_MUTANTS
from tests.sim.archive_mutants import ARCHIVE_MUTANTS
from tests.sim.claims import Claims
from tests.sim.client_mutants import CLIENT_MUTANTS
from tests.sim.clockwork import ViolationError
from tests.sim.consensus.schedule import Schedule as ConsensusSchedule
from tests.sim.consensus_mutants import CONSENSUS_MUTANTS
from tests.sim.faults import Schedule
from tests.sim.found_mutants import FOUND_MUTANTS
from tests.sim.groups.schedule import Schedule as GroupsSchedule
from tests.sim.groups_mutants import GROUPS_MUTANTS
from tests.sim.histories import Histories
from tests.sim.hosting_mutants import HOSTING_MUTANTS
from tests.sim.identity_mutants import IDENTITY_MUTANTS
from tests.sim.joint.schedule import JointSchedule
from tests.sim.joint_mutants import JOINT_MUTANTS
from tests.sim.lease_mutants import LEASE_MUTANTS
from tests.sim.membership_mutants import MEMBERSHIP_MUTANTS
from tests.sim.mutant import Mutant, broken
from tests.sim.raft_mutants import RAFT_MUTANTS
from tests.sim.read_mutants import READ_MUTANTS
from tests.sim.recovery_mutants import RECOVERY_MUTANTS
from tests.sim.release_mutants import RELEASE_MUTANTS
from tests.sim.replica_mutants import REPLICA_MUTANTS
from tests.sim.service_mutants import SERVICE_MUTANTS
from tests.sim.watch_mutants import WATCH_MUTANTS

MAX_SEEDS = 1500
"""After so many schedules a mutant counts as not caught."""
BATCH = 10
MODULES = (
    "replica",
    "client",
    "service",
    "consensus",
    "raft",
    "membership",
    "read",
    "watch",
    "lease",
    "found",
    "joint",
    "hosting",
    "access",
    "identity",
    "release",
    "recovery",
    "archive",
    "groups",
)
PRELOADED = [f"tests.sim.{name}_mutants" for name in MODULES]
RULES = (
    *(f"E{n}" for n in range(1, 6)),
    *(f"D{n}" for n in range(1, 11)),
    "M1",
    "T1",
    *(f"W{n}" for n in range(1, 6)),
    "L1",
    "L2",
    *(f"K{n}" for n in range(1, 4)),
    *(f"X{n}" for n in range(1, 5)),
    "A1",
    *(f"I{n}" for n in range(1, 6)),
    *(f"U{n}" for n in range(1, 4)),
    *(f"B{n}" for n in range(1, 5)),
    *(f"P{n}" for n in range(1, 5)),
    "R1",
    "R2",
)
MUTANTS: tuple[Mutant, ...] = (
    *REPLICA_MUTANTS, *CLIENT_MUTANTS, *SERVICE_MUTANTS, *CONSENSUS_MUTANTS,
    *RAFT_MUTANTS, *MEMBERSHIP_MUTANTS, *READ_MUTANTS, *WATCH_MUTANTS,
    *LEASE_MUTANTS, *FOUND_MUTANTS, *JOINT_MUTANTS, *HOSTING_MUTANTS,
    *IDENTITY_MUTANTS, *ACCESS_MUTANTS, *RECOVERY_MUTANTS, *RELEASE_MUTANTS,
    *ARCHIVE_MUTANTS, *GROUPS_MUTANTS,
)  # fmt: skip


class Verdict(NamedTuple):
    """Who noticed a mutant ("": nobody), and what was seen. `seeds`: schedules until then."""

    caught_by: str
    reason: str = ""
    seeds: int = 0
    seconds: float = 0.0


def _judge(mutant: Mutant) -> Verdict:
    with broken(mutant):
        if mutant.unit:
            return _run_unit(mutant.unit)
        if mutant.scenario is not None:
            try:
                mutant.scenario()
            except (AssertionError, SafetyError, ViolationError, pytest.fail.Exception) as error:
                return Verdict(mutant.scenario.__name__, _first_line(error))
            return Verdict("")
        if mutant.consensus:
            return _run_others(mutant, ConsensusSchedule, "simulator of consensus")
        if mutant.groups:
            return _run_others(mutant, GroupsSchedule, "simulator of placement")
        if mutant.joint:
            return _run_others(mutant, JointSchedule, "simulator of both")
        return _run_schedules(mutant)


def _run_others(
    mutant: Mutant,
    schedule_type: type[ConsensusSchedule | JointSchedule | GroupsSchedule],
    name: str,
) -> Verdict:
    for seeds in range(1, MAX_SEEDS + 1):
        seed = mutant.seed + seeds - 1
        try:
            schedule_type(seed).run()
        except ViolationError as error:
            if error.__cause__ is not None and not isinstance(error.__cause__, SafetyError):
                raise  # the break is no lie but nonsense
            return Verdict(f"{name}, seed {seed}", _first_line(error), seeds)
    return Verdict("", seeds=MAX_SEEDS)


def _run_schedules(mutant: Mutant) -> Verdict:
    with tempfile.TemporaryDirectory() as directory:
        has_clients = mutant.clients or mutant.holders
        histories = Histories(1 if has_clients else 0, Path(directory), BATCH)
        for seeds in range(1, MAX_SEEDS + 1):
            seed = mutant.seed + seeds - 1
            schedule = Schedule(
                seed,
                clients=has_clients or None,
                operators=(mutant.operators or None) if not mutant.moves else False,
                holders=mutant.holders or None,
                moves=mutant.moves or None,
                callers=mutant.callers or None,
            )
            try:
                schedule.run()
            except ViolationError as error:
                if error.__cause__ is not None and not isinstance(error.__cause__, SafetyError):
                    raise  # the break is no lie but nonsense
                return Verdict(f"simulator, seed {seed}", _first_line(error), seeds)
            histories.add(schedule)
            for failed, problem in sorted(histories.failed.items()):
                reason = " ".join(problem.split())
                return Verdict(f"Porcupine, seed {failed}", reason, failed - mutant.seed + 1)
    return Verdict("", seeds=MAX_SEEDS)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]


def _run_unit(name: str) -> Verdict:
    said = io.StringIO()
    # That it fails is all that is asked: Hypothesis would look up to five minutes for a short case.
    phases = (Phase.explicit, Phase.reuse, Phase.generate)
    settings.register_profile("no shrinking", phases=phases)
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # Hypothesis is imported here
    with contextlib.redirect_stdout(said):
        code = pytest.main([name, *options, "--hypothesis-profile=no shrinking"])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"{name} could not be run:\n{said.getvalue()}")
    return Verdict(name.rpartition("::")[2] if code else "")


def _child(mutant: Mutant, answer: Connection) -> None:
    began = time.perf_counter()
    answer.send(_judge(mutant)._replace(seconds=time.perf_counter() - began))
    answer.close()


def _start(mutant: Mutant) -> tuple[Connection, multiprocessing.process.BaseProcess]:
    """Judge it in a process of its own, forked where the imports are done and no threads run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(mutant, theirs))
    process.start()
    theirs.close()
    return ours, process


def verdicts(mutants: tuple[Mutant, ...], jobs: int) -> Iterator[tuple[Mutant, Verdict]]:
    """Try mutants, some at a time; yield what came of each, in order."""
    done: dict[int, Verdict] = {}
    running: dict[Connection, tuple[int, multiprocessing.process.BaseProcess]] = {}
    waiting = list(enumerate(mutants))
    for position, mutant in enumerate(mutants):
        while position not in done:
            while waiting and len(running) < jobs:
                number, following = waiting.pop(0)
                connection, process = _start(following)
                running[connection] = number, process
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                number, process = running.pop(ready)
                try:
                    done[number] = ready.recv()
                except EOFError:
                    raise RuntimeError(f"{mutants[number].broken}: could not be tried") from None
                finally:
                    ready.close()
                    process.join()
        yield mutant, done.pop(position)


def catch(mutant: Mutant) -> Verdict:
    """Return who notices it."""
    return next(verdicts((mutant,), 1))[1]


def rules_without_mutants() -> list[str]:
    """Return the rules that nobody breaks."""
    return [rule for rule in RULES if not any(mutant.rule == rule for mutant in MUTANTS)]


def main() -> int:
    """Try all of them, or those whose rule or words contain what is asked for; print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.mutants", description=__doc__)
    parser.add_argument("words", nargs="?", default="", help="only those that contain this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument(
        "--porcupine",
        action="store_true",
        help="only those that clients notice, and only Porcupine judges what they are told",
    )
    arguments = parser.parse_args()
    chosen = tuple(m for m in MUTANTS if arguments.words in f"{m.rule}: {m.broken}")
    if arguments.porcupine:
        chosen = tuple(mutant for mutant in chosen if mutant.clients or mutant.holders)
        patch.object(Claims, "fail", lambda _claims, _text: None).start()
    chosen = tuple(sorted(chosen, key=lambda mutant: (mutant.rule not in RULES, mutant.rule)))
    began, missed = time.perf_counter(), 0
    print(f"{'rule':<5}{'break':<48}{'seeds':>6}{'s':>7}  caught by")
    for mutant, verdict in verdicts(chosen, arguments.jobs):
        missed += not verdict.caught_by
        notice = f"{verdict.caught_by}: {verdict.reason}".removesuffix(": ")
        print(
            f"{mutant.rule:<5}{mutant.broken:<48}{verdict.seeds or '':>6}{verdict.seconds:7.1f}  "
            f"{notice[:130] if verdict.caught_by else 'NOT CAUGHT'}",
            flush=True,
        )
    unbroken = rules_without_mutants()
    if unbroken:
        print(f"rules without a mutant: {', '.join(unbroken)}")
    print(
        f"{len(chosen)} mutants, {len(chosen) - missed} caught, within {MAX_SEEDS} seeds or by "
        f"the named test, in {time.perf_counter() - began:.0f} s"
    )
    return bool(missed or unbroken or not chosen)


if __name__ == "__main__":
    sys.exit(main())
