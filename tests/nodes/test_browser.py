"""A browser's own EventSource on a real node: it reads watches and elections, and resumes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.nodes.conftest import MakeCluster
from tests.support.browser import Page, find_browser, open_page
from tests.support.cluster import Cluster

BROWSER = find_browser()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(
        BROWSER is None, reason="needs a browser: apt-get install chromium (make install does not)"
    ),
]

DEADLINE_S = 120.0
BEGIN = """
window.{name} = {{messages: [], progress: 0, opened: 0}};
{name}.source = new EventSource({target!r});
{name}.source.onopen = () => {name}.opened++;
{name}.source.onmessage = event => {name}.messages.push(
    {{id: event.lastEventId, data: JSON.parse(event.data)}});
{name}.source.addEventListener('progress', () => {name}.progress++);
"""


async def begin(page: Page, name: str, target: str) -> None:
    await page.run(BEGIN.format(name=name, target=target))
    await wait_for(page, f"{name}.messages.length + {name}.progress > 0")


async def wait_for(page: Page, condition: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not await page.run(condition):  # noqa: ASYNC110 -- set in the browser
            await asyncio.sleep(0.05)


async def messages(page: Page, name: str) -> list[Any]:
    found = await page.run(f"{name}.messages")
    for event in found:
        assert event["id"] == str(event["data"]["revision"])
    return [event["data"] for event in found]


async def test_an_event_source_watches_and_observes_and_resumes_by_itself(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    assert BROWSER is not None
    cluster: Cluster = make_cluster()
    await cluster.start()
    primary = await cluster.primary()
    node = cluster.others(primary)[0]
    async with open_page(BROWSER, tmp_path) as page, cluster.client() as client:
        await page.open(f"{cluster.url(node)}/livez")  # any page of that origin
        await begin(page, "watched", "/v1/watch?prefix=a/")
        await begin(page, "observed", "/v1/elections/main/observe")
        revisions = [(await client.put("a/1", "one ✓")).revision]
        tokens = []
        async with client.elect("main", ttl=60, value="host 1 ✓") as leading:
            tokens.append(leading.token)
            await wait_for(page, "observed.messages.at(-1).data.leader?.value === 'host 1 ✓'")
        await wait_for(page, "watched.messages.at(-1)?.data.changes[0].key === 'a/1'")
        # Its node goes away; what changes meanwhile comes when it is back, once, in order.
        await cluster.kill(node)
        for number in range(3):
            revisions.append((await client.put(f"a/{number}", "later")).revision)
            async with client.elect("main", ttl=60, value=f"host {number}") as leading:
                tokens.append(leading.token)
        await cluster.start(node)
        revisions.append((await client.delete("a/1")).revision)
        await wait_for(page, "watched.messages.at(-1).data.changes[0].deleted === true")
        await wait_for(page, f"observed.messages.length === {2 * len(tokens) + 1}")
        assert [event["revision"] for event in await messages(page, "watched")] == revisions
        leaders = [event["leader"] for event in await messages(page, "observed")]
        seen = [leader and leader["token"] for leader in leaders]
        assert seen == [None, *(at for token in tokens for at in (token, None))]
        assert await page.run("watched.opened >= 2 && observed.opened >= 2")
