"""Links through a relay that cuts, swallows and delays: noticed at both ends, re-made after."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import time
from typing import Any

import pytest

from tests.integration.datapath.transport.link_helpers import (
    Recorder,
    connected,
    make_dialer,
    make_listener,
    until,
)

IDLE_MS = 400
FAST: dict[str, Any] = {"idle_timeout_ms": IDLE_MS}


async def test_a_cut_is_noticed_at_once_at_both_ends_and_mended() -> None:
    async with connected(relayed=True) as pair:
        assert pair.relay is not None
        pair.relay.cut()
        await until(lambda: pair.near.closed and pair.far.closed)
        await pair.until_up()
        pair.near.link.send(b"after")
        await until(lambda: pair.far.frames == [b"after"])


@pytest.mark.parametrize("direction", ["both", "there", "back"])
async def test_a_black_hole_is_noticed_at_both_ends(direction: str) -> None:
    async with connected(relayed=True, dial_timeout_ms=300, **FAST) as pair:
        assert pair.relay is not None
        await asyncio.sleep(IDLE_MS / 1000)  # Idle, but pinged: it must hold.
        assert pair.near.up == pair.far.up == 1
        if direction != "back":
            pair.relay.swallow_there = True
        if direction != "there":
            pair.relay.swallow_back = True
        await until(lambda: pair.near.closed and pair.far.closed)
        # One way only, the deaf end notices first, and its closing tells the other.
        assert any("nothing heard" in reason for _, reason in [*pair.near.closed, *pair.far.closed])
        assert len(pair.near.opened) == 1
        pair.relay.swallow(False)
        await pair.until_up()


async def test_a_black_hole_under_load_is_noticed_and_leaves_nothing_behind() -> None:
    async with connected(relayed=True, dial_timeout_ms=300, **FAST) as pair:
        assert pair.relay is not None
        link = pair.near.link
        pair.relay.stuck = True
        for _ in range(200):
            link.send(bytes(100_000))
        await until(lambda: pair.near.closed and pair.far.closed)
        assert "nothing heard" in pair.near.reason
        assert link.queued_bytes == 0
        pair.relay.cut()
        pair.relay.stuck = False
        await pair.until_up()


async def test_a_slow_network_is_not_a_dead_one() -> None:
    async with connected(relayed=True, **FAST) as pair:
        assert pair.relay is not None
        pair.relay.delay_s = 0.1
        big = os.urandom(600_000)  # Ten pieces: longer than the timeout, yet always moving.
        pair.near.link.send(big)
        await until(lambda: pair.far.frames == [big])
        assert not pair.near.closed
        assert not pair.far.closed


async def test_a_stalled_process_does_not_accuse_a_healthy_link() -> None:
    """Both ends stand still, as after SIGSTOP or in a paused virtual machine."""
    async with connected(**FAST) as pair:
        await asyncio.sleep(0.05)
        time.sleep(2 * IDLE_MS / 1000)  # noqa: ASYNC251 - the stall under test
        await asyncio.sleep(IDLE_MS / 1000)
        assert not pair.near.closed
        assert not pair.far.closed


async def test_a_stall_only_delays_the_notice_of_a_link_that_is_dead() -> None:
    async with connected(relayed=True, dial_timeout_ms=300, **FAST) as pair:
        assert pair.relay is not None
        pair.relay.swallow()
        time.sleep(3 * IDLE_MS / 1000)  # noqa: ASYNC251 - the stall under test
        await until(lambda: pair.near.closed and pair.far.closed)


async def test_a_port_that_accepts_and_never_answers_is_given_up_in_time() -> None:
    async with connected(relayed=True) as pair:
        assert pair.relay is not None
        pair.relay.swallow()
        near = Recorder()
        dialer = make_dialer(near, pair.relay.port, kind="replicate", dial_timeout_ms=150)
        taken = pair.relay.connections
        dialer.start()
        await until(lambda: "no answer in 150 ms" in dialer.problem)
        await until(lambda: pair.relay is not None and pair.relay.connections >= taken + 3)
        await dialer.stop()


async def test_a_port_that_drops_every_syn_is_given_up_in_time() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = []
        for _ in range(4):  # A full backlog: Linux drops further SYNs.
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(full.getsockname())
            waiting.append(client)
        dialer = make_dialer(Recorder(), full.getsockname()[1], dial_timeout_ms=150)
        dialer.start()
        await until(lambda: "no answer in 150 ms" in dialer.problem)
        await dialer.stop()
        for client in waiting:
            client.close()


async def test_redials_are_spaced_out() -> None:
    attempts: list[float] = []
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def address() -> tuple[str, int]:
        attempts.append(time.monotonic())
        return "127.0.0.1", port

    dialer = make_dialer(Recorder(), port, address=address)
    dialer.start()
    await until(lambda: len(attempts) == 6)
    await dialer.stop()
    pauses = [later - earlier for earlier, later in itertools.pairwise(attempts)]
    assert pauses[-1] > 0.2


async def test_stopping_a_dialer_in_any_state_leaves_nothing_open() -> None:
    listener = make_listener(Recorder())
    await listener.start()
    for n in range(40):
        dialer = make_dialer(Recorder(), listener.port)
        dialer.start()
        await asyncio.sleep(n * 0.0003)
        await dialer.stop()
    await listener.stop()  # Unclosed sockets would be ResourceWarnings, which are errors.
