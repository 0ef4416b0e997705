"""`onecopy dump`: the store as NDJSON, page by page."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec

from cluster.bulk.checkpoint import open_checkpoint, sync_checkpoint_directory
from cluster.bulk.formats import format_line
from cluster.client.aio import AsyncClient

DUMP_PAGE_SIZE = 1000
LINKS_MAX = 40  # as the kernel bounds them

_DESCRIPTORS = re.compile(r"/proc/([0-9]+)/(?:task/[0-9]+/)?fd")


class DumpTotals(msgspec.Struct):
    """How far a dump is. The pages were read at revisions from `first` to `last`."""

    records: int = 0
    size_bytes: int = 0
    first: int = 0
    last: int = 0


async def dump_records(
    client: AsyncClient,
    prefix: str,
    write: Callable[[bytes], object],
    on_progress: Callable[[DumpTotals], None],
    group: str = "",
) -> DumpTotals:
    """Write every record under `prefix` (that `group` holds, if one is named), a page at a time.

    Each page is one consistent state. If `first` equals `last` at the end, so is the whole; else
    each record is as it was at one revision between the two.
    """
    totals = DumpTotals()
    cursor: str | None = None
    while True:
        page = await client.page(prefix, limit=DUMP_PAGE_SIZE, cursor=cursor, group=group)
        lines = b"".join(format_line(item.key, item.value, item.revision) for item in page.items)
        write(lines)
        if cursor is None:
            totals.first = page.revision
        totals.last = page.revision
        totals.records += len(page.items)
        totals.size_bytes += len(lines)
        on_progress(totals)
        cursor = page.cursor
        if not cursor:
            return totals


@contextmanager
def open_output(path: Path) -> Iterator[BinaryIO]:
    """Open what a dump goes to.

    A regular file, or one that is not there, is replaced when the block has ended well, whole and
    durable, with the access rights that it had (a new one: its user's alone); a link to one stays
    a link. Anything else that
    `path` leads to (a device, a FIFO, an open descriptor such as /dev/stdout) is written to in
    place. Raises OSError.
    """
    descriptor, target = _resolve(path)
    if descriptor is not None:
        with os.fdopen(os.dup(descriptor), "wb") as output:
            yield output
        return
    try:
        mode: int | None = target.stat().st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and not stat.S_ISREG(mode):
        # Neither created nor cut: it is there, and no file.
        with os.fdopen(os.open(target, os.O_WRONLY | os.O_NOCTTY), "wb") as output:
            yield output
        return
    with _replacement(target, None if mode is None else stat.S_IMODE(mode)) as output:
        yield output


@contextmanager
def _replacement(path: Path, mode: int | None) -> Iterator[BinaryIO]:
    """Open a file that takes `path`'s place, whole and durable, when the block has ended well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    created = False
    try:
        with open(temporary, "xb", opener=open_checkpoint) as output:
            created = True
            if mode is not None:
                os.fchmod(output.fileno(), mode)
            yield output
            output.flush()
            os.fsync(output.fileno())
        temporary.replace(path)
        created = False
        sync_checkpoint_directory(path.parent)
    finally:
        if created:
            temporary.unlink(missing_ok=True)


def _resolve(path: Path) -> tuple[int | None, Path]:
    """Follow links by name: to an open descriptor of this process, or to what is no link."""
    for _ in range(LINKS_MAX):
        parent = os.path.realpath(path.parent)
        found = _DESCRIPTORS.fullmatch(parent)
        if found is not None and int(found[1]) == os.getpid() and path.name.isdecimal():
            return int(path.name), path
        if found is not None or not path.is_symlink():
            return None, path  # another process's descriptor is opened by its name
        path = Path(parent, path.readlink())
    return None, path  # a loop of links: opening it says so
