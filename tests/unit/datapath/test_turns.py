"""Work that takes turns: one piece in a turn of the event loop, in order, whoever leaves."""

from __future__ import annotations

import asyncio

from datapath.turns import TURN_COST_BYTES, Turns


async def test_one_piece_is_done_in_a_turn_of_the_loop() -> None:
    turns, done, looks = Turns(), [], []

    async def work(number: int) -> None:
        await turns.take()
        done.append(number)

    tasks = [asyncio.create_task(work(number)) for number in range(100)]
    while len(done) < 100:
        before = len(done)
        await asyncio.sleep(0)
        looks.append(len(done) - before)
    assert done == list(range(100))
    assert max(looks) == 1
    await asyncio.gather(*tasks)


async def test_one_that_leaves_takes_nobodys_turn() -> None:
    turns, done = Turns(), []

    async def work(number: int) -> None:
        await turns.take()
        done.append(number)

    tasks = [asyncio.create_task(work(number)) for number in range(10)]
    await asyncio.sleep(0)
    for task in tasks[2:9]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert done == [0, 1, 9]
    await work(10)
    assert done[-1] == 10


async def test_when_a_turn_is_spent_the_rest_waits_for_later_ones() -> None:
    turns, done, looks = Turns(), [], []

    async def work(number: int) -> None:
        await turns.wait_while_spent()
        turns.spend(TURN_COST_BYTES // 4)
        done.append(number)

    tasks = [asyncio.create_task(work(number)) for number in range(40)]
    while len(done) < 40:
        before = len(done)
        await asyncio.sleep(0)
        looks.append(len(done) - before)
    assert max(looks) <= 4 + 1
    await asyncio.gather(*tasks)


async def test_who_comes_while_the_last_one_works_waits_for_a_turn_of_its_own() -> None:
    turns, done, now = Turns(), [], 0
    tasks: list[asyncio.Task[None]] = []

    async def work() -> None:
        await turns.take()
        done.append(now)

    async def begin() -> None:
        await work()
        # A task begun by this runs right after the second one of those below.
        asyncio.get_running_loop().call_soon(lambda: tasks.append(asyncio.create_task(work())))

    tasks += [asyncio.create_task(begin()), asyncio.create_task(work())]
    while len(done) < 3:
        now += 1
        await asyncio.sleep(0)
    assert len(set(done)) == 3
    await asyncio.gather(*tasks)
