from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster import Cluster

MakeCluster = Callable[..., Cluster]

_failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.stash[_failed] = report.failed
    return report


@pytest.fixture
def make_cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeCluster]:
    """Make clusters whose processes end with the test; a failure shows their logs."""
    made: list[Cluster] = []

    def make(name: str = "cluster", **options: Any) -> Cluster:
        cluster = Cluster(tmp_path / name, **options)
        made.append(cluster)
        return cluster

    yield make
    if request.node.stash.get(_failed, True):
        for cluster in made:
            print(cluster.tails())
    for cluster in made:
        cluster.end()
