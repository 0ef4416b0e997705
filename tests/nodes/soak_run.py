"""One soak: the load, the faults, and everything that watches them, until the time is up."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from pathlib import Path

import msgspec

from tests.nodes.soak_actions import ACTIONS, Action, Attack, power_cut
from tests.nodes.soak_cluster import NotHealedError, SoakCluster
from tests.nodes.soak_network import NETWORK_ACTIONS
from tests.nodes.soak_watch import Resources, Sentinel
from tests.support.cluster import Writer
from tests.support.go_tools import ToolError
from tests.support.recorded_load import Bounds, RecordedLoad
from tests.support.toxiproxy import ToxiproxyServer

LINE_INTERVAL_S = 10.0
LONGEST_ACTION_S = 240.0
LEAST_STRETCH_S = 120.0
STRETCHES = 5
LEDGER_PAUSE_S = 0.1  # some twenty new keys a second, kept and compared at the end


ALL_ACTIONS = {**ACTIONS, **NETWORK_ACTIONS}


class Injected(msgspec.Struct, frozen=True):
    """A fault: its kind, when it began, how long until the cluster was whole again, and the
    longest time without an acknowledged write meanwhile (monotonic seconds)."""

    kind: str
    began_s: float
    healed_after_s: float
    longest_gap_s: float


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of a soak."""

    seconds: float
    seed: int
    witness: bool
    rate_per_s: float = 150.0  # of the recorded load
    keep: Path  # where failing windows and logs are left
    network: bool = True  # all links between nodes through toxiproxy
    kinds: tuple[str, ...] = tuple(ALL_ACTIONS)


