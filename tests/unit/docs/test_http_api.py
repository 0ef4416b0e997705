"""docs/http-api.md and the program say the same."""

from __future__ import annotations

import re
from pathlib import Path

from cluster.api.openapi_services import openapi_document
from cluster.api.params import RANGE_PARAMS, WATCH_PARAMS, WRITE_PARAMS
from cluster.api.problems import CODES
from cluster.api.settings import HttpSettings

TEXT = Path("docs/http-api.md").read_text(encoding="utf-8")


def test_the_table_of_codes_is_the_programs() -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \| (\d+) \| (\S+) \| (.*) \|$", TEXT, re.MULTILINE)
    assert {code: (int(status), advice) for code, status, _, advice in rows} == {
        code: (item.status, f"{item.title}. {item.advice}") for code, item in CODES.items()
    }
    assert {outcome for _, _, outcome, _ in rows} <= {
        "not_applied", "unknown", "either", "(reads)",
    }  # fmt: skip


def test_every_path_and_parameter_is_told() -> None:
    for path in openapi_document({})["paths"]:
        assert path in TEXT
    for name in {**RANGE_PARAMS, **WRITE_PARAMS, **WATCH_PARAMS}:
        assert f"`{name}" in TEXT, name


def test_the_defaults_are_the_programs() -> None:
    settings = HttpSettings()
    assert f"default {settings.request_timeout_ms}," in TEXT
    assert f"for {settings.idle_timeout_ms // 1000} s is closed" in TEXT
    assert f"within {settings.body_timeout_ms // 1000} s (408)" in TEXT
    assert f"up to {settings.max_connections} connections" in TEXT
