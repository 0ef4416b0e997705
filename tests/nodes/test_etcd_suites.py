"""Suites of others for etcd's gateway, unmodified: three nodes, two and a witness, a real etcd.

Each is installed into an environment of its own. Skipped where pip reaches no package index.
"""

from __future__ import annotations

import asyncio
import subprocess
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.nodes.conftest import MakeCluster
from tests.support.environments import Environment, environment
from tests.support.etcd_server import EtcdServer

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1800)]

SUITE_DEADLINE_S = 500.0
SHAPES = {"three nodes": (3, 0), "two nodes and a witness": (2, 1)}


class Suite(NamedTuple):
    """`passed` and `skipped` are how many of its tests do so on etcd; none fails."""

    packages: tuple[str, ...]
    modules: tuple[str, ...]
    passed: int
    skipped: int


SUITES = {
    "etcd3gw": Suite(("etcd3gw==2.7.0", "oslotest", "testtools"), ("etcd3gw.tests",), 39, 0),
    "tooz": Suite(
        # Its tests import the drivers of these extras, whatever driver they test.
        (*("tooz[etcd3gw,ipc,memcached,redis]==9.1.0", "etcd3gw==2.7.0"),
         *("testtools", "fixtures", "ddt", "requests")),
        ("tooz.tests.test_coordination", "tooz.tests.test_partitioner"), 80, 18,
    ),
    "httpetcd": Suite(("httpetcd==0.3.3", "setuptools<81"), ("httpetcd.tests.functional",), 15, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", SUITES)
async def test_a_suite_passes_as_on_etcd(
    name: str, make_cluster: MakeCluster, tmp_path: Path
) -> None:
    suite = SUITES[name]
    made = Environment(tmp_path / "venv")
    try:
        made.install(*suite.packages, "pytest")
    except (AssertionError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"pip reaches no package index: {str(error).strip().splitlines()[-1]}")
    with EtcdServer(tmp_path) as server:
        found = {"etcd": await asyncio.to_thread(_run, made, suite, server.address, tmp_path)}
    for shape, (replicas, witnesses) in SHAPES.items():
        cluster = make_cluster(shape, replicas=replicas, witnesses=witnesses, etcd=True)
        await cluster.start()
        address = cluster.specs[await cluster.primary()].etcd
        found[shape] = await asyncio.to_thread(_run, made, suite, address, tmp_path)
        await cluster.stop()
    for target, outcomes in found.items():
        counts = Counter(outcomes.values())
        print(f"{name:10} {target:24} {dict(counts)}")
    assert Counter(found["etcd"].values()) == Counter(passed=suite.passed, skipped=suite.skipped)
    for shape in SHAPES:
        assert found[shape] == found["etcd"]


def _run(made: Environment, suite: Suite, address: str, directory: Path) -> dict[str, str]:
    """Run a suite, and return for each of its tests whether it passed, failed or was skipped."""
    report = directory / "report.xml"
    report.unlink(missing_ok=True)
    where = {
        "TOOZ_TEST_URL": f"etcd3+http://{address}",
        "TOOZ_TEST_HTTP_URL": f"http://{address}",
        "TOOZ_TEST_ETCD_PORT": address.rpartition(":")[2],
        "ETCD_ENDPOINT": f"http://{address}",
    }
    command = [str(made.python), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "--pyargs", *suite.modules, f"--junit-xml={report}"],
        cwd=directory,
        env=environment() | where,
        capture_output=True,
        text=True,
        timeout=SUITE_DEADLINE_S,
        check=False,
    )
    if done.returncode != 0:
        print(f"{address}:\n{done.stdout[-20_000:]}\n{done.stderr[-2000:]}")
    assert report.exists(), "the suite did not run; see above"
    return {
        f"{case.get('classname')}.{case.get('name')}": _outcome(case)
        for case in ET.parse(report).iter("testcase")
    }


def _outcome(case: ET.Element) -> str:
    if any(case.find(tag) is not None for tag in ("failure", "error")):
        return "failed"
    return "passed" if case.find("skipped") is None else "skipped"
