"""A write that is applied once, even if the program is killed while it sends it.

    python examples/record_once.py JOURNAL KEY VALUE

Before it is sent, the write goes into the file JOURNAL, with its idempotency key and with the
revision that was committed before its first try. If the file is there at the start, that write is
settled first, under the same key: the cluster gives the first answer if it was applied, applies it
if it was not, and never applies it twice. A write that others have overwritten meanwhile is not
written over theirs.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from pathlib import Path
from typing import Any

import onecopy


def prepare(client: onecopy.Client, journal: Path, key: str, value: str) -> None:
    """Write down what is going to be sent, durably, before it is sent."""
    client.get(key)  # any answer names a revision that is committed now
    write = {
        "key": key,
        "value": value,
        "idempotency_key": str(uuid.uuid4()),
        "idempotency_after": client.revision,
    }
    draft = journal.with_name(journal.name + ".draft")
    with draft.open("w") as file:
        json.dump(write, file)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(journal)
    sync_directory(journal.parent)


def settle(client: onecopy.Client, journal: Path) -> str:
    """Send what is written down, until its outcome is known; return what came of it.

    Raises UnavailableError, and UnknownOutcomeError that is not final: then run it again later.
    """
    write: dict[str, Any] = json.loads(journal.read_text())
    try:
        put = client.put(**write)
        outcome = f"{write['key']} was written, at revision {put.revision}"
    except onecopy.UnknownOutcomeError as error:
        if not error.is_final:
            raise
        outcome = f"too long ago to tell: read {write['key']}, and decide anew"
    journal.unlink()
    sync_directory(journal.parent)
    return outcome


def sync_directory(directory: Path) -> None:
    """Make a rename or a removal in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def main(journal: Path, key: str, value: str) -> None:
    """Settle what an earlier run has left, then write."""
    endpoints = os.environ.get("ONECOPY_ENDPOINTS")
    with onecopy.Client(endpoints.split(",") if endpoints else onecopy.DEFAULT_ENDPOINTS) as client:
        if journal.exists():
            print(f"from an earlier run: {settle(client, journal)}", flush=True)
        prepare(client, journal, key, value)
        print("sending", flush=True)
        print(settle(client, journal), flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
