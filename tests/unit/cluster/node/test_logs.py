"""The log: one line per event."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest

from cluster.node.logs import configure_logs
from cluster.services.access_guard import draw_token


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


@pytest.mark.parametrize("as_json", [False, True])
def test_of_a_token_no_more_than_its_id_is_logged(*, as_json: bool) -> None:
    """A2: whatever a caller has taken for a path, a name or an argument."""
    out, token = io.StringIO(), draw_token()
    configure_logs("n1", stream=out, as_json=as_json)
    logging.getLogger("x").info("GET /v1/kv/k?token=%s&a=1 %s", token.text, token.text[:40])
    try:
        int(token.text)
    except ValueError:
        logging.getLogger("x").exception("failed")
    secret = token.text.rpartition(f"{token.id}_")[2]
    assert secret[:5] not in out.getvalue()
    assert f"GET /v1/kv/k?token=oct_{token.id}_…&a=1 oct_{token.id}_…" in out.getvalue()


def test_what_would_act_on_a_terminal_is_made_visible() -> None:
    out = io.StringIO()
    configure_logs("n1", stream=out)
    logging.getLogger("x").info("cn=alice\0\x1b[2J\x9b\u2028")
    assert out.getvalue().endswith("cn=alice\\x00\\x1b[2J\\x9b\\u2028\n")


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
