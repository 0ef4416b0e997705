"""A soak: `python -m tests.nodes.soak --minutes 60 [--seed S] [--witness]`, or `make soak`.

Real nodes under mixed load, while faults of all kinds come and go; prints what happens, and one
verdict at the end. The exit code is 0 only if that is clean. What failed is kept in the directory
that the verdict names. The seed decides which faults come in which order; how far each has got when
the next one comes depends on the machine, so a seed is a schedule, not a replay.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from tests.nodes.soak_run import ALL_ACTIONS, Plan, Soak
from tests.support.ports import use_last_block


def verdict(soak: Soak) -> tuple[bool, str]:
    """Return whether all is well, and the text that says so."""
    plan, sentinel, load = soak.plan, soak.sentinel, soak.load
    problems = list(soak.problems)
    lines = [
        f"soak of {soak.elapsed_s / 60:.1f} min, seed {plan.seed}, "
        + ("2 replicas and a witness" if plan.witness else "3 replicas"),
        f"operations                    {soak.operations}",
        f"faults                        {len(soak.injected)}",
    ]
    lines += [
        f"  {kind:26}  {count:4}   longest without a write {gap:6.2f} s, whole in {healed:6.2f} s"
        for kind, count, gap, healed in soak.by_kind()
    ]
    lost = "never compared" if soak.lost is None else str(len(soak.lost))
    lines += [
        f"restarts by the supervisor    {len(soak.cluster.restarts)}",
        f"acknowledged writes lost      {lost} of {len(soak.ledger.acknowledged)}",
        f"writes of unknown outcome     {len(soak.ledger.unknown)}",
        f"stale reads                   {len(sentinel.stale)} of {sentinel.reads}",
        f"windows not linearizable      {len(load.bad)} of {load.generations} (by Porcupine)",
        f"  operations in them          {load.operations}, of unknown outcome {load.unknown}",
    ]
    if soak.lost is None:
        problems.append("acknowledged writes were never compared")
    elif soak.lost:
        problems.append(f"lost: {soak.lost[:5]}")
    problems += [f"stale: {text}" for text in sentinel.stale[:5]]
    problems += [*load.defects[:5], *map(str, load.bad)]
    problems += soak.cluster.surprises
    lives = soak.resources.judged()
    lines.append(f"memory and descriptors        {len(lives)} lives long enough to judge")
    for life in lives[:12]:
        lines.append(f"  {life}")
    problems += [complaint for life in lives if (complaint := life.complaint())]
    if not lives:
        lines.append("  (none: a longer soak judges them)")
    lines.append(f"disk use at most              {soak.resources.most_disk_bytes >> 20} MiB")
    unique = list(dict.fromkeys(problems))
    lines += [f"PROBLEM: {text}" for text in unique]
    if unique:
        lines.append(f"kept: {plan.keep}")
    lines.append("VERDICT: " + ("clean" if not unique else f"{len(unique)} problem(s)"))
    return not unique, "\n".join(lines)


def keep_evidence(soak: Soak) -> None:
    """Leave the nodes' logs and the faults beside the failing windows."""
    soak.plan.keep.mkdir(parents=True, exist_ok=True)
    for log in soak.cluster.directory.glob("*.log*"):
        shutil.copy2(log, soak.plan.keep)
    faults = "\n".join(map(str, soak.injected)) + "\n"
    (soak.plan.keep / "faults.txt").write_text(faults)


async def run(plan: Plan, directory: Path) -> bool:
    """Run a soak, and print its verdict; return whether it is clean."""
    soak = Soak(plan, directory)
    own = asyncio.current_task()
    assert own is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, own.cancel)
    try:
        await soak.run()
        clean, text = verdict(soak)
        if not clean:
            keep_evidence(soak)
        print(text, flush=True)
        return clean
    finally:
        soak.cluster.end()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.nodes.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--witness", action="store_true", help="two replicas and a witness")
    parser.add_argument("--no-network", action="store_true", help="no proxies between the nodes")
    parser.add_argument("--kinds", help=f"only these faults, with commas: {', '.join(ALL_ACTIONS)}")
    parser.add_argument("--keep", type=Path, help="where to leave what shows a failure")
    options = parser.parse_args()
    kinds = tuple(options.kinds.split(",")) if options.kinds else tuple(ALL_ACTIONS)
    if unknown := set(kinds) - set(ALL_ACTIONS):
        parser.error(f"there are no such faults: {', '.join(sorted(unknown))}")
    keep = options.keep or Path(tempfile.gettempdir()) / f"onecopy-soak-{options.seed}"
    plan = Plan(
        seconds=options.minutes * 60,
        seed=options.seed,
        witness=options.witness,
        keep=keep,
        network=not options.no_network,
        kinds=kinds,
    )
    use_last_block()
    print(f"soak of {options.minutes:g} min, seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="onecopy-soak-", ignore_cleanup_errors=True) as folder:
        try:
            clean = asyncio.run(run(plan, Path(folder) / "cluster"))
        except (KeyboardInterrupt, asyncio.CancelledError):
            print("stopped; every node was ended", flush=True)
            return 130
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
