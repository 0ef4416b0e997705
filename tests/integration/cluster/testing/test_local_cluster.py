"""`onecopy.testing` itself: real nodes that are killed, paused and cut apart; the fixture."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from onecopy import RefusedError, UnavailableError
from onecopy.testing import LocalCluster
from tests.support.doc_shop import Shop
from tests.support.toxiproxy import ToxiproxyServer

pytestmark = pytest.mark.slow  # real nodes

ROOT = Path(__file__).resolve().parents[4]
SHOP = {"shop": "tests.support.doc_shop:Shop"}


@pytest.mark.long
def test_a_service_survives_its_primary(tmp_path: Path) -> None:
    with LocalCluster(tmp_path, replicas=2, witnesses=1, services=SHOP, path=ROOT) as cluster:
        shop = cluster.client(timeout_ms=20_000).service(Shop)
        assert shop.reserve(item="apple", count=5).left == 95
        killed = cluster.primary()
        cluster.kill(killed)
        assert shop.reserve(item="apple", count=5).left == 90
        cluster.start(killed)
        assert killed in cluster.wait_in_sync().in_sync
        cluster.wait_equal()
        witness = cluster.client("w1", discover=False).service(Shop)
        assert witness.left(item="apple") == 90  # a node without the code passes it on
        with pytest.raises(RefusedError):
            witness.reserve(item="apple", count=91)


@pytest.mark.long
def test_links_are_cut_and_mended(tmp_path: Path) -> None:
    with (
        ToxiproxyServer(tmp_path / "toxiproxy.log") as toxiproxy,
        LocalCluster(
            tmp_path / "cluster", services=SHOP, path=ROOT, toxiproxy=toxiproxy.url
        ) as cluster,
    ):
        primary = cluster.primary()
        others = [node for node in cluster.nodes if node != primary]
        for node in others:
            cluster.cut(primary, node)
        elsewhere = cluster.client(*others, discover=False, timeout_ms=20_000).service(Shop)
        assert elsewhere.reserve(item="apple", count=5).left == 95
        cut_off = cluster.client(primary, discover=False, timeout_ms=500).service(Shop)
        with pytest.raises(UnavailableError):
            cut_off.left(item="apple")
        for node in others:
            cluster.heal(primary, node)
        cluster.wait_equal()
        assert cut_off.left(item="apple") == 95


def test_a_class_that_cannot_be_hosted_is_told_at_once(tmp_path: Path) -> None:
    services = {"shop": "tests.support.doc_shop:Shoop"}
    with (
        pytest.raises(RuntimeError, match=r"exit code 78(.|\n)*has no class 'Shoop'; did you mean"),
        LocalCluster(tmp_path, services=services, path=ROOT),
    ):
        pass


def test_the_fixture(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "from onecopy.testing import cluster_fixture\n"
        f"cluster = cluster_fixture(services={SHOP!r}, path={str(ROOT)!r}, replicas=1)\n"
    )
    (tmp_path / "test_it.py").write_text(
        "from tests.support.doc_shop import Shop\n"
        "def test_it(cluster):\n"
        "    assert cluster.client().service(Shop).reserve(item='x').left == 99\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, timeout=90, check=False,
    )  # fmt: skip
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_a_link_cannot_be_cut_without_toxiproxy(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path, toxiproxy="")
    with pytest.raises(RuntimeError, match="only with toxiproxy=URL"):
        cluster.cut("n1", "n2")
