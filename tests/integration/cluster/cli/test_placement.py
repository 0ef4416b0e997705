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

config, pids, client, peer, raft, group, node, machine, role = sys.argv[1:]
assert (group, machine) == ("g1", "m4")
with open(config, "a") as file:
    file.write(f'[nodes.{node}]\\nrole = "{role}"\\ndata = "data/{node}"\\n')
    file.write(f'client = "{client}"\\npeer = "{peer}"\\nraft = "{raft}"\\n')
with Path(config).with_name(f"{node}.log").open("ab") as log:
    command = [sys.executable, "-m", "onecopy", "serve", "--config", config, "--node", node]
    found = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
Path(pids).write_text(str(found.pid))
"""


def _fleet(cluster: LocalCluster, leaving: str, witnesses: int) -> str:
    lines, nodes = [], []
    for number, node in enumerate((*cluster.nodes, ""), 1):
        state = "draining" if node == leaving else "up"
        lines += [f"[machines.m{number}]", f'state = "{state}"']
        nodes += [f'{node} = "m{number}"'] if node else []
    urls = json.dumps([cluster.url(node) for node in cluster.nodes])
    shape = [f"replicas = {3 - witnesses}", f"witnesses = {witnesses}"]
    placed = f"nodes = {{ {', '.join(nodes)} }}"
    return "\n".join([*lines, "[groups.g1]", f"endpoints = {urls}", *shape, placed])


@pytest.mark.parametrize("role", ["replica", "witness"])
async def test_a_machine_is_emptied_step_by_step(tmp_path: Path, role: str) -> None:
    pids, witnesses = tmp_path / "pid", int(role == "witness")
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(
            LocalCluster(tmp_path / "cluster", replicas=3 - witnesses, witnesses=witnesses)
        )
        client = cluster.client()
        client.put("kept", b"1")
        leaving = cluster.primary() if role == "replica" else "w1"
        file, script = tmp_path / "fleet.toml", tmp_path / "start.py"
        file.write_text(_fleet(cluster, leaving, witnesses))
        script.write_text(START)
        planned = await run("placement", "plan", file, "--json")
        (step,) = json.loads(planned.out)
        assert (step["kind"], step["machine"], step["role"]) == ("add", "m4", role)

        addresses = [free_address() for _ in range(3)]
        command = [sys.executable, str(script), str(cluster.config), str(pids), *addresses]
        process = await start("placement", "apply", file, "--start", shlex.join(command))
        try:
            ended = await finish(process, seconds=90)
        finally:
            stack.callback(os.kill, int(pids.read_text()), signal.SIGKILL)

        assert ended.code == 0, ended.err
        said = ended.out.decode().splitlines()
        steps = ["add", "hand", "remove"] if role == "replica" else ["add", "remove"]
        assert [line.split("(")[0].split()[1] for line in said[:-1]] == steps
        assert said[-1] == "every node is in its place"
        status = client.status()
        newcomer = step["node"]
        assert set(status.nodes) == {*cluster.nodes, newcomer} - {leaving}
        assert status.nodes[newcomer].role == role
        assert status.nodes[newcomer].votes
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
