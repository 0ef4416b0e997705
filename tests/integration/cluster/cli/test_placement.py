"""`onecopy placement` with real nodes: a machine is emptied, its node replaced by one elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import sys
from pathlib import Path

import pytest

from onecopy.testing import LocalCluster
from tests.support.commands import finish, run, start
from tests.support.ports import free_address

pytestmark = pytest.mark.slow  # real nodes

START = """
import subprocess, sys
from pathlib import Path

config, pids, client, peer, raft, group, node, machine = sys.argv[1:]
assert (group, machine) == ("g1", "m4")
with open(config, "a") as file:
    file.write(f'[nodes.{node}]\\ndata = "data/{node}"\\n')
    file.write(f'client = "{client}"\\npeer = "{peer}"\\nraft = "{raft}"\\n')
with Path(config).with_name(f"{node}.log").open("ab") as log:
    command = [sys.executable, "-m", "onecopy", "serve", "--config", config, "--node", node]
    found = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
Path(pids).write_text(str(found.pid))
"""


def _fleet(cluster: LocalCluster, leaving: str) -> str:
    lines = []
    for node in (1, 2, 3, 4):
        state = "draining" if f"n{node}" == leaving else "up"
        lines += [f"[machines.m{node}]", f'state = "{state}"']
    nodes = ", ".join(f'n{node} = "m{node}"' for node in (1, 2, 3))
    urls = json.dumps([cluster.url(node) for node in cluster.nodes])
    return "\n".join([*lines, "[groups.g1]", f"endpoints = {urls}", f"nodes = {{ {nodes} }}"])


async def test_a_machine_is_emptied_step_by_step(tmp_path: Path) -> None:
    pids = tmp_path / "pid"
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(LocalCluster(tmp_path / "cluster"))
        client = cluster.client()
        client.put("kept", b"1")
        leaving = cluster.primary()
        file, script = tmp_path / "fleet.toml", tmp_path / "start.py"
        file.write_text(_fleet(cluster, leaving))
        script.write_text(START)
        planned = await run("placement", "plan", file, "--json")
        (step,) = json.loads(planned.out)
        assert (step["kind"], step["group"], step["machine"]) == ("add", "g1", "m4")

        addresses = [free_address() for _ in range(3)]
        command = [sys.executable, str(script), str(cluster.config), str(pids), *addresses]
        process = await start("placement", "apply", file, "--start", shlex.join(command))
        try:
            ended = await finish(process, seconds=90)
        finally:
            stack.callback(os.kill, int(pids.read_text()), signal.SIGKILL)

        assert ended.code == 0, ended.err
        said = ended.out.decode().splitlines()
        assert [line.split("(")[0].split()[1] for line in said[:-1]] == ["add", "hand", "remove"]
        assert said[-1] == "every node is in its place"
        status = client.status()
        newcomer = step["node"]
        assert set(status.nodes) == {*cluster.nodes, newcomer} - {leaving}
        assert newcomer in status.in_sync
        found = client.get("kept")
        assert found is not None
        assert found.value == b"1"


async def test_what_cannot_be_done_is_said_and_ends(tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text(
        f'[machines.m1]\n[groups.g1]\nendpoints = ["http://{free_address()}"]\nreplicas = 1\n'
    )
    ended = await run("placement", "apply", file, "--wait-s", "1", "--timeout-ms", "200")
    assert ended.code == 1
    assert "no step could be made for 1 s (g1: " in ended.err
    file.write_text("[machines.m1]\ncapacity = 0\n[groups]\n")
    ended = await run("placement", "plan", file)
    assert ended.code == 2
    assert "machines.m1.capacity: at least 1" in ended.err
