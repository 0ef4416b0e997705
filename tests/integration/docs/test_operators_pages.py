"""The pages for growing, moving and recovering a cluster, followed line by line on real nodes."""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import msgspec
import pytest

from tests.support.cluster import Cluster, NodeSpec, make_spec, wait_until
from tests.support.commands import Ended, run
from tests.support.pages import ROOT, blocks_of
from tests.support.raw_http import kv

pytestmark = pytest.mark.slow  # real nodes


def commands_of(page: str) -> list[list[str]]:
    """Return the page's command lines, in order, without comments."""
    blocks = (block for block in blocks_of(ROOT / "docs" / page) if block.kind in {"sh", "shell"})
    lines = "".join(block.text for block in blocks).splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(tmp_path / "cluster")
    try:
        yield cluster
    finally:
        cluster.end()


async def follow(cluster: Cluster, command: list[str], paths: Mapping[str, Path]) -> Ended | None:
    """Do what a line says: start a node, or run the command."""
    words = [str(paths.get(word, word)) for word in command]
    assert words[0] == "onecopy"
    if words[1] == "serve":
        await cluster.start(words[words.index("--node") + 1], in_sync=False)
        return None
    urls = [cluster.url(node) for node in cluster.running]
    ended = await run(*words[1:], endpoints=urls, stdin=b"y\n")
    assert ended.code == 0, (words, ended)
    return ended


async def all_vote(cluster: Cluster) -> None:
    async def do_they() -> bool:
        status = await cluster.status(await cluster.primary())
        return status is not None and all(
            status.nodes[node].votes if node in status.nodes else False for node in cluster.running
        )

    await cluster.wait_in_sync()
    await wait_until(do_they, "all nodes have a vote")


@pytest.mark.long
async def test_the_page_about_growing_shrinking_and_moving(cluster: Cluster) -> None:
    every = dict(cluster.specs)

    def write(**specs: NodeSpec) -> None:
        cluster.specs = {**cluster.specs, **specs}
        cluster.write_config()

    cluster.specs = {"n1": every["n1"]}
    write()
    await cluster.start("n1")
    write(**every)
    paths = {"cluster.toml": cluster.config_path}
    grow, status, _, remove, hand_over, move = commands_of("grow-and-move.md")
    await follow(cluster, grow, paths)
    await all_vote(cluster)
    await cluster.start("n3")
    await all_vote(cluster)
    await follow(cluster, status, paths)
    primary = await cluster.primary()
    if primary != "n1":  # the page is written for n1 as the primary, which n3 does not take over
        await run("handover", "n1", endpoints=[cluster.url(primary)])
    await follow(cluster, remove, paths)
    assert await cluster.nodes["n3"].wait_exit() == 78
    del cluster.specs["n3"]
    write(n4=make_spec("replica", cluster.directory / "data" / "n4"))  # of two, none moves alone
    cluster._add_process("n4")
    await cluster.start("n4")
    await all_vote(cluster)
    await follow(cluster, hand_over, paths)
    await cluster.stop("n1")
    write(n1=make_spec("replica", every["n1"].data))
    await follow(cluster, move, paths)
    await all_vote(cluster)
    assert (await cluster.fetch("n1", "PUT", kv("a"), b"1")).status == 201


@pytest.mark.long
async def test_the_page_about_a_recovery(cluster: Cluster) -> None:
    await cluster.start()
    assert (await cluster.fetch("n1", "PUT", kv("a"), b"1")).status == 201
    await cluster.kill(*cluster.specs)
    old = cluster.data("n2")
    cluster.specs["n2"] = msgspec.structs.replace(
        cluster.specs["n2"], data=cluster.directory / "new"
    )
    cluster.write_config()
    paths = {
        "/var/lib/onecopy/n2": old,
        "/srv/copies/w1": cluster.data("n3"),
        "new.toml": cluster.config_path,
    }
    look, make, serve = commands_of("recover.md")
    seen = await follow(cluster, look, paths)
    assert seen is not None
    assert b"Dry run: nothing was changed." in seen.out
    assert b"Nothing that was acknowledged is missing." in seen.out
    made = await follow(cluster, make, paths)
    assert made is not None
    assert b"Made cluster" in made.out
    await follow(cluster, serve, paths)
    assert (await cluster.fetch("n2", "GET", kv("a"))).body == b"1"
