"""A node's log: one line per event on standard error, UTC times, the node's id in each.

    2026-01-31T12:00:00.123Z n1 INFO datapath.protocol.primary: epoch 4 begins, in sync: n1 n2

Whatever is logged, of a token no more than its id is shown (A2).

The level comes from `--log-level`, else from ONECOPY_LOG_LEVEL, else it is INFO. With the format
"json" (`--log-format`, ONECOPY_LOG_FORMAT) each line is an object with the same parts:

    {"time":"2026-01-31T12:00:00.123Z","node":"n1","level":"INFO","logger":"…","message":"…"}
"""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import TextIO

import msgspec

from cluster.services.access_guard import without_tokens
from cluster.terminal import printable

LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")
ENVIRONMENT_VARIABLE = "ONECOPY_LOG_LEVEL"
FORMAT_VARIABLE = "ONECOPY_LOG_FORMAT"


class LineFormatter(logging.Formatter):
    """Formats a record as one line: what breaks lines, or moves a cursor, is made visible."""

    def __init__(self, node_id: str) -> None:
        super().__init__()
        self._node_id = node_id

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, the traceback behind it on the same line if there is one."""
        text = record.getMessage()
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        shown = printable(without_tokens(text))
        return f"{_moment(record)} {self._node_id} {record.levelname} {record.name}: {shown}"


class _Line(msgspec.Struct, omit_defaults=True):
    time: str
    node: str
    level: str
    logger: str
    message: str
    traceback: str = ""


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object on one line."""

    def __init__(self, node_id: str) -> None:
        super().__init__()
        self._node_id = node_id

    def format(self, record: logging.LogRecord) -> str:
        """Return the object; "traceback" is there if there is one."""
        traceback = self.formatException(record.exc_info) if record.exc_info else ""
        line = _Line(
            _moment(record),
            self._node_id,
            record.levelname,
            record.name,
            _shown(record.getMessage()),
            _shown(traceback),
        )
        return msgspec.json.encode(line).decode()


def _shown(text: str) -> str:
    """Return a text without tokens and lone surrogates (of file names, say)."""
    return without_tokens(text.encode("utf-8", "replace").decode())


def _moment(record: logging.LogRecord) -> str:
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{moment}.{int(record.msecs):03d}Z"


def configure_logs(
    node_id: str,
    level: str | None = None,
    stream: TextIO | None = None,
    *,
    as_json: bool = False,
) -> None:
    """Send everything logged in this process to `stream` (standard error), replacing what was set.

    Raises ValueError for a level that is none of LEVELS.
    """
    chosen = (level or os.environ.get(ENVIRONMENT_VARIABLE) or "info").lower()
    if chosen not in LEVELS:
        raise ValueError(f"{chosen!r} is not a log level; use one of {', '.join(LEVELS)}")
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(node_id) if as_json else LineFormatter(node_id))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(chosen.upper())
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)  # metrics count requests
    logging.captureWarnings(capture=True)
