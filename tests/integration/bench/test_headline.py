"""The bench against a real cluster: a second of the headline, onecopy alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.context import read

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.slow


@pytest.mark.long
def test_a_second_of_the_headline_against_onecopy_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "headline", "--only", "onecopy"]
    command += ["--seconds", "0.3", "--rounds", "1", "--out", str(tmp_path)]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    record = read("headline", tmp_path)
    assert record is not None
    assert record.ceiling_per_s > 0
    for systems in record.data["results"].values():
        (result,) = systems["onecopy"]
        assert result["errors"] == {}
        assert result["count"] > 0
        assert result["p50_ms"] > 0
        assert result["cpu_us_per_op"] > 0
    assert [system["name"] for system in record.data["systems"]] == ["onecopy"]
