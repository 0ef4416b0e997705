"""`onecopy dump`: the store as NDJSON, page by page."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import msgspec

from cluster.bulk_checkpoint import sync_directory
from cluster.bulk_format import format_line
from cluster.client import Client

PAGE_SIZE = 1000


class DumpTotals(msgspec.Struct):
    """How far a dump is. The pages were read at revisions from `first` to `last`."""

    records: int = 0
    size_bytes: int = 0
    first: int = 0
    last: int = 0


async def dump_records(
    client: Client, prefix: str, target: BinaryIO, on_progress: Callable[[DumpTotals], None]
) -> DumpTotals:
    """Write every record under `prefix` to `target`.

    Each page is one consistent state. If `first` equals `last` at the end, so is the whole; else
    each record is as it was at one revision between the two.
    """
    totals = DumpTotals()
    cursor: str | None = None
    while True:
        page = await client.page(prefix, limit=PAGE_SIZE, cursor=cursor)
        lines = b"".join(format_line(item.key, item.value, item.revision) for item in page.items)
        target.write(lines)
        if cursor is None:
            totals.first = page.revision
        totals.last = page.revision
        totals.records += len(page.items)
        totals.size_bytes += len(lines)
        on_progress(totals)
        cursor = page.cursor
        if not cursor:
            return totals


async def dump_to_file(
    client: Client, prefix: str, path: Path, on_progress: Callable[[DumpTotals], None]
) -> DumpTotals:
    """Dump into a file that appears, whole and durable, only when the dump is complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.touch(0o600, exist_ok=False)  # what it will hold is for this user alone
        with temporary.open("wb") as target:
            totals = await dump_records(client, prefix, target, on_progress)
            target.flush()
            os.fsync(target.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return totals
