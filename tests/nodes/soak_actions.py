"""What the soak does to its cluster: each kind of fault, inflicted and lifted.

An action returns when the fault is lifted; its caller then waits until the cluster is whole again.
The *steady* replica is left alive by all that ends a process, so that its memory can be judged.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable

from cluster.client.errors import ClientError
from datapath.errors import DataPathError
from tests.nodes.control import first_free_file, limit_files
from tests.nodes.soak_cluster import SoakCluster
from tests.support.cluster import wait_until
from tests.support.damage import append_garbage, flip_byte, frames, segments
from tests.support.small_disk import fill

END_DEADLINE_S = 8.0


class Attack:
    """What an action needs: the cluster, chance, and who is to be left alone."""

    def __init__(
        self, cluster: SoakCluster, chance: random.Random, say: Callable[[str], None]
    ) -> None:
        self.cluster = cluster
        self.chance = chance
        self.say = say
        self.steady = ""

    async def hold(self, least_s: float, most_s: float) -> None:
        """Leave things as they are for a while."""
        await asyncio.sleep(self.chance.uniform(least_s, most_s))

    async def primary(self) -> str:
        return await self.cluster.newest_primary()

    async def mortal_primary(self) -> str:
        """Return the primary; if that is the steady replica, another is made primary first."""
        primary = await self.primary()
        if primary != self.steady:
            return primary
        await hand_over(self, self.chance.choice(self.cluster.others(primary)))
        return await self.primary()

    async def mortal_backup(self) -> str:
        """Return a backup that may be ended (the primary, if there is no other)."""
        primary = await self.primary()
        found = [node for node in self.cluster.others(primary) if node != self.steady]
        return self.chance.choice(found) if found else await self.mortal_primary()

    def any_node(self) -> str:
        return self.chance.choice(list(self.cluster.specs))

    def mortal(self) -> str:
        return self.chance.choice([node for node in self.cluster.specs if node != self.steady])


Action = Callable[[Attack], Awaitable[None]]


# -- processes


async def kill_primary(attack: Attack) -> None:
    node = await attack.mortal_primary()
    attack.say(f"kill -9 {node}, the primary")
    await attack.cluster.kill(node)
    await attack.hold(0.0, 2.0)


async def kill_backup(attack: Attack) -> None:
    node = await attack.mortal_backup()
    attack.say(f"kill -9 {node}")
    await attack.cluster.kill(node)
    await attack.hold(0.0, 4.0)


async def kill_pair(attack: Attack) -> None:
    """The primary and one more at once: the majority is gone."""
    nodes = [node for node in attack.cluster.specs if node != attack.steady]
    pair = attack.chance.sample(nodes, 2)
    attack.say(f"kill -9 {' and '.join(pair)} at once")
    await attack.cluster.kill(*pair)
    await attack.hold(0.0, 2.0)


async def kill_in_a_loop(attack: Attack) -> None:
    """Killed again as soon as it has begun to come back."""
    node = attack.mortal()
    times = attack.chance.randint(2, 4)
    attack.say(f"kill -9 {node}, {times} times")
    for _ in range(times):
        await attack.cluster.kill(node)
        attack.cluster.launch(node)
        await attack.hold(0.3, 1.5)


async def power_cut(attack: Attack) -> None:
    """All at once, with a torn write at the end of some logs."""
    attack.say("power cut: kill -9 of all, torn tails")
    await attack.cluster.kill(*attack.cluster.specs)
    for node in attack.cluster.replicas:
        if attack.chance.random() < 0.5:
            # There may be no record in its last segment yet, or one that was damaged before.
            with contextlib.suppress(IndexError, DataPathError):
                append_garbage(attack.cluster.data(node))


async def stop_node(attack: Attack) -> None:
    node = attack.mortal()
    attack.say(f"SIGTERM {node}")
    await attack.cluster.stop(node)


async def pause_primary(attack: Attack) -> None:
    node = await attack.primary()
    attack.say(f"SIGSTOP {node}, the primary")
    attack.cluster.nodes[node].pause()
    await attack.hold(0.3, 4.0)
    attack.cluster.nodes[node].resume()


async def pause_pair(attack: Attack) -> None:
    pair = attack.chance.sample(list(attack.cluster.specs), 2)
    attack.say(f"SIGSTOP {' and '.join(pair)}")
    for node in pair:
        attack.cluster.nodes[node].pause()
    await attack.hold(0.3, 3.0)
    for node in pair:
        attack.cluster.nodes[node].resume()
        await attack.hold(0.0, 0.5)


async def flicker(attack: Attack) -> None:
    """Stopped and going by turns, each for about as long as a lease."""
    node = attack.any_node()
    times = attack.chance.randint(5, 15)
    attack.say(f"SIGSTOP and SIGCONT {node}, {times} times")
    for _ in range(times):
        attack.cluster.nodes[node].pause()
        await attack.hold(0.05, 0.5)
        attack.cluster.nodes[node].resume()
        await attack.hold(0.02, 0.3)


async def stall_loop(attack: Attack) -> None:
    node = attack.any_node()
    ms = attack.chance.choice((100, 400, 1000, 3000))
    attack.say(f"the event loop of {node} stands still for {ms} ms")
    attack.cluster.faults.stall(node, ms)
    await asyncio.sleep(ms / 1000)


async def few_files(attack: Attack) -> None:
    """EMFILE: no descriptor can be had for a while."""
    node = attack.mortal()
    process = attack.cluster.nodes[node]
    attack.cluster.may_end.add(node)
    allowed = first_free_file(process.pid) + attack.chance.randint(0, 2)
    attack.say(f"{node} gets no more file descriptors than {allowed}")
    before = limit_files(process.pid, allowed)
    pid = process.pid
    await attack.hold(1.0, 4.0)
    with contextlib.suppress(ProcessLookupError):
        limit_files(pid, before)


async def jump_clock(attack: Attack) -> None:
    node = attack.any_node()
    offset_s = attack.chance.choice((-86_400, -10, -1, 1, 10, 3600, 86_400 * 365))
    attack.say(f"the wall clock of {node} jumps by {offset_s} s")
    attack.cluster.faults.set(node, wall_offset_s=offset_s)
    await attack.hold(0.5, 2.0)
    attack.cluster.faults.clear(node)


# -- disks


async def slow_disk(attack: Attack) -> None:
    node = attack.any_node()
    ms = attack.chance.choice((5, 20, 80, 300))
    attack.say(f"every durable write of {node} takes {ms} ms longer")
    attack.cluster.faults.set(node, sync_delay_ms=ms)
    await attack.hold(1.0, 5.0)
    attack.cluster.faults.clear(node)


async def hanging_disk(attack: Attack) -> None:
    node = attack.any_node()
    attack.say(f"the disk of {node} hangs")
    attack.cluster.faults.set(node, sync_delay_ms=60_000)
    await attack.hold(0.5, 4.0)
    attack.cluster.faults.clear(node)


async def failing_sync(attack: Attack) -> None:
    """The node must stop acknowledging, end, and come back from what the disk really holds."""
    cluster = attack.cluster
    node = attack.mortal()
    where = attack.chance.choice(("/log/", "/raft/", "/store/", "accepted", ""))
    if cluster.specs[node].role == "witness":
        where = "/raft/"
    loses = attack.chance.random() < 0.5
    attack.say(
        f"fsync fails at {node} ({where or 'all files'}{', writes are lost' if loses else ''})"
    )
    cluster.may_end.add(node)
    process = cluster.nodes[node]
    cluster.faults.set(node, sync_fails=True, failing_path=where, loses_what_failed=loses)
    with contextlib.suppress(AssertionError):  # nothing there was to be synced meanwhile
        await wait_until(lambda: not process.running, f"{node} ends", END_DEADLINE_S)
    cluster.faults.clear(node)


async def full_disk(attack: Attack) -> None:
    disk = attack.cluster.disk
    if disk is None:
        return
    attack.say("a disk is full")
    attack.cluster.may_end.update(attack.cluster.specs)
    ballast = fill(disk)
    await attack.hold(1.0, 5.0)
    ballast.unlink()


async def damaged_log(attack: Attack) -> None:
    """A byte of a killed replica's log goes bad: what it lacks comes from the others."""
    node = await attack.mortal_backup()
    await attack.cluster.kill(node)
    path = attack.chance.choice(segments(attack.cluster.data(node)))
    with contextlib.suppress(DataPathError):
        records = [frame for frame in frames(path) if frame.first_index]
        if records:
            frame = records[len(records) // 2]
            attack.say(f"kill -9 {node}, and a byte of its log goes bad")
            flip_byte(frame.path, frame.middle)


# -- roles and members


async def hand_over(attack: Attack, target: str = "") -> None:
    primary = await attack.primary()
    target = target or attack.chance.choice(attack.cluster.others(primary))
    attack.say(f"handover from {primary} to {target}")
    with contextlib.suppress(ClientError):  # refused if the target has just fallen out
        async with attack.cluster.client() as client:
            await client.handover(target)


async def replace_backup(attack: Attack) -> None:
    node = await attack.mortal_backup()
    if node == await attack.primary():
        return
    attack.say(f"{node} has lost its disk: removed, and replaced by a new replica")
    new = await attack.cluster.replace(node)
    attack.say(f"{new} takes the place of {node}")


ACTIONS: dict[str, tuple[int, Action]] = {
    "kill primary": (6, kill_primary),
    "kill backup": (3, kill_backup),
    "kill pair": (2, kill_pair),
    "kill loop": (2, kill_in_a_loop),
    "stop": (2, stop_node),
    "pause primary": (4, pause_primary),
    "pause pair": (2, pause_pair),
    "flicker": (2, flicker),
    "stalled loop": (3, stall_loop),
    "EMFILE": (2, few_files),
    "clock jump": (1, jump_clock),
    "slow disk": (3, slow_disk),
    "hanging disk": (2, hanging_disk),
    "failing fsync": (4, failing_sync),
    "full disk": (2, full_disk),
    "damaged log": (2, damaged_log),
    "handover": (3, hand_over),
    "replaced replica": (2, replace_backup),
}
"""Each kind of fault: how often, relative to the others, and what does it."""
