"""`python -m bench NAME [options]`, `… --list`, `… tour`, `… check`, `… report`."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console

from bench import check, machine
from bench.context import RESULTS, Context, Options, read, save
from bench.peers.process import BenchError
from bench.registry import ALL, BY_NAME, Benchmark

DEFAULT_WORK = Path("/var/tmp")
CHECK = Options(seconds=1, rounds=5)
"""Of `check`: about three minutes with four peers."""
TOUR_LIMIT_S = 14 * 60
"""When the tour begins nothing new, so that it ends within 15 minutes."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name", required=False)
@click.option("--list", "list_all", is_flag=True, help="List the benchmarks.")
@click.option("--seconds", type=float, help="Seconds of each measurement.")
@click.option("--rounds", type=click.IntRange(1), help="Rounds of what is repeated.")
@click.option("--kills", type=click.IntRange(1), help="How many processes are killed or stopped.")
@click.option("--size-mb", type=click.IntRange(1), help="Size of the snapshot benchmark's state.")
@click.option(
    "--keys-max", type=click.IntRange(1), help="Most keys in keys, entries behind in catch-up."
)
@click.option("--minutes", type=float, help="Length of the memory benchmark.")
@click.option("--seed", type=click.IntRange(1), help="Seed of the faults that patroni draws.")
@click.option("--only", default="", help="Peers to measure, separated by commas.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, help="Results directory.")
@click.option("--work", type=click.Path(path_type=Path), default=DEFAULT_WORK, help="For data.")
def main(
    name: str | None, list_all: bool, out: Path, work: Path, only: str, **changes: Any
) -> None:
    """Measure what onecopy costs, beside what one would use instead.

    NAME is one of --list, `tour` for all of them within 15 minutes, `check` to compare the
    headline with the results that are there (exit code 1: it is worse), or `report` to write
    docs/benchmarks.md from them.
    """
    console = Console()
    if list_all or name is None:
        for benchmark in BY_NAME.values():
            console.print(
                f"{benchmark.name:<12} {benchmark.summary}", soft_wrap=True, highlight=False
            )
        return
    if name == "report":
        from bench.report import write_report  # noqa: PLC0415 -- matplotlib takes a second

        for path in write_report(out):
            console.print(f"wrote {path}", highlight=False)
        return
    given = {field: value for field, value in changes.items() if value is not None}
    if only:
        given["only"] = tuple(only.split(","))
    if name not in {"tour", "check"} and name not in BY_NAME:
        raise click.UsageError(f"there is no benchmark {name!r}; see python -m bench --list")
    if machine.filesystem(work.resolve()) in {"tmpfs", "ramfs"}:
        raise click.UsageError(f"{work} is in memory: fsync costs nothing there; choose --work")
    if name == "check":
        sys.exit(0 if _check(console, given, out, work) else 1)
    chosen = ALL if name == "tour" else (BY_NAME[name],)
    failed = _run_all(console, chosen, given, out, work, tour=name == "tour")
    if name == "tour":
        from bench.report import write_report  # noqa: PLC0415

        for path in write_report(out):
            console.print(f"wrote {path}", highlight=False)
    sys.exit(1 if failed else 0)


def _check(console: Console, given: dict[str, Any], out: Path, work: Path) -> bool:
    """Compare with the stored headline; False also where that cannot be done."""
    options = msgspec.structs.replace(CHECK, **given)
    try:
        with _surroundings(console, options, work) as context:
            return check.run(context, read("headline", out))
    except (BenchError, OSError) as error:
        console.print(f"check failed: {error}", highlight=False, markup=False)
        return False


@contextlib.contextmanager
def _surroundings(console: Console, options: Options, work: Path) -> Iterator[Context]:
    """Lend a context with an empty directory; servers are ended when the process is."""
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _stop)
    work.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="onecopy-bench-", dir=work))
    try:
        yield Context(options, directory, console)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _stop(number: int, _frame: object) -> None:
    sys.exit(128 + number)


def _run_all(
    console: Console,
    chosen: tuple[Benchmark, ...],
    given: dict[str, Any],
    out: Path,
    work: Path,
    *,
    tour: bool,
) -> list[str]:
    """Run benchmarks one after the other; return the names of those that failed."""
    begin = time.monotonic()
    failed = []
    for number, benchmark in enumerate(chosen):
        options = msgspec.structs.replace(benchmark.tour if tour else benchmark.default, **given)
        passed = time.monotonic() - begin
        if tour and passed > TOUR_LIMIT_S:
            console.print(f"no time left for {benchmark.name}: run it by its name", highlight=False)
            continue
        place = f"[{number + 1}/{len(chosen)}, {passed / 60:.1f} min] " if tour else ""
        console.rule(f"{place}{benchmark.name}: {benchmark.summary}")
        try:
            with _surroundings(console, options, work) as context:
                context.ceiling()
                data = benchmark.run(context)
                command = "python -m bench " + " ".join(sys.argv[1:])
                path = save(context, benchmark.name, data, out, command)
            console.print(f"wrote {path}", highlight=False)
        except (BenchError, OSError) as error:
            console.print(f"{benchmark.name} failed: {error}", highlight=False, markup=False)
            failed.append(benchmark.name)
    return failed


if __name__ == "__main__":
    main()
