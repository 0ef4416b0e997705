"""`python -m bench check`: whether onecopy has become slower than its stored results say.

What a machine gives changes from hour to hour, so rates are not compared but ratios to the peers
that are measured in the same rounds. A measure has moved if the median over the peers has: a single
peer that is faster or slower than it was moves only its own line. What is worse is measured once
more, so that a moment of other load fails nothing.
"""

from __future__ import annotations

import statistics

import msgspec

from bench import headline
from bench.context import Context, Record
from bench.headline import MEASURES, Results
from bench.peers.process import BenchError

MARGIN = 0.15
"""How much worse than stored the median ratio of a measure may be: rounds of 1 s differ by half of
that on a machine that does nothing else; beside other load they differ by more."""
PEERS = ("etcd gateway", "etcd gRPC", "nats", "redis")
SINGLE = MEASURES[1]


class Change(msgspec.Struct, frozen=True):
    """A measure by a peer's: the ratios, and how much better (1.1: by 10 %) onecopy is now."""

    measure: str
    peer: str
    stored: float
    now: float

    @property
    def better(self) -> float:
        """More than 1: better than stored. Of the latency of one client less is better."""
        return self.stored / self.now if self.measure == SINGLE else self.now / self.stored


def field(measure: str) -> str:
    """Return the figure that a measure is compared by."""
    return "p50_ms" if measure == SINGLE else "per_s"


def changes(stored: Results, now: Results) -> list[Change]:
    """Compare the ratios of all measures and peers that both have."""
    found = []
    for measure in MEASURES:
        for peer in PEERS:
            ratios = [
                headline.ratio(results, measure, field(measure), peer) for results in (stored, now)
            ]
            before, after = ratios
            if before and after:
                found.append(Change(measure, peer, before, after))
    return found


def by_measure(found: list[Change]) -> dict[str, float]:
    """Return how much better each measure is, the median over the peers."""
    return {
        measure: statistics.median(change.better for change in found if change.measure == measure)
        for measure in dict.fromkeys(change.measure for change in found)
    }


def run(context: Context, stored: Record | None) -> bool:
    """Measure again, print what has moved; return whether all is within the margin."""
    if stored is None:
        raise BenchError("there are no stored results: run `python -m bench headline` first")
    before: Results = stored.data["results"]
    wanted = [peer for peer in PEERS if any(peer in before.get(name, ()) for name in MEASURES)]
    options = context.options
    if not options.only:
        context.options = msgspec.structs.replace(options, only=("onecopy", *wanted))
    measured = headline.run(context)
    now: Results = measured["results"]
    if not changes(before, now):
        raise BenchError(f"no peer of the stored results could be measured: {', '.join(wanted)}")
    if not is_within(changes(before, now)):
        context.say("something is worse: once more, and then all rounds together")
        for measure, systems in headline.run(context)["results"].items():
            for name, rounds in systems.items():
                now[measure][name] += rounds
    found = changes(before, now)
    context.say(f"stored: {stored.date}, commit {stored.commit}, {stored.machine.processor}")
    for name in _other_versions(stored.data["systems"], measured["systems"]):
        context.say(name)
    for measure, better in by_measure(found).items():
        verdict = "within" if abs(better - 1) <= MARGIN else "better" if better > 1 else "WORSE"
        context.say(f"{measure}: {better - 1:+.0%}, {verdict} (margin {MARGIN:.0%})")
        for change in found:
            if change.measure == measure:
                context.say(
                    f"  by {change.peer:<14} {change.stored:.2f} stored, {change.now:.2f} now: "
                    f"{change.better - 1:+.0%}"
                )
    return is_within(found)


def is_within(found: list[Change]) -> bool:
    """Return whether no measure is worse than stored by more than MARGIN."""
    return min(by_measure(found).values()) >= 1 - MARGIN


def _other_versions(stored: list[dict[str, str]], now: list[dict[str, str]]) -> list[str]:
    """Say which peers are not of the version that they were stored with."""
    before = {(item["name"], item["version"]) for item in stored}
    return [
        f"{item['name']} {item['version']} is not of the version that the results were stored with"
        for item in now
        if (item["name"], item["version"]) not in before
    ]
