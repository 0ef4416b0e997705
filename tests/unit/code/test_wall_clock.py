"""Wall clocks jump: nothing but what people read may come from one."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
WALL = {
    ("time", name) for name in ("time", "time_ns", "gmtime", "localtime", "ctime", "strftime")
} | {(kind, name) for kind in ("datetime", "date") for name in ("now", "utcnow", "today")}
ALLOWED = {
    "cluster/api/answer.py": "the Date header",
    "cluster/archive/archiver.py": "when entries had committed, for who restores to a time",
    "cluster/cli/backup.py": "when a backup was written, which people read",
    "cluster/cli/restore.py": "how old a backup is: it can only raise what revisions go on at (B2)",
    "datapath/node/backups.py": "the date in a backup's header, for the same",
    "cluster/certificates/facts.py": "whether a certificate has expired",
    "cluster/recovery/report.py": "when a log was last written, for people; and the margin (B2)",
    "cluster/node/logs.py": "the time of a log line",
    "cluster/services/caretaker.py": "when a timer may be due; decided again by its operation",
    "cluster/services/hosting.py": "timers, which run by the time of day (X3)",
    "cluster/api/audit.py": "the time of a line, which people read",
    "cluster/up/display.py": "what people see",
    "election/pysyncobj_adapter/adapter.py": "when a view was proposed, which people read",
    "datapath/node/replica_disk.py": "how much history is kept for watchers (log_retention_ms)",
    "datapath/storage/log.py": "the date of a segment, for the same",
    "datapath/storage/log_recovery.py": "the name of a folder of damaged files",
}


def uses_of_wall_clock(source: str) -> list[str]:
    """Return what a module calls or names that reads the wall clock."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if (owner, name) in WALL:
                found.append(f"{owner}.{name}")
            case ast.Attribute(attr="CLOCK_REALTIME" | "CLOCK_TAI" as name):
                found.append(name)
            case ast.ImportFrom(module="time" | "datetime" as module, names=names):
                found += [
                    f"from {module} import {item.name}"
                    for item in names
                    if (module, item.name) in WALL
                ]
    return found


def test_wall_time_is_used_for_nothing_but_display() -> None:
    users = {
        str(path.relative_to(ROOT)): found
        for package in ("election", "datapath", "cluster")
        for path in (ROOT / package).rglob("*.py")
        if (found := uses_of_wall_clock(path.read_text()))
    }
    assert set(users) <= set(ALLOWED), users


def test_what_reads_the_wall_clock_is_found() -> None:
    assert uses_of_wall_clock("import time\nx = time.time()") == ["time.time"]
    assert uses_of_wall_clock("from time import time_ns") == ["from time import time_ns"]
    assert uses_of_wall_clock("time.clock_gettime(time.CLOCK_REALTIME)") == ["CLOCK_REALTIME"]
    assert uses_of_wall_clock("time.monotonic()") == []
