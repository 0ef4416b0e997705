"""The dashboard in a real browser, on real nodes: follows what happens, changes what it may."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from bench.watch import Watchers, allow_files
from cluster.client.aio import AsyncClient
from tests.nodes.conftest import MakeCluster
from tests.support import commands
from tests.support.browser import Page, find_browser, open_page
from tests.support.cluster import SLOW_TO_SUSPECT, UNSUSPECTING, Cluster

BROWSER = find_browser()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BROWSER is None, reason="needs a browser: apt-get install chromium (make install does not)"
    ),
]

DEADLINE_S = 60.0
KEYS = 1_000_000
WATCHERS = 10_000
HELPERS = """
window.text = (selector) => document.querySelector(selector)?.textContent ?? '';
window.button = (name) => [...document.querySelectorAll('button')]
    .find((item) => item.checkVisibility() && item.textContent === name);
window.fill = (selector, value) => {
  const field = document.querySelector(selector);
  field.value = value;
  field.dispatchEvent(new Event('input', { bubbles: true }));
};
window.row = (name) => [...document.querySelectorAll('tbody tr')]
    .find((item) => item.cells[0].textContent === name)?.innerText ?? '';
"""


async def open_dashboard(page: Page, cluster: Cluster, node: str, where: str = "") -> None:
    await page.listen()
    await page.call("Page.addScriptToEvaluateOnNewDocument", source=HELPERS)
    await page.open(f"{cluster.url(node)}/ui/{where}")


async def wait_for(page: Page, condition: str) -> None:
    """Poll a condition in the page; a failure shows the page."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not await page.run(condition):  # noqa: ASYNC110 -- set in the browser
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(
            f"never: {condition}\n{await page.run('document.body.innerText')}\n{page.complaints}"
        ) from None


async def click(page: Page, name: str) -> None:
    """Press a button that can be seen, as soon as it may be pressed."""
    await wait_for(page, f"button({name!r})?.disabled === false")
    await page.run(f"button({name!r}).click()")


def assert_own(page: Page, cluster: Cluster, node: str) -> None:
    """Nothing was fetched from elsewhere."""
    asked = {urlsplit(url)[:2] for url in page.fetched if not url.startswith("blob:")}
    assert asked == {urlsplit(cluster.url(node))[:2]}


