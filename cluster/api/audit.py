"""The audit log: who changed the cluster, and who was refused; JSON lines in a file.

It holds ids of tokens, never tokens; methods, paths and statuses, never queries, headers or bodies.
Refusals are what strangers can cause: so many lines a second are written, then only their number.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Literal

import msgspec

from cluster.services.access_guard import without_tokens
from datapath.complaints import Complaints

logger = logging.getLogger(__name__)

MAX_LINES_PER_S = 100
MAX_FILE_SIZE_BYTES = 16 * 1024 * 1024
KEPT_FILES = 5
"""When the file has its size it becomes FILE.1, and so on; the oldest goes."""
MAX_PATH_LENGTH = 300

_encode = msgspec.json.Encoder().encode


class AuditLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line. `token` is its id, "" without one; `suppressed`: so many refusals had no line."""

    time: str
    node: str
    event: Literal["admin", "refused", "suppressed"]
    token: str = ""
    remote: str = ""
    method: str = ""
    path: str = ""
    status: int = 0
    suppressed: int = 0


class _AuditFile(RotatingFileHandler):
    """Raises where a line cannot be written; `logging` would print a traceback for each."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 -- its name
        """Called where `emit` has failed."""
        raise  # noqa: PLE0704 -- within its `except`


class Audit:
    """Writes to `path`, as its user's alone. `now` (s) does not go back."""

    def __init__(
        self,
        path: Path,
        node_id: str,
        now: Callable[[], float],
        wall_clock_s: Callable[[], float] = time.time,
    ) -> None:
        self._node_id = node_id
        self._now = now
        self._wall_clock_s = wall_clock_s
        path.touch(mode=0o600, exist_ok=True)
        self._path = path
        self._complaints = Complaints(logger)
        self._handler = _AuditFile(
            path, maxBytes=MAX_FILE_SIZE_BYTES, backupCount=KEPT_FILES, encoding="utf-8"
        )
        self._since = now()
        self._lines = 0
        self._suppressed = 0

    def admin(self, token: str, remote: str, method: str, path: str, status: int) -> None:
        """A change of the cluster, of tokens or roles was asked for, and answered so."""
        self._write(self._line("admin", token, remote, method, path, status))

    def refused(self, token: str, remote: str, method: str, path: str, status: int) -> None:
        """A request was refused for who asked it."""
        self.tick()
        if self._lines >= MAX_LINES_PER_S:
            self._suppressed += 1
            return
        self._lines += 1
        self._write(self._line("refused", token, remote, method, path, status))

    def tick(self) -> None:
        """Begin another second, and tell what the last one has left out. Call it now and then."""
        self._complaints.tick(self._now())
        if self._now() - self._since < 1.0:
            return
        suppressed, self._suppressed = self._suppressed, 0
        self._since, self._lines = self._now(), 0
        if suppressed:
            self._write(AuditLine(self._time(), self._node_id, "suppressed", suppressed=suppressed))

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # told before
            self._handler.close()

    def _line(
        self,
        event: Literal["admin", "refused"],
        token: str,
        remote: str,
        method: str,
        path: str,
        status: int,
    ) -> AuditLine:
        shown = without_tokens(path.partition("?")[0])[:MAX_PATH_LENGTH]
        return AuditLine(self._time(), self._node_id, event, token, remote, method, shown, status)

    def _time(self) -> str:
        return datetime.fromtimestamp(self._wall_clock_s(), UTC).isoformat(timespec="milliseconds")

    def _write(self, line: AuditLine) -> None:
        text = _encode(line).decode()
        try:
            self._handler.emit(logging.LogRecord("audit", logging.INFO, "", 0, "%s", (text,), None))
        except OSError as error:
            text = f"the audit log {self._path} cannot be written: {error.strerror}"
            self._complaints.log("audit", text, self._now())
