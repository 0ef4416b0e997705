"""What the soak does to its network: every directed link leads through a real toxiproxy-server.

A replaced replica has the addresses of the one before, and so its place here. The others reach it
directly until they are restarted, as their configuration has no route to it.
"""

from __future__ import annotations

import random

from tests.nodes.soak_actions import Action, Attack
from tests.nodes.soak_cluster import Places
from tests.support.partitions import BOTH, PEER, RAFT


def chosen(attack: Attack) -> tuple[Places, str, random.Random]:
    """Return the network, a place, and chance; these actions are not drawn without a network."""
    network = attack.cluster.network
    assert network is not None
    return network, attack.chance.choice(network.nodes), attack.chance


async def cut_off(attack: Attack) -> None:
    """One node hears from nobody, and nobody from it: connections break, or all is swallowed."""
    network, place, chance = chosen(attack)
    refused = chance.random() < 0.5
    attack.say(f"{place} is cut off ({'refused' if refused else 'swallowed'})")
    await network.isolate(place, how="refuse" if refused else "drop")
    await attack.hold(0.3, 5.0)
    await network.heal()


async def cut_pair(attack: Attack) -> None:
    """Two nodes cannot reach each other: for data, for consensus, or both."""
    network, _, chance = chosen(attack)
    one, other = chance.sample(network.nodes, 2)
    kinds = chance.choice((PEER, RAFT, BOTH))
    attack.say(f"{one} and {other} cannot reach each other ({', '.join(kinds)})")
    await network.cut(one, other, kinds=kinds)
    await attack.hold(0.3, 5.0)
    await network.heal()


async def cut_kind(attack: Attack) -> None:
    """All data links, or all consensus links, of one node."""
    network, place, chance = chosen(attack)
    kinds = chance.choice((PEER, RAFT))
    attack.say(f"{place} has no {kinds[0]} links")
    await network.isolate(place, kinds=kinds, how="refuse")
    await attack.hold(0.3, 5.0)
    await network.heal()


async def one_way(attack: Attack) -> None:
    """What a node sends is lost, or what is sent to it; not both."""
    network, place, chance = chosen(attack)
    outgoing = chance.random() < 0.5
    attack.say(f"{place} {'is not heard' if outgoing else 'hears nothing'}, one way only")
    await network.isolate(place, direction="out" if outgoing else "in")
    await attack.hold(0.3, 5.0)
    await network.heal()


async def slow_links(attack: Attack) -> None:
    network, place, chance = chosen(attack)
    ms = chance.choice((20, 50, 150, 400))
    attack.say(f"the links of {place} take {ms} ms each way, give or take as much")
    for other in network.nodes:
        if other != place:
            await network.toxic(place, other, "latency", {"latency": ms, "jitter": ms})
    await attack.hold(1.0, 5.0)
    await network.heal()


async def narrow_links(attack: Attack) -> None:
    network, place, _ = chosen(attack)
    attack.say(f"the links of {place} carry 64 KB/s, in small slices")
    slices = {"average_size": 200, "size_variation": 100, "delay": 1000}
    for other in network.nodes:
        if other != place:
            await network.toxic(place, other, "bandwidth", {"rate": 64})
            await network.toxic(place, other, "slicer", slices)
    await attack.hold(1.0, 5.0)
    await network.heal()


async def flapping(attack: Attack) -> None:
    """Cut and healed again and again, each for about as long as a lease."""
    network, place, chance = chosen(attack)
    times = chance.randint(3, 10)
    attack.say(f"the links of {place} flap, {times} times")
    for _ in range(times):
        await network.isolate(place, how="refuse")
        await attack.hold(0.05, 0.5)
        await network.heal()
        await attack.hold(0.05, 0.5)


NETWORK_ACTIONS: dict[str, tuple[int, Action]] = {
    "cut off": (5, cut_off),
    "cut pair": (3, cut_pair),
    "cut kind": (3, cut_kind),
    "one way": (3, one_way),
    "slow links": (2, slow_links),
    "narrow links": (2, narrow_links),
    "flapping links": (2, flapping),
}
