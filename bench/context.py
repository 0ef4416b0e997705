"""What every benchmark gets: its options, a place for data, a console, the generator's ceiling."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from rich.console import Console

from bench import loads, machine
from bench.accounting import disk_text
from bench.loads import Result
from bench.peers.bare import Bare
from bench.peers.process import BenchError, MissingPeerError, Peer
from bench.spec import Workload

RESULTS = Path(__file__).resolve().parent / "results"
P = TypeVar("P", bound=Peer)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """`seconds` of each measurement, `rounds` of those that are repeated, `kills` of processes.

    `size_mb` and `keys_max` (keys, or entries behind) bound the benchmarks that grow; `minutes`
    those that wait. `only` names the peers to take (empty: all). `seed`: of what is drawn (0: a new
    one).
    """

    seconds: float = 3.0
    rounds: int = 3
    kills: int = 10
    size_mb: int = 1024
    keys_max: int = 1_000_000
    minutes: float = 10.0
    only: tuple[str, ...] = ()
    seed: int = 0


class Context:
    """One run's surroundings. Use `peer` to start and stop servers."""

    def __init__(self, options: Options, work: Path, console: Console) -> None:
        self.options = options
        self.work = work
        self.console = console
        self.missing: list[str] = []
        self._ceiling: Result | None = None

    def say(self, text: str) -> None:
        """Print one line of progress."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def wants(self, name: str) -> bool:
        """Whether a peer is among those to measure."""
        return not self.options.only or name in self.options.only

    @contextlib.contextmanager
    def directory(self) -> Iterator[Path]:
        """Lend an empty directory."""
        path = Path(tempfile.mkdtemp(dir=self.work))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def peer(self, make: Callable[[Path], P]) -> Iterator[P]:
        """Start a server or cluster; end it, and drop its data, afterwards."""
        with self.directory() as path:
            peer = make(path)
            try:
                peer.start()
                yield peer
            finally:
                peer.close()

    def optional(self, make: Callable[[Path], P], stack: contextlib.ExitStack) -> P | None:
        """Start a peer for as long as `stack` lasts; None, with a line said, if it is missing."""
        try:
            return stack.enter_context(self.peer(make))
        except MissingPeerError as error:
            self.say(f"left out: {error}")
            self.missing.append(str(error))
            return None

    def ceiling(self) -> Result:
        """Return what the generator reaches against a bare aiohttp server, 64 connections, PUT."""
        if self._ceiling is None:
            with self.peer(Bare) as bare:
                workload = Workload(api="bare")
                self._ceiling = loads.run(
                    workload,
                    [bare.address("bare")],
                    connections=64,
                    seconds=1.0,
                    servers=bare.servers,
                )
            self.say(f"generator's ceiling (bare aiohttp server): {self._ceiling.rate:,.0f}/s")
        return self._ceiling

    def line(self, label: str, result: Result) -> None:
        """Print one result, with the generator's ceiling beside it."""
        latency = result.outcome.latency
        errors = f", errors {result.outcome.errors}" if result.outcome.errors else ""
        self.say(
            f"  {label:<34} {result.rate:>8,.0f}/s  p50 {latency.p50_ms:.2f} ms  "
            f"p99 {latency.p99_ms:.2f}  p99.9 {latency.p999_ms:.2f}  "
            f"{result.cpu_us_per_op:.0f} us CPU/op  "
            f"{disk_text(result.disk_bytes_per_op)} B disk/op  "
            f"{disk_text(result.disk_flushes_per_op, 2)} flushes/op  "
            f"{result.wire_bytes_per_op:,.0f} B wire/op  "
            f"(ceiling {self.ceiling().rate:,.0f}/s){errors}"
        )


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A file of bench/results."""

    name: str
    date: str
    commit: str
    command: str
    machine: machine.Machine
    options: Options
    missing: list[str]
    ceiling_per_s: float
    data: Any


def save(context: Context, name: str, data: Mapping[str, Any], out: Path, command: str) -> Path:
    """Write one benchmark's results."""
    record = Record(
        name=name,
        date=machine.today(),
        commit=machine.commit(),
        command=command,
        machine=machine.machine(context.work),
        options=context.options,
        missing=context.missing,
        ceiling_per_s=round(context.ceiling().rate),
        data=data,
    )
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
    return path


def read(name: str, directory: Path) -> Record | None:
    """Return a benchmark's saved results, None if it has none."""
    path = directory / f"{name}.json"
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except msgspec.DecodeError as error:
        raise BenchError(f"{path}: {error}; measure again") from None


def plain(result: Result) -> dict[str, Any]:
    """Return the figures of a result for a results file."""
    outcome = result.outcome
    found: dict[str, Any] = msgspec.to_builtins(outcome.latency)
    found |= {
        "per_s": round(outcome.rate, 1),
        "seconds": outcome.seconds,
        "errors": outcome.errors,
        "cpu_us_per_op": result.cpu_us_per_op,
        "disk_bytes_per_op": result.disk_bytes_per_op,
        "disk_flushes_per_op": result.disk_flushes_per_op,
        "wire_bytes_per_op": result.wire_bytes_per_op,
        "generator_cpu_share": round(outcome.cpu_s / outcome.seconds, 3),
        "late_us": outcome.late_us,
        "unsent": outcome.unsent,
    }
    return found
