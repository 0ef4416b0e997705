"""The log: one line per event."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest

from cluster.node.logs import configure_logs


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(capture=False)


def test_an_event_is_one_line_with_time_node_and_level() -> None:
    out = io.StringIO()
    configure_logs("n1", stream=out)
    logging.getLogger("some.module").info("a %s\nb\r", "value")
    pattern = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z n1 INFO some\.module: a value\\nb\\r\n"
    assert re.fullmatch(pattern, out.getvalue())


def test_a_traceback_stays_on_its_line() -> None:
    out = io.StringIO()
    configure_logs("n1", stream=out)
    try:
        int("because")
    except ValueError:
        logging.getLogger("x").exception("failed")
    assert out.getvalue().count("\n") == 1
    assert "ValueError: invalid literal" in out.getvalue()


def test_the_level_comes_from_the_caller_then_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = io.StringIO()
    monkeypatch.setenv("ONECOPY_LOG_LEVEL", "error")
    configure_logs("n1", stream=out)
    logging.getLogger("x").warning("not shown")
    configure_logs("n1", "debug", out)
    logging.getLogger("x").debug("shown")
    assert "not shown" not in out.getvalue()
    assert "shown" in out.getvalue()
    with pytest.raises(ValueError, match="use one of"):
        configure_logs("n1", "loud")


def test_json_is_an_object_per_line() -> None:
    out = io.StringIO()
    configure_logs("n1", stream=out, as_json=True)
    logging.getLogger("some.module").warning('a "%s"\n', "b\udcff")
    try:
        int("because")
    except ValueError:
        logging.getLogger("x").exception("failed")
    first, second = map(json.loads, out.getvalue().splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert first == {
        "node": "n1",
        "level": "WARNING",
        "logger": "some.module",
        "message": 'a "b?"\n',
    }
    assert "ValueError: invalid literal" in second["traceback"]
