"""A process that reads a store back while it is being loaded, and hashes what the disk holds.

    python -m datapath.storage.read_back ENVIRONMENT MAP_SIZE_BYTES

`ReadBackProcess` starts it, and tells it on its standard input, in lines, how many items are
durable so far. They are read from the disk, not from the page cache, and once. At the end of its
input it reads the rest, and answers in a line: the number of items and their digest. Where it
cannot read, standard error says why, and the exit status is 1.

Items are loaded in key order, so LMDB does not write a page of durable ones again, but for the last
leaf of a keyspace: reading stays that far behind. See `docs/decisions/0032-backup-and-restore.md`
for the pages above the leaves.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import lmdb

from datapath.errors import DataDirectoryError, DiskFailedError, StorageError
from datapath.keyspaces import KEYSPACES
from datapath.storage.environment import ContentHash, Environment, lmdb_failure

_ITEMS_AT_ONCE = 100  # with more, each item's two views leave the processor's cache in between
_MIN_LEAF_ITEM_BYTES = 16  # a place, a head, a key of 1 byte and a checksum


class ReadBackProcess:
    """The process that reads an environment back, which this one writes. Ends with `close`."""

    def __init__(self, path: Path, map_size_bytes: int) -> None:
        """Start it. Raises DiskFailedError."""
        self._path = path
        command = [
            sys.executable,
            "-P",
            "-m",
            "datapath.storage.read_back",
            str(path),
            str(map_size_bytes),
        ]
        try:
            self._process = subprocess.Popen(  # noqa: S603 -- our own command
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                # It imports what this process imports, wherever that was found.
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        except OSError as error:
            raise DiskFailedError(
                f"no process to read {path} back could be started: {error}"
            ) from None

    def tell(self, count: int) -> None:
        """Tell it how many items are durable. Raises DiskFailedError if it has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{count}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self.result()  # which says why

    def result(self) -> tuple[int, str]:
        """Wait until all is read; return the number of items and their digest.

        Raises DiskFailedError: not all could be read.
        """
        answer, complaint = self._process.communicate()
        if self._process.returncode:
            what = complaint.strip().rpartition("\n")[2] or "it ended"
            raise DiskFailedError(f"{self._path} cannot be read back: {what}")
        count, digest = answer.split()
        return int(count), digest

    def close(self) -> None:
        """End it, if it has not ended."""
        if self._process.returncode is None:
            self._process.kill()
            self._process.communicate()


class ReadBack:
    """Hashes the items of an environment in order, as far as they are durable."""

    def __init__(self, environment: Environment) -> None:
        self.total = ContentHash()
        self._environment = environment
        self._read_bytes = 0
        self._keyspace = 0
        self._last_key = b""
        self._behind = environment.lmdb.stat()["psize"] // _MIN_LEAF_ITEM_BYTES

    def follow(self, durable: Iterable[int]) -> None:
        """Read on with each number of items that are durable; then to the end.

        Raises DataDirectoryError, DiskFailedError, OSError.
        """
        for count in durable:
            self._read(count - self._behind)
        self._read(sys.maxsize)

    def _read(self, until: int) -> None:
        """Read on up to so many items, if there are."""
        self._ask_the_disk()
        try:
            with self._environment.lmdb.begin(buffers=True) as transaction:
                while self.total.count < until and self._keyspace < KEYSPACES:
                    self._read_keyspace(transaction, until)
                    if self.total.count < until:  # another keyspace has begun, or there are no more
                        self._keyspace, self._last_key = self._keyspace + 1, b""
        except lmdb.Error as error:
            raise lmdb_failure(error, self._environment.path) from error

    def _read_keyspace(self, transaction: lmdb.Transaction[memoryview], until: int) -> None:
        cursor = transaction.cursor(self._environment.keyspaces[self._keyspace])
        if self._last_key and not cursor.set_key(self._last_key):
            raise DataDirectoryError(f"key {self._last_key!r} has gone")
        items = islice(cursor.iternext(), bool(self._last_key), None)
        while piece := list(islice(items, min(_ITEMS_AT_ONCE, until - self.total.count))):
            self.total.update(self._keyspace, piece)
            self._last_key = bytes(piece[-1][0])

    def _ask_the_disk(self) -> None:
        """Let what was written since be read from the disk, and begin to."""
        file = os.open(self._environment.path / "data.mdb", os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(file).st_size
            for advice in (os.POSIX_FADV_DONTNEED, os.POSIX_FADV_WILLNEED):
                os.posix_fadvise(file, self._read_bytes, size - self._read_bytes, advice)
            self._read_bytes = size
        finally:
            os.close(file)


def _read_back() -> str:
    """Read what the command line names; return the answer."""
    path = Path(sys.argv[1])
    environment = Environment(path, int(sys.argv[2]), readonly=True, fresh=True, scans=True)
    reader = ReadBack(environment)
    reader.follow(int(line) for line in sys.stdin)
    environment.release()
    return f"{reader.total.count} {reader.total.hex()}"


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the command's to act on
    try:
        sys.stdout.write(_read_back())
    except (StorageError, OSError) as failure:
        sys.exit(str(failure))
