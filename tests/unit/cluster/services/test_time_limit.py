"""Python code that holds the event loop is interrupted; the limit leaves nothing behind (X2)."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import threading
import time

import pytest

from cluster.services.time_limit import _AGAIN_S, Stepped, TimeLimit, TimeUpError, _Alarm


def endless() -> None:
    while True:
        pass


def swallowing() -> None:
    while True:
        with contextlib.suppress(Exception):
            endless()


def stubborn() -> None:
    for _ in range(3):
        with contextlib.suppress(BaseException):
            endless()
    endless()


@pytest.mark.parametrize("code", [endless, swallowing, stubborn])
def test_code_that_does_not_end_is_interrupted(code: object) -> None:
    assert callable(code)
    with pytest.raises(TimeUpError), TimeLimit(0.02):
        code()


def test_what_blocks_is_interrupted() -> None:
    with pytest.raises(TimeUpError), TimeLimit(0.02):
        time.sleep(2)


def test_who_else_uses_the_timer_has_it_back() -> None:
    fired: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda *_: fired.append(1))
    timer = signal.setitimer(signal.ITIMER_REAL, 1000, 500)
    try:
        with pytest.raises(TimeUpError), TimeLimit(0.02):
            endless()
        left_s, interval_s = signal.getitimer(signal.ITIMER_REAL)
        assert 0 < left_s < 1000
        assert interval_s == 500
        assert not fired
        signal.raise_signal(signal.SIGALRM)
        assert fired == [1]
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def test_what_ends_in_time_is_left_alone() -> None:
    limit = TimeLimit(0.02)
    for _ in range(100):
        with limit:
            pass
    time.sleep(0.03)


def test_what_is_masked_is_interrupted_at_its_check() -> None:
    limit = TimeLimit(0.01)

    def masked() -> None:
        limit.masked = True
        end = time.monotonic() + 0.05
        while time.monotonic() < end:
            pass
        limit.masked = False
        limit.check()

    with pytest.raises(TimeUpError), limit:
        masked()


def test_in_another_thread_there_is_no_bound() -> None:
    limit = TimeLimit(0.01)
    ended = threading.Event()

    def run() -> None:
        with limit:
            time.sleep(0.05)
        ended.set()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert ended.is_set()


async def test_each_step_of_a_coroutine_has_the_limit() -> None:
    async def waits() -> int:
        await asyncio.sleep(0.05)
        return 7

    async def holds() -> None:
        await asyncio.sleep(0)
        endless()

    async def catches() -> str:
        try:
            await asyncio.wait_for(asyncio.sleep(60), 0.01)
        except TimeoutError:
            return "caught"
        return ""

    limit = TimeLimit(0.02)
    assert await Stepped(waits(), limit) == 7
    assert await Stepped(catches(), limit) == "caught"
    with pytest.raises(TimeUpError):
        await Stepped(holds(), limit)


def test_an_alarm_amid_entering_and_leaving_leaves_nothing_behind() -> None:
    """It would be raised again and again, in whatever the process does next."""
    chance = random.Random(1)
    interrupted = 0
    for _ in range(20_000):
        try:
            with TimeLimit(chance.uniform(1e-6, 3e-5)):
                sum(range(50))
        except TimeUpError:
            interrupted += 1
        assert _Alarm.limit is None
    assert interrupted
    assert signal.getitimer(signal.ITIMER_REAL)[1] != _AGAIN_S