@pytest.mark.long
async def test_it_follows_the_death_of_the_primary_and_a_lock_that_changes_hands(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    assert BROWSER is not None
    cluster = make_cluster(witnesses=1, timing=SLOW_TO_SUSPECT)
    await cluster.start()
    primary = await cluster.primary()
    replicas = [node for node, spec in cluster.specs.items() if spec.role == "replica"]
    await cluster.wait_in_sync(*replicas)
    node = next(item for item in replicas if item != primary)
    async with open_page(BROWSER, tmp_path) as page, cluster.client() as client:
        await open_dashboard(page, cluster, node)
        await wait_for(page, "text('#health') === 'all nodes are in order'")
        for item in (*replicas, "w1"):
            assert await page.run(f"row({item!r}) !== ''")
        assert "primary" in await page.run(f"row({primary!r})")
        await wait_for(page, "document.querySelectorAll('.topology .box').length === 4")
        await wait_for(page, "document.querySelector('.line.a').getAttribute('d').includes('L')")
        for hash_ in ("#/services", "#/leases", "#/history"):  # each page is drawn, with no error
            await page.run(f"location.hash = {hash_!r}")
            await wait_for(page, "document.querySelector('main .scroll') !== null")
        await wait_for(page, "document.body.innerText.includes('the cluster was made')")

        # by the keyboard: the first stop leads to the content
        await page.run("document.activeElement.blur(); location.hash = '#/overview'")
        await page.press("Tab", 9)
        assert await page.run("document.activeElement.className") == "skip"

        await page.run("location.hash = '#/locks?lock=jobs'")
        await wait_for(page, "text('.panel').includes('free')")
        complaints = [item for item in page.complaints if "404" not in item]  # the free lock's
        assert complaints == []
        first = asyncio.create_task(hold(client, "first"))
        await wait_for(page, "row('jobs').includes('first')")
        second = asyncio.create_task(hold(client, "second"))
        await wait_for(page, "text('.panel').includes('Waiting1')")
        first.cancel()
        await wait_for(page, "row('jobs').includes('second')")
        await wait_for(page, "document.querySelector('tr.leading').innerText.includes('second')")

        await page.run("location.hash = '#/overview'")
        await wait_for(page, f"row({primary!r}).includes('primary')")
        await cluster.kill(primary)
        await wait_for(page, f"row({primary!r}).includes('does not answer')")
        await wait_for(page, "document.body.innerText.includes('was silent')")
        await wait_for(page, "text('#health') === '2 of 3 replicas in sync'")
        await cluster.start(primary)
        await wait_for(page, "text('#health') === 'all nodes are in order'")
        await wait_for(page, f"row({primary!r}).includes('backup')")
        second.cancel()
        assert_own(page, cluster, node)
        # and its own node: it says so, names the others, and goes on when it is back
        await cluster.kill(node)
        await wait_for(page, f"text('#health') === '{node} does not answer'")
        assert await page.run("document.querySelectorAll('#notice a').length") == 3
        await cluster.start(node)
        await wait_for(page, "text('#notice') === ''")


async def hold(client: AsyncClient, note: str) -> None:
    async with client.lock("jobs", ttl=60, wait=60, note=note):
        await asyncio.Event().wait()


async def test_it_browses_and_changes_keys_as_far_as_the_token_allows(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    assert BROWSER is not None
    cluster = make_cluster(replicas=1, access={})
    await cluster.start()
    node = await cluster.primary()
    assert cluster.token is not None
    async with open_page(BROWSER, tmp_path) as page, cluster.client() as client:
        for number in range(120):
            await client.put(f"app/{number:03}", f"value {number}")
        await client.put("app/bytes", b"\xff\x00")
        await client.put("other", "1")
        reader = await make_token(cluster, node, {"read": ["app/"], "watch": ["app/"]})

        await open_dashboard(page, cluster, node)
        await wait_for(page, "text('#notice').includes('token')")
        await use_token(page, reader)
        await wait_for(page, "text('#token') === 'Role: reader'")

        await browse(page)
        await use_token(page, cluster.token.text)
        await wait_for(page, "text('#token') === 'Role: admin'")
        await change_keys(page, client)
        refused = [item for item in page.complaints if not is_refusal(item)]
        assert refused == []
        assert_own(page, cluster, node)
        kept = await page.run("location.href + JSON.stringify(localStorage)")
        assert cluster.token.text not in kept


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_it_is_of_use_with_a_million_keys_and_ten_thousand_watchers(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    assert BROWSER is not None
    allow_files(3 * WATCHERS // 2)
    cluster = make_cluster(
        replicas=1,
        limits={"max_watchers": WATCHERS + 1},  # the one more is the page's
        timing=UNSUSPECTING,
    )
    await cluster.start()
    file = tmp_path / "keys.tsv"
    file.write_text("".join(f"k/{number:06}\tvalue {number}\n" for number in range(KEYS)))
    loading = await commands.start("load", file, endpoints=[cluster.url("n1")])
    loaded = await commands.finish(loading, seconds=600)
    assert loaded.code == 0, loaded.err
    address = urlsplit(cluster.url("n1")).netloc
    watched = [f"k/{number:06}" for number in range(WATCHERS)]
    watchers = await asyncio.to_thread(Watchers, address, watched, "onecopy")
    try:
        await asyncio.to_thread(watchers.open)
        async with open_page(BROWSER, tmp_path) as page, cluster.client() as client:
            await open_dashboard(page, cluster, "n1")
            await wait_for(page, "text('#health') === 'all nodes are in order'")
            await wait_for(page, f"document.body.innerText.includes('{WATCHERS:,}')")
            await page.run("location.hash = '#/keys'")
            await wait_for(page, "row('k/000000') !== ''")
            await click(page, "Next")
            await wait_for(page, "row('k/000050') !== ''")
            await page.run("location.hash = '#/keys?prefix=k/9999&key=k/999950'")
            await wait_for(page, "row('k/999949') !== ''")
            await wait_for(page, "document.querySelector('#value')?.value === 'value 999950'")
            await page.run("location.hash = '#/keys?prefix=k/0000&key=k/000007'")
            await wait_for(page, "document.querySelector('#value')?.value === 'value 7'")
            await page.run("document.querySelector('#live').click()")
            await wait_for(page, "text('form .hint') === 'live'")
            watchers.expect(1)
            await page.run("fill('#value', 'mine')")
            await click(page, "Save")
            await wait_for(page, "text('.panel').includes('Saved at revision')")
            assert len(await asyncio.to_thread(watchers.seen)) == 1
            assert await value_of(client, "k/000007") == b"mine"
            await client.put("k/000007", "theirs")
            await wait_for(page, "document.querySelector('#value').value === 'theirs'")
            assert page.complaints == []
            assert_own(page, cluster, "n1")
    finally:
        await asyncio.to_thread(watchers.close)


async def browse(page: Page) -> None:
    """Page through the keys that the token may read; it may not write them."""
    # another's keys are refused, and it says so
    await page.run("location.hash = '#/keys'")
    await wait_for(page, "text('main').includes('403 forbidden')")
    await page.run("location.hash = '#/keys?prefix=app/'")
    await wait_for(page, "row('app/000') !== ''")
    await click(page, "Next")
    await wait_for(page, "row('app/050') !== '' && row('app/000') === ''")
    await click(page, "Next")
    await wait_for(page, "row('app/bytes') !== '' && button('Next').disabled")
    await click(page, "app/bytes")
    await wait_for(page, "text('.hex').includes('ff 00')")
    await click(page, "app/100")
    await wait_for(page, "document.querySelector('#value').value === 'value 100'")
    assert await page.run("document.querySelector('#value').readOnly")
    assert await page.run("button('Delete').disabled")


async def change_keys(page: Page, client: AsyncClient) -> None:
    """Change, make and delete keys, while others change them."""
    await page.run("location.hash = '#/keys?prefix=app/&key=app/007'")
    await wait_for(page, "document.querySelector('#value')?.value === 'value 7'")
    await page.run("document.querySelector('#live').click()")
    await wait_for(page, "text('form .hint') === 'live'")

    # what others change is shown; what was edited meanwhile is not lost, and not written over
    await client.put("app/007", "theirs ✓")
    await wait_for(page, "document.querySelector('#value').value === 'theirs ✓'")
    await page.run("fill('#value', 'mine')")
    await client.put("app/007", "theirs again")
    await wait_for(page, "text('.panel').includes('saving will be refused')")
    await click(page, "Save")
    await wait_for(page, "text('.panel').includes('Nothing was changed')")
    assert await value_of(client, "app/007") == b"theirs again"
    await click(page, "Read again")
    await wait_for(page, "document.querySelector('#value').value === 'theirs again'")
    await page.run("fill('#value', 'mine ✓')")
    await click(page, "Save")
    await wait_for(page, "text('.panel').includes('Saved at revision')")
    assert await value_of(client, "app/007") == "mine ✓".encode()

    await click(page, "First page")
    await click(page, "New key")
    await page.run("fill('#new-key', 'app/000a'); fill('#value', 'new')")
    await click(page, "Create")
    await wait_for(page, "row('app/000a') !== ''")
    await click(page, "app/000a")
    await click(page, "Delete")
    await page.run("document.querySelector('#dialog .danger').click()")
    await wait_for(page, "row('app/000a').includes('deleted') || row('app/000a') === ''")
    assert await value_of(client, "app/000a") is None
    await wait_for(page, "text('main').includes('deleted')")


def is_refusal(complaint: str) -> bool:
    """Whether the browser notes that the API has refused something, as it was meant to."""
    return any(f"status of {status} " in complaint for status in (401, 403, 412))


async def value_of(client: AsyncClient, key: str) -> bytes | None:
    found = await client.get(key)
    return None if found is None else found.value


async def make_token(cluster: Cluster, node: str, rights: dict[str, Any]) -> str:
    """Make a role, "reader", and a token for it."""
    headers = {"Content-Type": "application/json"}
    body = json.dumps(rights).encode()
    await cluster.fetch(node, "PUT", "/v1/roles/reader", body, headers)
    asked = b'{"role": "reader"}'
    created = await cluster.fetch(node, "POST", "/v1/tokens", asked, headers)
    token: str = created.json["token"]
    return token


async def use_token(page: Page, token: str) -> None:
    await page.run("document.querySelector('#token').click()")
    await page.run(f"fill('#token-field', {token!r})")
    await page.run("document.querySelector('#dialog .primary').click()")
