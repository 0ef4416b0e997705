"""Every condition of the protocol, taken out in turn: who notices?

`python -m tests.sim.guards` forces each condition of the modules below to true and to false, and
leaves out each operand of each `and` and `or`. A break is noticed by the simulator or by the quick
tests; one that nobody notices is a *survivor*. Each has its explanation in `explained.txt`,
under a key without line numbers; the run fails on one that has none.

mutmut and cosmic-ray are kept tools for mutations in general; neither has been tried here. The
question is a narrower one than theirs (conditions and operands only, each survivor explained under
a lasting key), and the judge is the simulator before the tests, in a process that is forked with
everything loaded. Changed operators and constants are left to them.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import functools
import importlib
import io
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

import pytest

from tests.sim.faults import Schedule
from tests.sim.groups.schedule import BIG_EVERY
from tests.sim.groups.schedule import Schedule as GroupsSchedule
from tests.sim.histories import Histories

SIMULATED = (
    "cluster.archive.plan",
    "datapath.protocol.state",
    "datapath.protocol.backup",
    "datapath.protocol.primary",
    "datapath.protocol.in_sync",
    "datapath.protocol.replication",
    "datapath.protocol.heartbeats",
    "datapath.protocol.handover",
    "datapath.protocol.replica",
    "datapath.protocol.progress",
    "datapath.protocol.log_index",
    "datapath.execution.changes",
    "datapath.node.interpreter",
    "datapath.node.read_index",
    "datapath.node.catch_up",
    "datapath.node.router",
    "datapath.node.membership",
    "datapath.node.member_change",
    "datapath.node.proposal",
    "datapath.node.recovery",
    "datapath.node.retention",
    "datapath.node.survivors",
    "datapath.node.views",
    "datapath.execution.client_table",
    "datapath.execution.concurrency",
    "datapath.execution.executor",
    "datapath.execution.pipeline",
    "datapath.execution.tail",
    "datapath.protocol.confirmations",
    "election.view",
    "election.identity",
)
CONSENSUS = (
    "election.pysyncobj_adapter.pre_vote",
    "election.pysyncobj_adapter.elections",
    "election.pysyncobj_adapter.members",
    "election.pysyncobj_adapter.progress_mark",
)
"""The simulator's consensus is right by construction: only tests can notice these."""
PLACED = ("cluster.groups.placement", "cluster.groups.fleet")
"""For these, machines and groups are simulated (`tests.sim.groups`)."""
MODULES = (*SIMULATED, *CONSENSUS, *PLACED)
"""Whose conditions are taken out."""
TESTS = (
    "tests/scenarios",
    "tests/unit/cluster/archive/test_plan.py",
    "tests/unit/datapath/execution",
    "tests/unit/datapath/node/test_interpreter.py",
    "tests/unit/datapath/node/test_member_change.py",
    "tests/unit/datapath/node/test_membership.py",
    "tests/unit/datapath/node/test_proposal.py",
    "tests/unit/datapath/node/test_read_index.py",
    "tests/unit/datapath/node/test_replica_disk.py",
    "tests/unit/datapath/node/test_router.py",
    "tests/unit/datapath/node/test_snapshot_floors.py",
    "tests/unit/datapath/node/test_snapshot_refusals.py",
    "tests/unit/datapath/node/test_survivors.py",
    "tests/unit/datapath/node/test_views.py",
    "tests/unit/datapath/protocol",
    "tests/unit/election/test_view.py",
    "tests/unit/election/test_identity.py",
)
"""What is run beside the simulator: tests in memory, some seconds in all."""
CONSENSUS_TESTS = (
    "tests/unit/election/pysyncobj_adapter/test_pre_vote.py",
    "tests/unit/election/pysyncobj_adapter/test_raft_core.py",
    "tests/unit/election/pysyncobj_adapter/test_adapter_guards.py",
    "tests/unit/election/pysyncobj_adapter/test_progress_mark.py",
)
"""What is run for `CONSENSUS`: the real core and journal, message by message."""
PLACED_TESTS = (
    "tests/unit/cluster/groups/test_fleet.py",
    "tests/unit/cluster/groups/test_placement.py",
)
"""What is run for `PLACED`, after its schedules."""
PLACED_SEEDS = 300
FIRST_SEEDS = 40
"""So many schedules come before the tests: they notice most breaks in a moment."""
MAX_SEEDS = 1500
LIMIT_S = 60.0
"""A break that takes longer hangs, which is noticed, too; so is one that fills the memory. In CPU
time, as is `ALARM_S`, which is for the first schedules and the tests."""
ALARM_S = 20.0
MEMORY_BYTES = 4 << 30
HISTORY_BATCH = 50


