"""The matrix of workloads, sampled: each dimension varied by itself around the headline's point."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import msgspec

from bench import loads
from bench.context import Context, plain
from bench.loads import Result
from bench.peers.etcd import Etcd
from bench.peers.onecopy import Onecopy
from bench.peers.process import Peer
from bench.peers.pysyncobj_dict import PySyncObjDict
from bench.spec import Workload

WARM_UP_S = 0.3
SIZES = (100, 1024, 65536)
CONNECTIONS = (1, 16, 64, 256)
OPEN_SHARES = (0.3, 0.6, 0.9)
SHAPES = (("1 replica", 1, 0), ("2 replicas + witness", 2, 1), ("3 replicas", 3, 0))
LARGE_SHAPE = ("5 replicas", 5, 0)
BASE = Workload(api="onecopy")


def run(context: Context) -> dict[str, Any]:
    """Measure onecopy's shapes and workloads; etcd and PySyncObj at a few of the same points."""
    rows: list[dict[str, Any]] = []
    for shape, replicas, witnesses in (*SHAPES, LARGE_SHAPE):
        with context.peer(Onecopy.shape(replicas=replicas, witnesses=witnesses)) as cluster:
            _Sampler(context, rows, cluster, shape).sample(whole=shape == "3 replicas")
    makes: tuple[type[Peer], ...] = (Etcd, PySyncObjDict)
    for make in makes:
        with contextlib.ExitStack() as stack:
            if context.wants(make.name) and (peer := context.optional(make, stack)):
                _Sampler(context, rows, peer, f"{peer.name}, 3 nodes").sample_peer()
    return {"rows": rows}


class _Sampler:
    """Measures one system's points and adds a row for each."""

    def __init__(
        self, context: Context, rows: list[dict[str, Any]], peer: Peer, shape: str
    ) -> None:
        self._context = context
        self._rows = rows
        self._peer = peer
        self._shape = shape
        self._base = msgspec.structs.replace(BASE, api=peer.api)
        self._primary = peer.address(peer.primary())

    def sample(self, *, whole: bool) -> None:
        """Measure a shape of onecopy: everything, or what the number of replicas changes."""
        base = self._base
        loads.fill(base, self._primary)
        self._point("writes", base)
        self._point("writes", base, connections=1)
        self._point("writes, ack=local", _with(base, query="?ack=local"))
        self._point("linearizable reads at the primary", _with(base, write_share=0.0))
        if not whole:
            return
        for connections in (16, 256):
            self._point("writes", base, connections=connections)
            self._point(
                "linearizable reads at the primary",
                _with(base, write_share=0.0),
                connections=connections,
            )
        self._point(
            "linearizable reads at the primary", _with(base, write_share=0.0), connections=1
        )
        self._backup_reads()
        self._point("95 % reads, 5 % writes", _with(base, write_share=0.05))
        self._point("50 % reads, 50 % writes", _with(base, write_share=0.5))
        self._point("conditional writes (If-Match)", _with(base, conditional=True, prefix="c"))
        for size in SIZES[1:]:
            sized = _with(base, value_bytes=size, prefix=f"s{size}-", keys=200)
            loads.fill(sized, self._primary)
            self._point("writes", sized)
            self._point("linearizable reads at the primary", _with(sized, write_share=0.0))
        self._open_loop()

    def _backup_reads(self) -> None:
        assert isinstance(self._peer, Onecopy)
        backups = [self._peer.address(node) for node in self._peer.backups()]
        for consistency in ("linearizable", "stale"):
            reads = _with(self._base, write_share=0.0, read_query=f"?consistency={consistency}")
            self._point(f"{consistency} reads at the backups", reads, addresses=backups)

    def _open_loop(self) -> None:
        """Writes at fixed rates: shares of what the closed loop has just reached."""
        reached = next(
            row["per_s"]
            for row in self._rows
            if row["shape"] == self._shape
            and row["workload"] == "writes"
            and (row["connections"], row["value_bytes"]) == (64, 100)
        )
        for share in OPEN_SHARES:
            self._point(
                f"writes, open loop at {share:.0%} of the closed loop's rate",
                self._base,
                rate_per_s=round(reached * share),
            )

    def sample_peer(self) -> None:
        """Measure a peer at the points that matter most."""
        base = self._base
        loads.fill(base, self._primary)
        self._point("writes", base)
        self._point("writes", base, connections=1)
        reads = _with(base, write_share=0.0)
        if self._peer.api == "etcd":
            self._point("linearizable reads at the primary", reads)
            others = [
                self._peer.address(node)
                for node in self._peer.processes
                if self._peer.address(node) != self._primary
            ]
            stale = _with(reads, serializable=True)
            self._point("linearizable reads at the backups", reads, addresses=others)
            self._point("stale reads at the backups", stale, addresses=others)
            sized = _with(base, value_bytes=65536, prefix="s65536-", keys=100)
            loads.fill(sized, self._primary)
            self._point("writes", sized)
        else:
            self._point("stale reads at the leader", reads)

    def _point(
        self,
        label: str,
        workload: Workload,
        *,
        connections: int = 64,
        addresses: Sequence[str] = (),
        rate_per_s: float = 0.0,
    ) -> None:
        result: Result = loads.run(
            workload,
            addresses or [self._primary],
            connections=connections,
            seconds=self._context.options.seconds,
            warm_up_s=WARM_UP_S,
            rate_per_s=rate_per_s,
            servers=self._peer.servers,
        )
        name = f"{self._shape}: {label}, {workload.value_bytes} B, {connections} conn."
        self._context.line(name, result)
        row = {
            "shape": self._shape,
            "workload": label,
            "value_bytes": workload.value_bytes,
            "connections": connections,
            "rate_asked": rate_per_s,
        }
        self._rows.append(row | plain(result))


def _with(workload: Workload, **changes: Any) -> Workload:
    return msgspec.structs.replace(workload, **changes)
