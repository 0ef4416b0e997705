"""A node's log: one line per event on standard error, UTC times, the node's id in each.

    2026-01-31T12:00:00.123Z n1 INFO datapath.protocol.primary: epoch 4 begins, in sync: n1 n2

The level comes from `--log-level`, else from ONECOPY_LOG_LEVEL, else it is INFO.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import TextIO

LEVELS = ("debug", "info", "warning", "error")
ENVIRONMENT_VARIABLE = "ONECOPY_LOG_LEVEL"


class LineFormatter(logging.Formatter):
    """Formats a record as one line; line breaks inside become visible, so that no event is two."""

    def __init__(self, node_id: str) -> None:
        super().__init__()
        self._node_id = node_id

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, the traceback behind it on the same line if there is one."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        text = record.getMessage()
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        text = text.replace("\r", "\\r").replace("\n", "\\n")
        millisecond = int(record.msecs)
        return (
            f"{moment}.{millisecond:03d}Z {self._node_id} {record.levelname} {record.name}: {text}"
        )


def configure_logs(node_id: str, level: str | None = None, stream: TextIO | None = None) -> None:
    """Send everything logged in this process to `stream` (standard error), replacing what was set.

    Raises ValueError for a level that is none of LEVELS.
    """
    chosen = (level or os.environ.get(ENVIRONMENT_VARIABLE) or "info").lower()
    if chosen not in LEVELS:
        raise ValueError(f"{chosen!r} is not a log level; use one of {', '.join(LEVELS)}")
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(LineFormatter(node_id))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(chosen.upper())
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)  # metrics count requests
    logging.captureWarnings(capture=True)