EXPLANATIONS = Path(__file__).with_name("explained.txt")
COSTS = ("Equivalent: ", "Time: ", "Words: ", "Stricter: ")


class Break(NamedTuple):
    """One condition changed. `change`: "true", "false", or "without " and the operand left out;
    "" changes nothing.

    `number` tells conditions of one function apart that have the same text, from 1 on.
    """

    module: str
    function: str
    condition: str
    change: str
    number: int

    @property
    def key(self) -> str:
        """What names it in the list of survivors, also after the lines have moved."""
        number = f" #{self.number}" if self.number > 1 else ""
        return f"{self.module}:{self.function}: {self.condition}{number} -> {self.change}"


NOTHING = Break("", "", "", "", 0)


class Verdict(NamedTuple):
    """Who noticed a break ("": nobody), and what was seen."""

    caught_by: str
    reason: str = ""
    seconds: float = 0.0


def explained() -> dict[str, str]:
    """Return the survivors' explanations, by key. Raises ValueError if one is no explanation."""
    reasons: dict[str, str] = {}
    key = ""
    for line in EXPLANATIONS.read_text(encoding="utf-8").splitlines():
        if line.startswith(" "):
            reasons[key] = f"{reasons[key]} {line.strip()}".strip()
        elif line and not line.startswith("#"):
            key = line
            reasons[key] = ""
    for key, reason in reasons.items():
        if not reason.startswith(COSTS):
            raise ValueError(f"{EXPLANATIONS.name}: say what it costs ({COSTS}): {key}")
    return reasons


# -- finding the conditions


def breaks(module: str) -> list[Break]:
    """Return all breaks of a module, in the order of its text."""
    return [found for found, _ in _breaks(_parse(module))(module)]


def _parse(module: str) -> ast.Module:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def _breaks(tree: ast.Module) -> Callable[[str], Iterator[tuple[Break, Callable[[], None]]]]:
    """Return a function that yields each break, and what changes the tree so."""

    def of(module: str) -> Iterator[tuple[Break, Callable[[], None]]]:
        seen: Counter[tuple[str, str, str]] = Counter()
        for function, node in _functions(tree):
            for condition, change, apply in _changes(node):
                seen[function, condition, change] += 1
                number = seen[function, condition, change]
                yield Break(module, function, condition, change, number), apply

    return of


