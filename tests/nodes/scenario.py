"""One scenario: a cluster behind proxies, under a recorded load, attacked, healed, judged.

    async with Scenario(shape, directory, title, promise) as scenario:
        await scenario.net.isolate(scenario.primary)     # the attack, and what must go on meanwhile
        await scenario.load.progress(writes=20, reads=20, node="n2")

At the end of the block everything is healed, and then it must hold: all replicas in sync again
within RECOVERY_S, requests succeed at every node, all digests are equal, and no history of the load
is anything but linearizable. What it cost is written to the report: the longest time in which no
node answered a write, and no node a linearizable read, from the attack to the recovery.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import pytest
from _pytest.mark import ParameterSet

from tests.nodes.prober import Prober
from tests.support.cluster import Cluster, Scalar, problem_of, wait_until
from tests.support.partitions import Network
from tests.support.raw_http import kv
from tests.support.recorded_load import Bounds, Mix, RecordedLoad
from tests.support.toxiproxy import ToxiproxyServer

THREE, WITNESS = "three replicas", "two replicas and a witness"
SHAPES = {THREE: (3, 0), WITNESS: (2, 1)}

RECOVERY_S = 40.0
"""How long everyone may take to be in sync again. Generous: the machine may be busy."""
TAKE_OVER_S = 20.0
"""How long another primary may take to serve. It takes well under one second on an idle machine."""
WATCHED_S = 3.0
"""How long a state that lasts is looked at."""
PATIENCE = Bounds(timeout_ms=1000, patience_ms=1500, give_up_s=8.0, generation_s=3.0)
"""Clients that turn elsewhere soon, so that a scenario is over soon."""

PATIENT: Mapping[str, Scalar] = {"grace_period_ms": 3000}
"""For scenarios in which the primary has no reason to stop: it has backups removed before they may
take over, and on a busy machine the usual 150 ms between the two would be too short for that."""

REPORT_VARIABLE = "ONECOPY_FAULTS_REPORT"


def long(*values: object) -> ParameterSet:
    """Mark one case of a parametrized test as too much for `make test`."""
    return pytest.param(*values, marks=pytest.mark.long)


def shapes(*quick: str) -> list[ParameterSet]:
    """Return every shape, those that are not `quick` marked as long."""
    return [pytest.param(shape) if shape in quick else long(shape) for shape in SHAPES]


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One scenario in the report."""

    number: str
    scenario: str
    shape: str
    promise: str
    attack_ms: float
    write_gap_ms: float
    read_gap_ms: float
    recovery_ms: float
    operations: int
    unknown: int


