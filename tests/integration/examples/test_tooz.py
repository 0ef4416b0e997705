"""tooz, a program that nobody here wrote, on a cluster: its own tests, and a failover.

`examples/tooz_onecopy` is installed with tooz and what tooz's tests import into an environment of
its own. Skipped only where pip reaches no package index.
"""

from __future__ import annotations

import os
import signal
import subprocess
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, wait_until
from tests.support.environments import Environment, build_wheel, environment

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1500)]

DRIVER = Path(__file__).resolve().parents[3] / "examples" / "tooz_onecopy"
TOOZ = "tooz[etcd3gw,ipc,memcached,redis]==9.1.0"
"""Its tests import the drivers of these extras, whatever driver they test."""
NEEDED_BY_ITS_TESTS = ("testtools", "fixtures", "ddt", "requests", "pytest")
SUITE = ("tooz.tests.test_coordination", "tooz.tests.test_partitioner")
SUITE_DEADLINE_S = 1200.0
SKIPPED = {
    "onecopy has no shared locks": 5,
    "Test not applicable (heartbeating not required)": 2,
    "This driver is not based on timeout": 1,
    "This test only works with coordinators that have the ability to destroy groups.": 1,
}
PASSED = 89
MEMBER = """
import sys, threading, time
from tooz import coordination

url, own_name = sys.argv[1:]
coordinator = coordination.get_coordinator(url, own_name.encode())
coordinator.start()
coordinator.join_group_create(b"workers")
say = lambda *words: print(*words, flush=True)
coordinator.watch_join_group(b"workers", lambda event: say("joined", event.member_id.decode()))
coordinator.watch_leave_group(b"workers", lambda event: say("left", event.member_id.decode()))
coordinator.watch_elected_as_leader(b"workers", lambda event: say("leads"))
lock = coordinator.get_lock(b"work")
threading.Thread(target=lambda: say("locked", lock.acquire()), daemon=True).start()
while True:
    try:
        coordinator.run_watchers()
    except coordination.ToozConnectionError:
        say("nobody answers")  # for longer than the client tries by itself: ask again
    time.sleep(0.1)
"""


@pytest.fixture(scope="module")
def tooz(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    made = Environment(tmp_path_factory.mktemp("tooz") / "venv")
    try:
        made.install(TOOZ, *NEEDED_BY_ITS_TESTS)
    except (AssertionError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"pip reaches no package index: {str(error).strip().splitlines()[-1]}")
    made.install(build_wheel(tmp_path_factory.mktemp("wheel")))
    copy = tmp_path_factory.mktemp("driver")  # setuptools leaves its build directory in the source
    for name in ("pyproject.toml", "tooz_onecopy.py"):
        (copy / name).write_bytes((DRIVER / name).read_bytes())
    made.install("--no-deps", copy)
    return made


def url_of(cluster: Cluster) -> str:
    nodes = (cluster.url(node).removeprefix("http://") for node in cluster.replicas)
    return "onecopy://" + ",".join(nodes)


def test_tooz_passes_its_own_tests(tooz: Environment, cluster: Cluster, tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    command = [str(tooz.python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "--pyargs", *SUITE]
    done = subprocess.run(
        [*command, f"--junit-xml={report}"],
        cwd=tmp_path,
        env=environment() | {"TOOZ_TEST_URL": url_of(cluster)},
        capture_output=True,
        text=True,
        timeout=SUITE_DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:]
    cases = list(ET.parse(report).iter("testcase"))
    skipped = Counter(item.get("message") for case in cases for item in case.iter("skipped"))
    assert skipped == SKIPPED
    assert len(cases) - skipped.total() == PASSED


class Member:
    """A process that is a member of a group, stands for its lead, and waits for a lock."""

    def __init__(self, tooz: Environment, cluster: Cluster, name: str, log: Path) -> None:
        self._log = log
        url = f"{url_of(cluster)}?timeout=10"
        self.process = tooz.popen("python", "-u", "-c", MEMBER, url, name, log=log)

    async def says(self, words: str) -> None:
        def said() -> bool:
            return words in self._log.read_text().splitlines() or self.process.poll() is not None

        await wait_until(said, f"it says {words!r}")
        assert words in self._log.read_text().splitlines(), self._log.read_text()


async def test_members_leaders_and_locks_over_a_failover(
    tooz: Environment, cluster: Cluster, tmp_path: Path
) -> None:
    first = Member(tooz, cluster, "first", tmp_path / "first.log")
    members = [first]
    try:
        await first.says("leads")
        await first.says("locked True")
        second = Member(tooz, cluster, "second", tmp_path / "second.log")
        members.append(second)
        await first.says("joined second")
        await cluster.kill(await cluster.primary())
        os.kill(first.process.pid, signal.SIGKILL)
        for words in ("left first", "leads", "locked True"):
            await second.says(words)
    finally:
        for member in members:
            member.process.kill()
            member.process.wait()
