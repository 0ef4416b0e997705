"""What `deploy/` holds, checked by the programs that will read it."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.config.file import load_config
from cluster.up.process import NODE_ENVIRONMENT
from tests.nodes.conftest import MakeCluster, make_cluster  # noqa: F401 -- a fixture
from tests.support.commands import ROOT

DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "onecopy.rules.yml"
UNIT = DEPLOY / "systemd" / "onecopy@.service"
METRIC = re.compile(r"\b(?:onecopy|process)_[a-z0-9_]+\b")
MAX_EXPOSURE = 2.0
"""Of `systemd-analyze security`: 0 is nothing at all, 10 everything; 2 is "OK"."""


def program(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (apt-get install {package})")
    return found


def run(*command: str | Path, directory: Path = ROOT) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=directory,
        env={**os.environ, "SYSTEMD_OFFLINE": "1"},
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_alerts_fire_as_they_should() -> None:
    promtool = program("promtool", "prometheus")
    run(promtool, "check", "rules", RULES)
    assert "SUCCESS" in run(
        promtool, "test", "rules", "onecopy.rules.test.yml", directory=RULES.parent
    )


def test_the_unit_and_the_image_set_what_up_gives_its_nodes() -> None:
    said = " ".join(f"{name}={setting}" for name, setting in NODE_ENVIRONMENT.items())
    assert f"\nEnvironment={said}\n" in UNIT.read_text()
    assert f"\nENV {said}\n" in (DEPLOY / "docker" / "Dockerfile").read_text()


def test_each_alert_has_its_test_and_its_line_in_the_docs() -> None:
    alerts = re.findall(r"- alert: (\w+)", RULES.read_text())
    tested = set(
        re.findall(r'alertname="(\w+)"', (RULES.parent / "onecopy.rules.test.yml").read_text())
    )
    page = (ROOT / "docs" / "howto-monitor.md").read_text()
    assert len(alerts) > 10
    assert [alert for alert in alerts if alert not in tested] == []
    assert [alert for alert in alerts if f"`{alert}`" not in page] == []


@pytest.mark.slow
async def test_every_metric_that_alerts_and_dashboard_name_is_there(
    make_cluster: MakeCluster,  # noqa: F811
    tmp_path: Path,
) -> None:
    cluster = make_cluster(replicas=1, tls=True, archive={"url": f"file://{tmp_path}"})
    await cluster.start()
    async with cluster.client() as client:
        await client.put("k", b"v")
    reply = await cluster.fetch("n1", "GET", "/metrics")
    there = set(METRIC.findall(reply.body.decode()))
    dashboard = (DEPLOY / "grafana" / "onecopy.json").read_text()
    rules = "\n".join(re.findall(r"expr: (.*)", RULES.read_text()))
    for text in (rules, dashboard):
        named = set(METRIC.findall(text))
        assert len(named) > 10
        assert named - there == set()


def test_the_dashboards_queries_are_promql() -> None:
    promtool = program("promtool", "prometheus")
    dashboard = json.loads((DEPLOY / "grafana" / "onecopy.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 20
    rules = [
        {"record": f"panel:{number}", "expr": re.sub(r"\$__rate_interval", "1m", target["expr"])}
        for number, target in enumerate(target for panel in panels for target in panel["targets"])
    ]
    checked = subprocess.run(
        [promtool, "check", "rules", "/dev/stdin"],
        input=json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}),  # JSON is YAML
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """Return the unit with a program that is there."""
    here = tmp_path / UNIT.name
    onecopy = Path(sys.executable).with_name("onecopy")
    here.write_text(UNIT.read_text().replace("/opt/onecopy/bin/onecopy", str(onecopy)))
    return here


def test_systemd_accepts_the_unit(unit: Path) -> None:
    analyze = program("systemd-analyze", "systemd")
    assert run(analyze, "verify", "--man=no", unit) == ""


def test_the_unit_is_hardened(unit: Path) -> None:
    analyze = program("systemd-analyze", "systemd")
    found = run(analyze, "security", "--offline=true", "--no-pager", unit)
    level = re.search(r"exposure level for .*: ([0-9.]+)", found)
    assert level is not None, found
    assert float(level[1]) < MAX_EXPOSURE


def compose() -> list[str]:
    """Return the command that reads compose files: Docker's plugin, or Debian's older program."""
    if docker := shutil.which("docker"):
        done = subprocess.run(
            [docker, "compose", "version"], capture_output=True, timeout=60, check=False
        )
        if done.returncode == 0:
            return [docker, "compose"]
    return [program("docker-compose", "docker-compose")]


def test_compose_accepts_its_file(tmp_path: Path) -> None:
    command = compose()
    there = shutil.copytree(DEPLOY / "docker", tmp_path / "deploy" / "docker")
    (there / "onecopy.secret").write_text("secret\n")
    found = run(*command, "-f", str(there / "compose.yaml"), "config")
    for node in ("n1", "n2", "w1"):
        assert f"hostname: {node}" in found


def test_the_cluster_of_the_compose_file_loads(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(secrets.token_hex(32))
    secret.chmod(0o600)
    path = tmp_path / "cluster.toml"
    text = (DEPLOY / "docker" / "cluster.toml").read_text()
    path.write_text(text.replace("/run/secrets/onecopy_secret", str(secret)))
    config = load_config(path)
    assert set(config.nodes) == {"n1", "n2", "w1"}
    for node, item in config.nodes.items():
        assert (
            f"command: [serve, --config, /etc/onecopy/cluster.toml, --node, {node}]"
            in (DEPLOY / "docker" / "compose.yaml").read_text()
        )
        assert item.client == f"{node}:8101"


def test_what_the_image_is_built_from_is_there() -> None:
    for line in (DEPLOY / "docker" / "Dockerfile").read_text().splitlines():
        words = line.split()
        if words[:1] == ["COPY"] and not words[1].startswith("--"):
            for source in words[1:-1]:
                assert (ROOT / source).exists(), source
