"""What is done to Patroni, PostgreSQL, the store, and the links between them.

Each fault strikes, and returns what mends it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple

from bench.patroni.members import MACHINES, Members
from bench.patroni.network import How, Link, Network
from bench.patroni.stores import Store

HOLD_S = 5.0
"""How long a fault lasts that is to move nothing."""
OTHERS_EVERY = 4
"""In how many cycles each fault that does not change the leader comes once."""
HOWS: tuple[How, ...] = ("drop", "refuse")


class World(NamedTuple):
    """What can be struck."""

    store: Store
    members: Members
    network: Network


Mend = Callable[[], None]
Strike = Callable[[World, str, How], Mend]


class Fault(NamedTuple):
    """`strike` gets the leader's name. `moves`: it ends when the other leads."""

    name: str
    strike: Strike
    moves: bool = False
    is_cut: bool = False
    needs_planes: bool = False
    hold_s: float = 0.0


def faults_of(store: Store) -> list[Fault]:
    """Return the faults that can be had with this store."""
    return [fault for fault in FAULTS if store.has_planes or not fault.needs_planes]


def schedule(faults: list[Fault], random: Random) -> Iterator[tuple[Fault, How]]:
    """Draw faults without end: in each cycle all that change the leader, in a new order.

    Of the others each comes once in OTHERS_EVERY cycles. Cuts are dropped or refused in turn.
    """
    moving = [fault for fault in faults if fault.moves]
    others = [fault for fault in faults if not fault.moves]
    waiting: list[Fault] = []
    cuts = {fault.name: random.randrange(len(HOWS)) for fault in faults}
    while True:
        if not waiting:
            waiting = random.sample(others, len(others))
        share = -(-len(others) // OTHERS_EVERY)
        cycle = [*moving, *waiting[:share]]
        waiting = waiting[share:]
        for fault in random.sample(cycle, len(cycle)):
            cuts[fault.name] += 1
            yield fault, HOWS[cuts[fault.name] % len(HOWS)]


def _nothing() -> None:
    return None


def _switch_over(world: World, _leader: str, _how: How) -> Mend:
    world.members.switch_over()
    return _nothing


def _kill_postgres(world: World, leader: str, _how: How) -> Mend:
    world.members.kill_postgres(leader)
    return _nothing


def _kill_patroni(world: World, leader: str, _how: How) -> Mend:
    """Its PostgreSQL goes on alone; commits of clients that are connected to it hang."""
    world.members.processes[leader].end()
    return world.members.processes[leader].start


def _kill_machine(world: World, leader: str, _how: How) -> Mend:
    node = world.store.nodes[MACHINES[leader]]
    world.store.peer.processes[node].end()
    world.members.kill(leader)

    def mend() -> None:
        world.store.peer.restart(node)
        world.members.processes[leader].start()

    return mend


def _kill_store(world: World, _leader: str, _how: How) -> Mend:
    node = world.store.peer.primary()
    world.store.peer.processes[node].end()
    return lambda: world.store.peer.restart(node)


def _cut_leader_off(world: World, leader: str, how: How) -> Mend:
    return _cut_off(world, MACHINES[leader], how)


def _cut_standby_off(world: World, leader: str, how: How) -> Mend:
    return _cut_off(world, MACHINES[Members.other(leader)], how)


def _cut_third_off(world: World, _leader: str, how: How) -> Mend:
    return _cut_off(world, "m3", how)


def _cut_off(world: World, machine: str, how: How) -> Mend:
    world.store.cut_off(machine, how)
    return world.store.heal


def _cut_leader_from_store(world: World, leader: str, how: How) -> Mend:
    return _cut(world, lambda link: (link.source, link.plane) == (MACHINES[leader], "gateway"), how)


def _cut_gateway(world: World, _leader: str, how: How) -> Mend:
    machine = _primary_machine(world)
    return _cut(world, lambda link: (link.target, link.plane) == (machine, "gateway"), how)


def _cut_replication(world: World, _leader: str, how: How) -> Mend:
    return _cut(world, lambda link: link.plane == "postgres", how)


def _cut_data(world: World, _leader: str, how: How) -> Mend:
    machine = _primary_machine(world)
    return _cut(world, lambda link: link.plane == "peer" and machine in link[:2], how)


def _cut_consensus(world: World, _leader: str, how: How) -> Mend:
    machine = _primary_machine(world)
    return _cut(world, lambda link: link.plane == "raft" and machine in link[:2], how)


def _cut(world: World, chosen: Callable[[Link], bool], how: How) -> Mend:
    world.network.cut(chosen, how)
    return world.network.heal


def _primary_machine(world: World) -> str:
    primary = world.store.peer.primary()
    return next(machine for machine, node in world.store.nodes.items() if node == primary)


FAULTS = (
    Fault("switchover", _switch_over, moves=True),
    Fault("kill -9 of everything on the leader's machine", _kill_machine, moves=True),
    Fault("kill -9 of the leader's Patroni alone", _kill_patroni, moves=True),
    Fault("leader's machine cut off", _cut_leader_off, moves=True, is_cut=True),
    Fault("leader's Patroni cut off the store", _cut_leader_from_store, moves=True, is_cut=True),
    Fault("kill -9 of the leader's PostgreSQL", _kill_postgres),
    Fault("kill -9 of the store's primary", _kill_store, hold_s=HOLD_S),
    Fault("standby's machine cut off", _cut_standby_off, is_cut=True),
    Fault("third machine cut off", _cut_third_off, is_cut=True, hold_s=HOLD_S),
    Fault("replication of PostgreSQL cut", _cut_replication, is_cut=True),
    Fault("store's primary cut off Patroni", _cut_gateway, is_cut=True, hold_s=HOLD_S),
    Fault(
        "data plane of the store's primary cut",
        _cut_data,
        is_cut=True,
        needs_planes=True,
        hold_s=HOLD_S,
    ),
    Fault(
        "consensus of the store's primary cut",
        _cut_consensus,
        is_cut=True,
        needs_planes=True,
        hold_s=HOLD_S,
    ),
)
