"""Inserts numbers into one PostgreSQL, one after the other, and prints each that was acknowledged.

    PYTHON bench/patroni/writer.py PORT FIRST STEP

Runs in Patroni's environment, which has psycopg2. A line is the number, PostgreSQL's timeline, and
when the insert was begun and acknowledged (monotonic, in ns). A commit that was not confirmed by
the synchronous standby counts as not acknowledged. A standby is asked again and again, so that the
first thing that it takes as a primary is seen.
"""

from __future__ import annotations

import itertools
import sys
import time
from typing import Any

import psycopg2  # type: ignore[import-untyped]
from psycopg2.errors import ReadOnlySqlTransaction  # type: ignore[import-untyped]

PAUSE_S = 0.005
RETRY_S = 0.02
INSERT = (
    "insert into written values (%s) returning substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"
)


def connect(port: str) -> Any:
    """Return a connection."""
    connection = psycopg2.connect(
        host="127.0.0.1", port=port, user="postgres", dbname="postgres", connect_timeout=2
    )
    connection.autocommit = True
    return connection


def main() -> None:
    """Insert until the end of the process."""
    port, first, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    connection = None
    for number in itertools.count(first, step):
        try:
            connection = connection or connect(port)
            begun_ns = time.monotonic_ns()
            cursor = connection.cursor()
            cursor.execute(INSERT, (number,))
            acknowledged_ns = time.monotonic_ns()
            if connection.notices:  # "The transaction has already committed locally, but …"
                raise psycopg2.OperationalError(connection.notices[-1])
            print(number, cursor.fetchone()[0], begun_ns, acknowledged_ns, flush=True)
            time.sleep(PAUSE_S)
        except ReadOnlySqlTransaction:
            time.sleep(RETRY_S)
        except psycopg2.Error:
            if connection is not None:
                connection.close()
            connection = None
            time.sleep(RETRY_S)


if __name__ == "__main__":
    main()
