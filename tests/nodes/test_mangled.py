"""Links that cut, slice and reset what passes; and clients behind such a link."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.nodes.scenario import PATIENCE, WATCHED_S, WITNESS, Scenario, shapes
from tests.support.cluster import wait_until
from tests.support.raw_http import connect, kv
from tests.support.recorded_load import Mix
from tests.support.toxiproxy import Attributes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.fault]

MANGLED: dict[str, tuple[str, Attributes]] = {
    "slices of 1 to 40 bytes": (
        "slicer",
        {"average_size": 20, "size_variation": 19, "delay": 10},
    ),
    "closed after 20 kB each": ("limit_data", {"bytes": 20_000}),
    "reset after 300 ms": ("reset_peer", {"timeout": 300}),
    "closing takes 1 s": ("slow_close", {"delay": 1000}),
    "silent, closed after 700 ms": ("timeout", {"timeout": 700}),
}
SERVING = {"slices of 1 to 40 bytes", "closing takes 1 s"}
"""With these the same primary keeps all its backups."""


@pytest.mark.parametrize("what", MANGLED)
@pytest.mark.parametrize("shape", shapes())
async def test_the_links_of_a_backup_are_mangled(shape: str, what: str, tmp_path: Path) -> None:
    """Everyone else serves all the time: with that backup or without it."""
    kind, attributes = MANGLED[what]
    async with Scenario(
        tmp_path,
        shape=shape,
        number=f"14-backup-{kind}",
        title=f"a backup's links: {what} ({kind})",
        promise="everyone else",
    ) as scenario:
        backup = scenario.backups[0]
        others = [node for node in scenario.cluster.specs if node != backup]
        await scenario.net.toxic_around(backup, kind, attributes)
        await scenario.keeps_serving(*others)
        if what in SERVING:
            await scenario.serves(backup, count=10)


@pytest.mark.parametrize("what", MANGLED)
@pytest.mark.parametrize("shape", shapes())
async def test_every_link_is_mangled(shape: str, what: str, tmp_path: Path) -> None:
    """Safety, and recovery afterwards; where nothing is lost, service as well."""
    kind, attributes = MANGLED[what]
    async with Scenario(
        tmp_path,
        shape=shape,
        number=f"15-all-{kind}",
        title=f"every link: {what} ({kind})",
        promise="everyone" if what in SERVING else "nothing (safety only)",
    ) as scenario:
        await scenario.net.toxic_everywhere(kind, attributes)
        if what in SERVING:
            await scenario.serves(*scenario.cluster.specs)
        else:
            await asyncio.sleep(WATCHED_S)  # nothing is waited for: this is how long it lasts


@pytest.mark.parametrize("shape", shapes())
async def test_a_proxy_that_accepts_and_never_answers(shape: str, tmp_path: Path) -> None:
    """All of the primary's connections are broken, and new ones are accepted by somebody who never
    says a word: the others take over all the same."""
    async with Scenario(
        tmp_path,
        shape=shape,
        number="16-mute",
        title="primary behind proxies that accept and never answer",
        promise="the others, after a take-over",
    ) as scenario:
        await scenario.net.isolate(scenario.primary, how="drop")
        await scenario.net.break_connections(scenario.primary)
        await scenario.cluster.primary(besides=scenario.primary)
        await scenario.serves(*scenario.others)


@pytest.mark.long
@pytest.mark.parametrize("shape", shapes(WITNESS))
async def test_clients_whose_answers_are_cut_short(shape: str, tmp_path: Path) -> None:
    """Every connection breaks in the middle of some answer. Who repeats under one idempotency key
    learns in the end what came of it, and nothing is applied twice."""
    async with Scenario(
        tmp_path,
        shape=shape,
        number="17-clients",
        title="clients' answers cut in the middle, repeated under one key",
        promise="everything, to those who repeat",
        mix=Mix(idempotent=1.0),
        bounds=PATIENCE,
        through_proxies=True,
    ) as scenario:
        load = scenario.load
        before = load.counts["attempt cut"], load.counts["repeats"]
        await scenario.net.client_toxic("limit_data", "downstream", {"bytes": 700})
        await wait_until(
            lambda: (
                load.counts["attempt cut"] > before[0] + 60
                and load.counts["repeats"] > before[1] + 20
            ),
            "answers are cut, and requests repeated",
        )
        await scenario.serves(*scenario.cluster.specs)
        await scenario.net.heal()
    assert load.unknown == 0, "a repeat under the key always learns the outcome"


@pytest.mark.parametrize("shape", shapes())
async def test_a_repeat_after_a_cut_answer_gets_the_first_answer(
    shape: str, tmp_path: Path
) -> None:
    """One write by hand: executed, its answer cut after 20 bytes, repeated at another node."""
    async with Scenario(
        tmp_path,
        shape=shape,
        number="17-by-hand",
        title="one answer cut after 20 bytes, repeated at another node",
        promise="everything",
        through_proxies=True,
    ) as scenario:
        cluster = scenario.cluster
        key = {"Idempotency-Key": '"cut-in-the-middle"'}
        proxied = scenario.net.client_urls[scenario.others[0]]
        await scenario.net.client_toxic("limit_data", "downstream", {"bytes": 20})
        async with connect(proxied) as connection:
            connection.send_request("PUT", kv("by-hand"), b"1", key)
            assert 0 < len(await connection.receive_end()) <= 20
        found = await cluster.fetch(scenario.primary, "GET", kv("by-hand"))
        assert found.body == b"1", "it was executed"
        for node in cluster.specs:
            reply = await cluster.fetch(node, "PUT", kv("by-hand"), b"1", key)
            assert reply.status == 201, "the first answer: it was created"
            assert reply.headers["etag"] == found.headers["etag"]
        again = await cluster.fetch(scenario.primary, "GET", kv("by-hand"))
        assert again.headers["etag"] == found.headers["etag"], "applied once"
