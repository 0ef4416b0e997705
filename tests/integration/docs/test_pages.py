"""Every block of every page, in the page's order, against a real cluster: what is printed works.

How a block is marked, and what is expected of it: tests/support/pages.py.
"""

from __future__ import annotations

import asyncio
import gzip
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cluster.config.file import load_config
from tests.support.cluster import Cluster
from tests.support.pages import KINDS, ROOT, PageShell, Step, blocks_of, judge, pages, steps_of

RUN = [path for path in pages() if any(block.kind in {"sh", "python"} for block in blocks_of(path))]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prepare(directory: Path) -> None:
    """Put the files in place that the pages speak of as the reader's own."""
    (directory / "cat.png").write_bytes(bytes(range(256)) * 40)
    (directory / "records.ndjson").write_text('{"key": "users/1", "value": "a"}\n')
    secured = next(b for b in blocks_of(ROOT / "docs" / "security.md") if b.kind == "toml")
    (directory / "cluster.toml").write_text(secured.text)
    (directory / "cluster.secret").write_text(secrets.token_hex(32))
    (directory / "cluster.secret").chmod(0o600)
    service = next(b for b in blocks_of(ROOT / "docs" / "own-service.md") if b.kind == "python")
    (directory / "myshop.py").write_text(service.text)
    with gzip.open(directory / "records.tsv.gz", "wt") as file:
        file.write("users/2\tb\n")


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(tmp_path / "cluster")
    try:
        await cluster.start()
        yield cluster
    finally:
        cluster.end()


@pytest.mark.slow
@pytest.mark.parametrize("path", RUN, ids=name)
async def test_what_a_page_prints_works(path: Path, cluster: Cluster, tmp_path: Path) -> None:
    directory = tmp_path / "reader"
    directory.mkdir()
    prepare(directory)
    replaced = {
        f"127.0.0.1:810{number + 1}": cluster.specs[node].client
        for number, node in enumerate(cluster.replicas)
    }
    urls = ",".join(cluster.url(node) for node in cluster.replicas)
    shell = PageShell(directory, replaced, endpoints=urls)
    try:
        problems: list[str] = []
        for block in blocks_of(path):
            if block.kind == "sh":
                problems += await asyncio.to_thread(shell.run, block)
            elif block.kind == "python":
                problems += await asyncio.to_thread(shell.run_python, block)
        assert not problems, "\n\n".join(problems)
    finally:
        shell.close()
    status = await cluster.wait_in_sync()  # nothing that a page prints takes a node out
    assert sorted(status.nodes) == cluster.replicas


@pytest.mark.parametrize("path", pages(), ids=name)
def test_every_block_says_what_it_is(path: Path) -> None:
    for block in blocks_of(path):
        assert block.kind in KINDS, f"{block}: {block.kind!r} is none of {sorted(KINDS)}"


@pytest.mark.parametrize("path", pages(), ids=name)
def test_configurations_are_valid(path: Path, tmp_path: Path) -> None:
    for block in blocks_of(path):
        if block.kind == "toml":
            secret = tmp_path / "cluster.secret"
            secret.write_text(secrets.token_hex(32))
            secret.chmod(0o600)
            config = tmp_path / "cluster.toml"
            config.write_text(block.text)
            config.chmod(0o600)
            load_config(config)


OK = "\n@status 200\n"


@pytest.mark.parametrize(
    ("comment", "output", "code"),
    [
        ("", OK, 1),
        ("", "\n@status 404\n", 0),
        ("412", OK, 0),
        ("exit code 4", "", 0),
        ("200, ETag: 1", OK, 0),
        ('{"deleted":true}', '{"deleted":false}' + OK, 0),
        ('{"items":[{"key":"a"}]}', '{"items":[]}' + OK, 0),
        ('{"revision":1}', "{}" + OK, 0),
    ],
)
def test_what_differs_from_the_page_is_told(comment: str, output: str, code: int) -> None:
    assert judge(Step("curl x", comment), output, code)


@pytest.mark.parametrize(
    ("comment", "output", "code"),
    [
        ("", OK, 0),
        ("412", "\n@status 412\n", 0),
        ("exit code 4", "", 4),
        ("201, ETag: 1", "HTTP/1.1 201 Created\r\nETag: 9\r\n\r\n{}\n@status 201\n", 0),
        ('{"revision":1,"who":"a"}', '{"revision":7,"who":"a","more":null}' + OK, 0),
    ],
)
def test_numbers_and_further_members_may_differ(comment: str, output: str, code: int) -> None:
    assert judge(Step("curl x", comment), output, code) == []


def test_a_block_is_split_into_steps() -> None:
    assert steps_of("a 'x # y'   # 412: no\nb \\\n  c\n# only words\n") == [
        Step("a 'x # y'", "412: no"),
        Step("b    c", ""),
    ]
