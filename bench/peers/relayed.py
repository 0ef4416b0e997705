"""onecopy with a slow or lossy network between its nodes: a relay for each pair."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.peers.onecopy import Onecopy
from bench.peers.process import free_address
from bench.relay import Plan, Relay, Way


class RelayedOnecopy(Onecopy):
    """A cluster whose data path, and consensus too if `raft`, goes through relays.

    `kill` takes a node and its network; `cut` and `heal` its network only.
    """

    def __init__(
        self,
        directory: Path,
        *,
        delay_ms: float = 0.0,
        jitter_ms: float = 0.0,
        loss: float = 0.0,
        raft: bool = False,
        timing: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(directory, timing=timing)
        self._relays: dict[frozenset[str], Relay] = {}
        self._plans: dict[frozenset[str], Plan] = {}
        lines = []
        for number, (one, other) in enumerate(itertools.combinations(self.nodes, 2)):
            ways = []
            for source, target in ((one, other), (other, one)):
                lines.append(f"[routes.{source}.{target}]")
                for channel in ("peer", "raft") if raft else ("peer",):
                    listen = free_address()
                    ways.append(Way(listen, self.inner_address(target, channel)))
                    lines.append(f'{channel} = "{listen}"')
            self._plans[frozenset((one, other))] = Plan(
                ways=ways, delay_ms=delay_ms, jitter_ms=jitter_ms, loss=loss, seed=number + 1
            )
        with self.config.open("a") as file:
            file.write("\n".join(lines) + "\n")

    @classmethod
    def network(cls, **options: Any) -> Callable[[Path], RelayedOnecopy]:
        """Return what makes a cluster with this network in a directory."""
        return lambda path: cls(path, **options)

    def start(self) -> None:
        for pair, plan in self._plans.items():
            self._relays[pair] = Relay(plan)
        super().start()

    def cut(self, node: str) -> None:
        """Cut a node off from the others: silently, as a network does that drops everything."""
        for pair, relay in self._relays.items():
            if node in pair:
                relay.signal(signal.SIGSTOP)

    def heal(self, node: str) -> None:
        """Undo `cut`."""
        for pair, relay in self._relays.items():
            if node in pair:
                relay.signal(signal.SIGCONT)

    def kill(self, node: str) -> None:
        """Kill a node, and with it all that its network had under way."""
        gone = [self._relays.pop(pair) for pair in list(self._relays) if node in pair]
        for relay in gone:
            relay.kill()  # all at once, so that none delivers what another has lost
        self.processes[node].signal(signal.SIGKILL)
        for relay in gone:
            relay.end()
        self.processes[node].end()

    def close(self) -> None:
        super().close()
        for relay in self._relays.values():
            relay.end()
        self._relays.clear()
