"""The archive on a real S3 server (versitygw): what it holds, and while that is away."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.archive.errors import ArchiveUnavailableError
from cluster.archive.object_store import open_store
from cluster.archive.reading import Archive
from tests.nodes.conftest import MakeCluster
from tests.nodes.test_archive import write_some
from tests.support.archives import Model, check_points, wait_archived
from tests.support.cluster import Cluster, wait_until
from tests.support.s3 import MISSING, S3Server, is_here

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not is_here(), reason=MISSING)]

URL = "s3://archive/some/prefix"


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    server = S3Server(tmp_path)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.start()
    yield server
    server.stop()


def test_objects_of_s3_are_whole_and_never_replaced(s3: S3Server) -> None:
    store = open_store(URL)
    assert list(store.names()) == []
    assert store.put("c/pieces/1", [b"abc"])
    assert not store.put("c/pieces/1", [b"other"])
    assert b"".join(store.read("c/pieces/1")) == b"abc"

    large = random.Random(1).randbytes(20_000_000)
    assert store.put(
        "c/bases/1", (large[at : at + 700_000] for at in range(0, len(large), 700_000))
    )
    assert b"".join(store.read("c/bases/1")) == large

    def broken() -> Iterator[bytes]:
        yield large
        raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        store.put("c/bases/2", broken())
    assert sorted(store.names()) == ["c/bases/1", "c/pieces/1"]
    with pytest.raises(ArchiveUnavailableError, match="reading s3://archive/some/prefix/c/none"):
        list(store.read("c/none"))
    s3.stop()
    with pytest.raises(
        ArchiveUnavailableError, match="writing s3://archive/some/prefix/c/pieces/2"
    ):
        store.put("c/pieces/2", [b"abc"])


async def test_an_archive_on_s3_is_the_cluster(
    make_cluster: MakeCluster, tmp_path: Path, s3: S3Server
) -> None:
    cluster: Cluster = make_cluster(
        replicas=2, witnesses=1, archive={"url": URL, "piece_interval_ms": 100}
    )
    await cluster.start()
    model = Model()
    async with cluster.client() as client:
        await write_some(client, model, 300, seed=1)
        s3.stop()
        await write_some(client, model, 300, seed=2)  # while the store is away
        primary = await cluster.primary()

        async def fails() -> bool:
            return await cluster.metric(primary, "archive_failing") == 1

        await wait_until(fails, "the metrics say that the archive cannot be written", 90)
        s3.start()
        await wait_archived(cluster, model.last)
        await write_some(client, model, 80, seed=3)
        await wait_archived(cluster, model.last)
    await cluster.stop()
    archive = Archive(open_store(URL))
    base = archive.catalog.bases[0]
    points = sorted(random.Random(3).sample(range(base.revision, model.last + 1), 100))
    check_points(archive, base, points, model, tmp_path)
