"""Inserts numbers into PostgreSQL, one after the other, and prints each that was acknowledged.

    PYTHON bench/patroni_writer.py PORT,PORT

Runs in Patroni's environment, which has psycopg2. A line is the number and the time (monotonic,
in ns).
A commit that was not confirmed by the synchronous standby counts as not acknowledged.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import psycopg2  # type: ignore[import-untyped]

RETRY_S = 0.02


def connect(ports: list[str]) -> Any:
    """Return a connection to the server that takes writes."""
    hosts = ",".join("127.0.0.1" for _ in ports)
    connection = psycopg2.connect(
        f"host={hosts} port={','.join(ports)} user=postgres dbname=postgres "
        "target_session_attrs=read-write connect_timeout=2 options='-c statement_timeout=5000' "
        "tcp_user_timeout=2000"
    )
    connection.autocommit = True
    return connection


def main() -> None:
    """Insert until the end of the process."""
    ports = sys.argv[1].split(",")
    connection = None
    number = 0
    while True:
        number += 1
        try:
            connection = connection or connect(ports)
            connection.cursor().execute("insert into written values (%s)", (number,))
            if connection.notices:  # "The transaction has already committed locally, but …"
                raise psycopg2.OperationalError(connection.notices[-1])
            print(number, time.monotonic_ns(), flush=True)
        except psycopg2.Error:
            if connection is not None:
                connection.close()
            connection = None
            time.sleep(RETRY_S)


if __name__ == "__main__":
    main()
