"""PostgreSQL under Patroni, on two data nodes and a witness of ours, and on a three-node etcd.

Two members of Patroni in synchronous mode, a writer at each PostgreSQL that records what was
acknowledged, and faults in an order that is drawn from a seed, until the leader has changed often
enough. How long writes stop is the longest time between two acknowledged commits around a fault.
After each fault every acknowledged number has to be there, and no two servers may have
acknowledged at once.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import msgspec

from bench.context import Context
from bench.patroni.faults import Fault, World, faults_of, schedule
from bench.patroni.members import (
    HEAL_DEADLINE_S,
    Members,
    make_environment,
    make_home,
    postgres_binaries,
)
from bench.patroni.network import How, Network
from bench.patroni.stores import EtcdStore, OnecopyStore, Store
from bench.patroni.writers import Writers, longest_gap_s, of_a_second_primary
from bench.peers.process import BenchError, MissingPeerError
from tests.support.toxiproxy import ToxiproxyServer

SETTLED_COMMITS = 100
"""Undisturbed commits before and after each fault."""
ETCD_SHARE = 5
"""With etcd, the leader changes a fifth as often."""
MAX_SEED = 1_000_000


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One fault: how long no commit was acknowledged, and how many were wrong."""

    fault: str
    how: str
    stopped_s: float
    failover: bool
    acknowledged: int
    lost: int
    second_primary: int


class Trial:
    """Patroni on one store, with writers. `home`: for PostgreSQL; `python`: Patroni's."""

    def __init__(self, store: Store, network: Network, home: Path, python: Path) -> None:
        make_home(home)
        self.store = store
        self.members = Members(home, python, store.gateways, network)
        self.writers = Writers(self.members.ports, python, home)
        self.world = World(store, self.members, network)

    def start(self) -> None:
        """Start everything."""
        self.store.peer.start()
        self.members.start()
        self.members.sql(self.members.leader(), "create table written (number bigint primary key)")
        self.writers.start()

    def close(self) -> None:
        """End everything."""
        self.writers.end()
        self.members.close()
        self.store.peer.close()

    def strike(self, fault: Fault, how: How) -> Outcome:
        """Let one thing fail, mend it, and judge. Raises BenchError if it does not go on."""
        leader = self.members.leader()
        mark = self.writers.mark()
        self._settle()
        mend = fault.strike(self.world, leader, how)
        struck_ns = time.monotonic_ns()
        if fault.moves:
            self.members.wait_leads(Members.other(leader))
            struck_ns = time.monotonic_ns()
        self.writers.wait_for(1, struck_ns + int(fault.hold_s * 1e9), HEAL_DEADLINE_S)
        mend()
        self.members.wait_whole()
        self.store.wait_whole()
        self._settle()
        self.writers.refresh()
        commits = self.writers.commits[mark:]
        numbers = {commit.number for commit in commits}
        return Outcome(
            fault=fault.name,
            how=how if fault.is_cut else "",
            stopped_s=round(longest_gap_s(commits), 2),
            failover=self.members.leader() != leader,
            acknowledged=len(commits),
            lost=len(numbers - self.members.numbers(min(numbers))),
            second_primary=len(of_a_second_primary(commits)),
        )

    def verdict(self) -> dict[str, int]:
        """End the writers; return how many commits were acknowledged, and how many wrong."""
        self.writers.end()
        self.writers.refresh()
        commits = self.writers.commits
        numbers = {commit.number for commit in commits}
        return {
            "acknowledged": len(commits),
            "lost": len(numbers - self.members.numbers()),
            "second_primary": len(of_a_second_primary(commits)),
        }

    def _settle(self) -> None:
        self.writers.wait_for(SETTLED_COMMITS, time.monotonic_ns(), HEAL_DEADLINE_S)


def run(context: Context) -> dict[str, Any]:
    """Measure both stores, until the leader has changed `kills` times."""
    postgres_binaries()
    seed = context.options.seed or Random().randrange(1, MAX_SEED)
    context.say(f"--seed {seed}")
    found: dict[str, Any] = {}
    makes: tuple[tuple[str, Callable[[Path, Network], Store], int], ...] = (
        ("onecopy", OnecopyStore, context.options.kills),
        ("etcd", EtcdStore, -(-context.options.kills // ETCD_SHARE)),
    )
    with context.directory() as home:
        for path in (context.work, home):
            path.chmod(0o755)  # PostgreSQL's user goes there
        python = make_environment(home / "patroni")
        for name, make, failovers in makes:
            if not context.wants(name):
                continue
            try:
                found[name] = _measure(context, name, make, failovers, Random(seed), home, python)
            except MissingPeerError as error:
                context.say(f"left out: {error}")
                context.missing.append(str(error))
    return {"seed": seed, "stores": found}


def _measure(
    context: Context,
    name: str,
    make: Callable[[Path, Network], Store],
    failovers: int,
    random: Random,
    home: Path,
    python: Path,
) -> dict[str, Any]:
    with ToxiproxyServer(home / f"{name}.toxiproxy.log") as server, context.directory() as path:
        network = Network(server)
        trial = Trial(make(path, network), network, home / name, python)
        outcomes: list[Outcome] = []
        try:
            trial.start()
            begun = time.monotonic()
            for fault, how in schedule(faults_of(trial.store), random):
                outcome = trial.strike(fault, how)
                outcomes.append(outcome)
                context.say(f"  {name} {time.monotonic() - begun:5.0f} s: {_line(outcome)}")
                if sum(outcome.failover for outcome in outcomes) >= failovers:
                    break
            verdict = trial.verdict()
        except BenchError:
            _keep_logs(context, name, home, path)
            raise
        finally:
            trial.close()
    context.say(f"  {name}: {verdict}")
    return {
        "version": trial.store.peer.version(),
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "failovers": sum(outcome.failover for outcome in outcomes),
        **verdict,
        "stopped_s": _by_fault(outcomes),
        "outcomes": [msgspec.to_builtins(outcome) for outcome in outcomes],
    }


def _line(outcome: Outcome) -> str:
    text = f"{outcome.fault} {outcome.how}".strip()
    bad = f", LOST {outcome.lost}" if outcome.lost else ""
    bad += f", SECOND PRIMARY {outcome.second_primary}" if outcome.second_primary else ""
    return f"{text}: no commit for {outcome.stopped_s} s of {outcome.acknowledged} commits{bad}"


def _by_fault(outcomes: list[Outcome]) -> dict[str, dict[str, float]]:
    found: dict[str, list[float]] = {}
    for outcome in outcomes:
        found.setdefault(outcome.fault, []).append(outcome.stopped_s)
    return {
        fault: {"count": len(values), "median": round(median(values), 2), "longest": max(values)}
        for fault, values in sorted(found.items())
    }


def _keep_logs(context: Context, name: str, *directories: Path) -> None:
    """Copy the logs to where they outlive the run."""
    kept = context.work.parent / f"{context.work.name}-{name}-logs"
    kept.mkdir(exist_ok=True)
    for directory in directories:
        for path in directory.rglob("*.log"):
            shutil.copy(path, kept)
    context.say(f"  its logs are in {kept}")