class Soak:
    """A run, and what it has found so far: `problems` are what makes the verdict a bad one."""

    def __init__(self, plan: Plan, directory: Path) -> None:
        self.plan = plan
        self.cluster = SoakCluster(directory, witness=plan.witness)
        self.sentinel = Sentinel(self.cluster)
        self.resources = Resources(self.cluster)
        # By place, not by name: a replaced replica has the addresses of the one before.
        endpoints = {f"at {node}": self.cluster.url(node) for node in self.cluster.specs}
        bounds = Bounds(
            rate_per_s=plan.rate_per_s,
            duration_s=plan.seconds + LONGEST_ACTION_S,
            operations=10_000_000,
        )
        self.load = RecordedLoad(endpoints, plan.keep, name="soak", bounds=bounds, seed=plan.seed)
        self.ledger = Writer(
            self.cluster, name="ledger", tasks=2, pause_s=LEDGER_PAUSE_S, timeout_ms=10_000
        )
        self.injected: list[Injected] = []
        self.problems: list[str] = []
        self.lost: list[str] | None = None  # None: it was never compared
        self.began_s = time.monotonic()
        self._stop = asyncio.Event()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.began_s

    def say(self, text: str) -> None:
        minutes, seconds = divmod(int(self.elapsed_s), 60)
        print(f"[{minutes:02}:{seconds:02}] {text}", flush=True)

    async def run(self) -> None:
        """Run to the end; what goes wrong is in `problems`."""
        await asyncio.to_thread(self._connect)
        await self.cluster.start()
        self.began_s = time.monotonic()
        self.ledger.begin()
        watchers = [
            asyncio.create_task(self.sentinel.run(self._stop)),
            asyncio.create_task(self.resources.run(self._stop)),
            asyncio.create_task(self._load()),
            asyncio.create_task(self._lines()),
        ]
        attack = asyncio.create_task(self._attack())
        try:
            await asyncio.wait([attack, *watchers], return_when=asyncio.FIRST_COMPLETED)
            if not attack.done():  # a watcher has failed, as they end only when told
                attack.cancel()
                await asyncio.gather(attack, return_exceptions=True)
            elif attack.exception() is not None:
                self._note(attack.exception())
        finally:
            self._stop.set()
        await self._finish(watchers)

    def _connect(self) -> None:
        """Put proxies between the nodes, if the network is to be attacked."""
        if not self.plan.network:
            return
        try:
            self.cluster.use_network(ToxiproxyServer(self.cluster.directory / "toxiproxy.log"))
        except ToolError as problem:
            self.say(f"no network faults: {problem}")

    async def _load(self) -> None:
        """Load, and end the soak early for a window that is not linearizable."""
        async with self.load:
            while not self._stop.is_set():
                self.load.check_healthy()
                await asyncio.sleep(0.5)
        self.load.require()

    def _note(self, outcome: object) -> None:
        if isinstance(outcome, BaseExceptionGroup):
            for error in outcome.exceptions:
                self._note(error)
        elif isinstance(outcome, BaseException):
            self.problems.append(f"{type(outcome).__name__}: {outcome}")

    # -- faults

    async def _attack(self) -> None:
        plan, cluster = self.plan, self.cluster
        attack = Attack(cluster, random.Random(plan.seed), self.say)
        kinds = [
            kind
            for kind in plan.kinds
            if (cluster.disk is not None or kind != "full disk")
            and (cluster.network is not None or kind not in NETWORK_ACTIONS)
        ]
        weights = [ALL_ACTIONS[kind][0] for kind in kinds]
        if cluster.disk is None:
            self.say("no disk is filled: a tmpfs cannot be mounted here")
        stretch_s = max(plan.seconds / STRETCHES, LEAST_STRETCH_S)
        next_stretch_s = 0.0
        while self.elapsed_s < plan.seconds:
            if self.elapsed_s >= next_stretch_s:
                if next_stretch_s:
                    await self._inject("power cut", power_cut, attack)
                next_stretch_s = self.elapsed_s + stretch_s
                attack.steady = attack.chance.choice(cluster.replicas)
                self.say(f"{attack.steady} is left alive for the next {stretch_s:.0f} s")
            (kind,) = attack.chance.choices(kinds, weights)
            await self._inject(kind, ALL_ACTIONS[kind][1], attack)
            await attack.hold(0.5, 4.0)

    async def _inject(self, kind: str, action: Action, attack: Attack) -> None:
        began = time.monotonic()
        try:
            async with asyncio.timeout(LONGEST_ACTION_S):
                await action(attack)
                await self.cluster.heal()
                await self.ledger.progress(2)
        except TimeoutError:
            raise NotHealedError(f"{kind}: not over within {LONGEST_ACTION_S:g} s") from None
        except AssertionError as error:
            raise NotHealedError(f"after {kind}: {error}") from error
        healed = time.monotonic() - began
        gap = self.ledger.longest_gap_s(began)
        self.injected.append(Injected(kind, began, healed, gap))

    # -- the live line

    async def _lines(self) -> None:
        before = 0
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), LINE_INTERVAL_S)
                return
            operations = self.operations
            rate = (operations - before) / LINE_INTERVAL_S
            before = operations
            self.say(
                f"-- {operations} operations ({rate:.0f}/s), {len(self.injected)} faults, "
                f"{self.load.generations} windows checked, {len(self.load.bad)} bad, "
                f"stale reads {len(self.sentinel.stale)}, "
                f"disk {self.resources.most_disk_bytes >> 20} MiB"
            )

    @property
    def operations(self) -> int:
        """How many operations have ended, by whoever watches them."""
        sentinel = self.sentinel.reads + self.sentinel.writes
        return sentinel + len(self.ledger.acknowledged) + self.load.operations

    # -- the end

    async def _finish(self, watchers: list[asyncio.Task[None]]) -> None:
        self.say("the end: healing, checking the last windows, comparing all")
        try:
            await self.cluster.heal()
        except AssertionError as error:
            self._note(error)
        for outcome in await asyncio.gather(*watchers, return_exceptions=True):
            self._note(outcome)
        try:
            await self.ledger.end()
            await self.cluster.wait_converged(*self.cluster.replicas, deadline_s=90)
            self.lost = await self._missing()
            await self.ledger.verify()
        except (AssertionError, ExceptionGroup) as error:
            self._note(error)

    async def _missing(self) -> list[str]:
        """Return acknowledged ledger writes that some replica lacks."""
        found: list[str] = []
        for node in self.cluster.replicas:
            held = await self.ledger.held(node)
            found += [f"{key} at {node}" for key in self.ledger.acknowledged if key not in held]
        return found

    def by_kind(self) -> list[tuple[str, int, float, float]]:
        """Return (kind, count, longest gap, longest time to heal) of all kinds injected."""
        counts = Counter(fault.kind for fault in self.injected)
        return [
            (
                kind,
                count,
                max(fault.longest_gap_s for fault in self.injected if fault.kind == kind),
                max(fault.healed_after_s for fault in self.injected if fault.kind == kind),
            )
            for kind, count in sorted(counts.items())
        ]