class Scenario:
    """See above. `number` sorts the report; `promise` says what stays available."""

    def __init__(
        self,
        directory: Path,
        *,
        shape: str,
        number: str,
        title: str,
        promise: str,
        limits: Mapping[str, Scalar] | None = None,
        timing: Mapping[str, Scalar] | None = None,
        bounds: Bounds = PATIENCE,
        mix: Mix | None = None,
        through_proxies: bool = False,
    ) -> None:
        replicas, witnesses = SHAPES[shape]
        self.number, self.title, self.shape, self.promise = number, title, shape, promise
        self.primary = ""
        self.server = ToxiproxyServer(directory / "toxiproxy.log")
        self.cluster = Cluster(
            directory / "cluster",
            replicas=replicas,
            witnesses=witnesses,
            limits=limits,
            timing=timing,
        )
        self._bounds, self._mix = bounds, mix
        self._directory = directory
        self._through_proxies = through_proxies
        self._attacked_ns = 0

    @property
    def backups(self) -> list[str]:
        """The replicas but the primary that there was when the block began."""
        return self.cluster.others(self.primary)

    @property
    def others(self) -> list[str]:
        """All nodes but the primary that there was when the block began."""
        return [node for node in self.cluster.specs if node != self.primary]

    async def __aenter__(self) -> Self:
        try:
            self.server.start()
            self.net = Network(self.cluster, self.server)
            urls = {node: self.cluster.url(node) for node in self.cluster.specs}
            if self._through_proxies:
                urls = self.net.clients()
            await self.cluster.start()
            self.load = RecordedLoad(
                urls,
                self._directory / "histories",
                name=self.number.replace(" ", "-"),
                bounds=self._bounds,
                mix=self._mix,
            )
            self.prober = Prober(urls)
            await self.prober.__aenter__()
            await self.load.__aenter__()
            await self.load.progress(writes=30, reads=30)
            # Now, not earlier: on a busy machine it may have changed since the start.
            status = await self.cluster.wait_in_sync(*self.cluster.replicas)
            self.primary = status.primary
        except BaseException:
            print(self.cluster.tails())
            self.end()
            raise
        self._attacked_ns = time.monotonic_ns()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is not None:
                await self.prober.__aexit__(kind, error, traceback)
                await self.load.__aexit__(kind, error, traceback)
                print(f"counts: {dict(self.load.counts)}; seed {self.load.seed}")
                print(self.cluster.tails())
                return
            try:
                await self._recover()
            except BaseException:
                print(self.cluster.tails())
                raise
        finally:
            self.end()

    def end(self) -> None:
        """End every process."""
        self.cluster.end()
        self.server.end()

    async def _recover(self) -> None:
        """Heal, and hold the cluster to what it promises."""
        load, cluster = self.load, self.cluster
        healed_ns = time.monotonic_ns()
        try:
            await self.net.heal()
            await cluster.wait_in_sync(*cluster.replicas, deadline_s=RECOVERY_S)
            await self._progress(cluster.specs, 10, RECOVERY_S)
            recovered_ns = time.monotonic_ns()
            await self.prober.__aexit__(None, None, None)
        except BaseException as problem:
            await self.prober.__aexit__(type(problem), problem, problem.__traceback__)
            print(f"counts: {dict(load.counts)}; seed {load.seed}")
            await load.__aexit__(type(problem), problem, problem.__traceback__)
            raise
        await load.__aexit__(None, None, None)
        print(load.require(), dict(load.counts))
        await cluster.wait_converged(*cluster.replicas)
        gap = self.prober.availability.longest_gap_ms
        line = Line(
            number=self.number,
            scenario=self.title,
            shape=self.shape,
            promise=self.promise,
            attack_ms=(healed_ns - self._attacked_ns) / 1e6,
            write_gap_ms=gap("write", self._attacked_ns, recovered_ns),
            read_gap_ms=gap("read", self._attacked_ns, recovered_ns),
            recovery_ms=(recovered_ns - healed_ns) / 1e6,
            operations=load.operations,
            unknown=load.unknown,
        )
        report(line)

    # -- what tests ask

    async def serves(self, *nodes: str, count: int = 15, deadline_s: float = TAKE_OVER_S) -> None:
        """Wait until clients of each of these nodes have written and read so often from now on."""
        await self._progress(nodes, count, deadline_s)

    async def _progress(self, nodes: Iterable[str], count: int, deadline_s: float) -> None:
        async with asyncio.TaskGroup() as tasks:
            for node in nodes:
                tasks.create_task(
                    self.load.progress(writes=count, reads=count, node=node, deadline_s=deadline_s)
                )

    async def keeps_serving(self, *nodes: str, seconds: float = WATCHED_S) -> None:
        """Wait for so long, and see each of these nodes answer writes and reads at its end too."""
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            await self.serves(*nodes, count=5)

    async def another_primary(self) -> str:
        """Wait for another primary than the first."""
        return await self.cluster.primary(besides=self.primary, deadline_s=TAKE_OVER_S)

    async def goes_on(self, *, besides: str) -> None:
        """Wait until `besides` is out of the in-sync set, under the primary of the beginning."""
        wanted = [node for node in self.cluster.replicas if node != besides]
        status = await self.cluster.wait_in_sync(*wanted, deadline_s=TAKE_OVER_S)
        assert status.primary == self.primary, f"{self.primary} had no reason to stop: {status}"

    async def refuses(self, node: str, *, deadline_s: float = TAKE_OVER_S) -> None:
        """Wait until a node refuses linearizable reads and writes; check how it says so."""

        async def is_refused() -> bool:
            reply = await self.cluster.try_fetch(node, f"{kv('nothing')}?timeout_ms=200")
            if reply is None or reply.status == 404:
                return False
            assert reply.status in {503, 504}, reply
            assert problem_of(reply)["code"] in {"no_primary", "timeout"}, reply
            return True

        await wait_until(is_refused, f"{node} refuses reads", deadline_s)
        reply = await self.cluster.fetch(node, "PUT", f"{kv('nothing')}?timeout_ms=200", b"x")
        problem = problem_of(reply)
        assert reply.status in {503, 504}, reply
        assert problem["outcome"] in {"not_applied", "unknown"}, reply

        async def is_not_ready() -> bool:
            return (await self.cluster.fetch(node, "GET", "/readyz")).status == 503

        await wait_until(is_not_ready, f"{node} says that it is not ready", deadline_s)
        assert (await self.cluster.fetch(node, "GET", "/livez")).status == 200


def report(line: Line) -> None:
    """Add a line to the report named by the environment, if there is one."""
    text = msgspec.json.encode(line) + b"\n"
    print(text.decode())
    path = os.environ.get(REPORT_VARIABLE)
    if path:
        # One write in append mode: other workers write there too.
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, text)
        finally:
            os.close(descriptor)
