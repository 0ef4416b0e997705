"""A real Prometheus that scrapes a cluster and evaluates the alerts of `deploy/`."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest

from tests.support.cluster import ROOT, Cluster, wait_until
from tests.support.ports import free_address

OK = 200
RULES = ROOT / "deploy" / "prometheus" / "onecopy.rules.yml"


class Prometheus:
    """`url` is where it listens."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def query(self, text: str) -> list[dict[str, str]]:
        """Return the labels of the series that an expression has now."""
        return [labels for labels, _ in await self.values(text)]

    async def firing(self) -> set[str]:
        """Return the names of the alerts that fire."""
        found = await self._ask("alerts")
        return {
            alert["labels"]["alertname"] for alert in found["alerts"] if alert["state"] == "firing"
        }

    async def _ask(self, target: str) -> Any:
        """Return the data that it answers with, as soon as it is ready, and not too busy."""

        async def answered() -> Any:
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"{self.url}/api/v1/{target}") as reply,
            ):
                return (await reply.json())["data"] if reply.status == OK else None

        async def tried() -> Any:
            with suppress(aiohttp.ClientError, TimeoutError):
                return await answered()

        return await wait_until(tried, "Prometheus answers")

    async def rules(self) -> dict[str, str]:
        """Return the health of each alert's evaluation, by the alert's name."""
        found = await self._ask("rules?type=alert")
        return {
            rule["name"]: rule["health"] for group in found["groups"] for rule in group["rules"]
        }

    async def values(self, text: str) -> list[tuple[dict[str, str], float]]:
        """Return the labels and the values of the series that an expression has now."""
        found = await self._ask("query?" + urlencode({"query": text}))
        return [(item["metric"], float(item["value"][1])) for item in found["result"]]

    async def wait_firing(self, *alerts: str) -> None:
        """Wait until just these fire."""
        seen: set[str] = set()

        async def agreed() -> bool:
            seen.clear()
            seen.update(await self.firing())
            return seen == set(alerts)

        try:
            await wait_until(agreed, f"the alerts {sorted(alerts)} fire", 60.0)
        except AssertionError as error:
            raise AssertionError(f"{error}; seen: {sorted(seen)}") from None


@contextmanager
def prometheus(
    cluster: Cluster, directory: Path, nodes: Iterable[str], *, as_shipped: bool = False
) -> Iterator[Prometheus]:
    """Run one that scrapes these nodes every second, with the alerts' delays cut short.

    `as_shipped`: as docs/howto-monitor.md says, with the alerts as they are.
    """
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed (apt-get install prometheus)")
    directory.mkdir()
    rules = RULES.read_text()
    if not as_shipped:
        rules = re.sub(r"for: \d+[smhd]", "for: 1s", rules)
        rules = re.sub(r"\[\d+m\]", "[10s]", rules)
    interval = "10s" if as_shipped else "1s"
    (directory / "rules.yml").write_text(rules)
    config = {
        "global": {
            "scrape_interval": interval,
            "scrape_timeout": interval,
            "evaluation_interval": interval,
        },
        "rule_files": ["rules.yml"],
        "scrape_configs": [
            {
                "job_name": "onecopy",
                "scheme": "https" if cluster.cacert else "http",
                "tls_config": {"ca_file": cluster.cacert},
                "static_configs": [{"targets": [cluster.specs[node].client for node in nodes]}],
            }
        ],
    }
    (directory / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    address = free_address()
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={directory / 'prometheus.yml'}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address={address}",
                "--log.level=warn",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        process.wait(30)