def _functions(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Yield the functions of a module and the methods of its classes, by qualified name."""
    places: list[tuple[str, ast.AST]] = [("", tree)]
    while places:
        prefix, place = places.pop(0)
        for node in ast.iter_child_nodes(place):
            if isinstance(node, ast.ClassDef):
                places.append((f"{prefix}{node.name}.", node))
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{prefix}{node.name}", node


def _changes(function: ast.AST) -> Iterator[tuple[str, str, Callable[[], None]]]:
    """Yield (condition, change, what makes the change in the tree) for all in a function."""
    for parent in ast.walk(function):
        for field, value in ast.iter_fields(parent):
            for place, node in enumerate(value) if isinstance(value, list) else [(-1, value)]:
                if not isinstance(node, ast.expr):
                    continue
                text = ast.unparse(node)
                if _is_condition(parent, field, node):
                    for forced in (True, False):
                        made = functools.partial(
                            _replace, parent, field, place, ast.Constant(forced)
                        )
                        yield text, str(forced).lower(), made
                if isinstance(node, ast.BoolOp):
                    for operand in node.values:
                        rest = [item for item in node.values if item is not operand]
                        less = rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
                        made = functools.partial(_replace, parent, field, place, less)
                        yield text, f"without {ast.unparse(operand)}", made


def _is_condition(parent: ast.AST, field: str, node: ast.expr) -> bool:
    if field == "test":
        return isinstance(parent, ast.If | ast.While | ast.IfExp)
    if field == "ifs":
        return True
    is_answer = isinstance(parent, ast.Return | ast.Assign) and field == "value"
    is_truth = isinstance(node, ast.Compare | ast.BoolOp) or (
        isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
    )
    return is_answer and is_truth


def _replace(parent: ast.AST, field: str, place: int, new: ast.expr) -> None:
    old = getattr(parent, field) if place < 0 else getattr(parent, field)[place]
    ast.copy_location(new, old)
    if place < 0:
        setattr(parent, field, new)
    else:
        getattr(parent, field)[place] = new


# -- breaking


def apply(broken: Break) -> None:
    """Break the loaded module, in this process and for good."""
    tree = copy.deepcopy(_parse(broken.module))
    for found, change in _breaks(tree)(broken.module):
        if found == broken:
            change()
            break
    else:
        raise ValueError(f"there is no such condition: {broken.key}")
    ast.fix_missing_locations(tree)
    module = importlib.import_module(broken.module)
    whole = compile(tree, str(module.__file__), "exec", dont_inherit=True)
    _function(module, broken.function).__code__ = _code(whole, broken.function)


def _function(module: ModuleType, name: str) -> FunctionType:
    place: Any = module
    for part in name.split("."):
        place = vars(place)[part]
    if isinstance(place, property):
        place = place.fget
    if isinstance(place, classmethod | staticmethod):
        place = place.__func__
    assert isinstance(place, FunctionType), name
    return place


def _code(whole: CodeType, name: str) -> CodeType:
    for constant in whole.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_qualname == name:
                return constant
            if name.startswith(f"{constant.co_qualname}."):
                return _code(constant, name)
    raise ValueError(f"there is no function {name}")


# -- judging


class _TooLongError(BaseException):
    """A break has made something endless."""


def judge(broken: Break, max_seeds: int) -> Verdict:
    """Break this process, and return who notices."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGPROF, _on_alarm)  # not SIGALRM, which the tests' own timeouts take
    signal.setitimer(signal.ITIMER_PROF, ALARM_S)
    try:
        if broken != NOTHING:
            apply(broken)
        if broken.module in CONSENSUS:
            return _by_tests(CONSENSUS_TESTS) or Verdict("")
        if broken.module in PLACED:
            signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
            placed = _by_placements(min(PLACED_SEEDS, max_seeds))
            return placed or _by_tests(PLACED_TESTS) or Verdict("")
        verdict = _by_schedules(0, min(FIRST_SEEDS, max_seeds)) or _by_tests(TESTS)
        signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
        return verdict or _by_schedules(FIRST_SEEDS, max_seeds) or Verdict("")
    except _TooLongError:
        return Verdict("time", "it hangs")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _on_alarm(*_: object) -> None:
    raise _TooLongError


def _by_schedules(first: int, end: int) -> Verdict | None:
    with tempfile.TemporaryDirectory() as directory:
        histories = Histories(1, Path(directory), HISTORY_BATCH)
        for seed in range(first, end):
            try:
                schedule = Schedule(seed)
                schedule.run()
            except Exception as error:  # noqa: BLE001 -- whatever the break has led to
                reason = (str(error).splitlines() or [""])[0]
                return Verdict(f"simulator, seed {seed}", f"{type(error).__name__}: {reason}")
            histories.add(schedule)
            if histories.failed:
                break
        for seed, problem in sorted(histories.check().items()):
            return Verdict(f"Porcupine, seed {seed}", " ".join(problem.split()))
    return None


def _by_placements(end: int) -> Verdict | None:
    for seed in range(1, end):
        if seed % BIG_EVERY:
            try:
                GroupsSchedule(seed).run()
            except Exception as error:  # noqa: BLE001 -- whatever the break has led to
                reason = (str(error).splitlines() or [""])[0]
                said = f"{type(error).__name__}: {reason}"
                return Verdict(f"simulator of placement, seed {seed}", said)
    return None


class _FirstFailure:
    """A plugin of pytest that remembers which test failed."""

    failed = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = self.failed or report.nodeid


def _by_tests(tests: tuple[str, ...]) -> Verdict | None:
    first, said = _FirstFailure(), io.StringIO()
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=no"]
    with contextlib.redirect_stdout(said):
        code = pytest.main([*tests, *options], plugins=[first])
    if code == pytest.ExitCode.OK:
        return None
    return Verdict(first.failed.rpartition("/")[2] or "pytest", f"exit code {code}")


def _child(broken: Break, max_seeds: int, answer: Connection) -> None:
    began = time.perf_counter()
    answer.send(judge(broken, max_seeds)._replace(seconds=time.perf_counter() - began))
    answer.close()


def verdicts(chosen: list[Break], max_seeds: int, jobs: int) -> Iterator[tuple[Break, Verdict]]:
    """Judge each in a process of its own; yield what came of it, as they come."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.sim.mutants"])
    waiting = list(chosen)
    running: dict[Connection, tuple[Break, Any, float]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            broken = waiting.pop(0)
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(broken, max_seeds, theirs))
            process.start()
            theirs.close()
            running[ours] = broken, process, time.monotonic() + ALARM_S + 2 * LIMIT_S
        ready = wait(list(running), timeout=1.0)
        overdue = [item for item, (*_, end) in running.items() if time.monotonic() > end]
        for connection in {*ready, *overdue}:
            assert isinstance(connection, Connection)
            broken, process, _ = running.pop(connection)
            verdict = Verdict("time", "it hangs, and hears no alarm")
            if connection in ready:
                try:
                    verdict = connection.recv()
                except EOFError:
                    verdict = Verdict("process", "it ended")
            process.kill()
            process.join()
            connection.close()
            yield broken, verdict


# -- the command


def main() -> int:
    """Try all that are not explained, or some; list the survivors."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.guards", description=__doc__)
    parser.add_argument("words", nargs="?", default="", help="only breaks whose key contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--seeds", type=int, default=MAX_SEEDS, help="schedules for each break")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="every n-th break, from i on")
    parser.add_argument(
        "--explained", action="store_true", help="try those with an explanation, too"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show what was caught")
    arguments = parser.parse_args()
    part, parts = map(int, arguments.part.split("/"))
    every = [broken for module in MODULES for broken in breaks(module)]
    keys, reasons = {broken.key for broken in every}, explained()
    chosen = [item for item in every if arguments.words in item.key][part - 1 :: parts]
    known = [item for item in chosen if item.key in reasons]
    if not arguments.explained:
        chosen = [item for item in chosen if item.key not in reasons]
    began, survivors = time.perf_counter(), 0
    for _, verdict in verdicts([NOTHING], FIRST_SEEDS, 1):
        if verdict.caught_by:
            print(f"without any break: {verdict.caught_by}: {verdict.reason}")
            return 1
    for broken, verdict in verdicts(chosen, arguments.seeds, arguments.jobs):
        caught = f"{verdict.caught_by}: {verdict.reason}".removesuffix(": ")
        if verdict.caught_by and broken.key in reasons:
            print(f"explained, but caught  {broken.key}\n    {caught[:150]}", flush=True)
        elif not verdict.caught_by and broken.key not in reasons:
            survivors += 1
            print(f"SURVIVES  {broken.key}", flush=True)
        elif arguments.verbose:
            print(f"{verdict.seconds:5.1f} s  {broken.key}\n    {caught[:150]}", flush=True)
    for key in sorted(reasons.keys() - keys):
        print(f"explained, but there is no such condition any more: {key}")
    print(
        f"{len(chosen)} breaks tried, {survivors} survive without an explanation, {len(known)} are "
        f"explained; {time.perf_counter() - began:.0f} s"
    )
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main())
