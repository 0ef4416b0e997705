"""A data directory as it lies, for a recovery: locked and read to its end, and not changed.

(One exception: a store's file that was cut short is filled up with zeros, as at every opening,
since reading behind its end would kill the process.)
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from datapath.errors import DataDirectoryError
from datapath.storage.accepted import Marks, read_marks
from datapath.storage.data_directory import Identity, read_identity, storage_error
from datapath.storage.environment import (
    DEFAULT_MAP_SIZE_BYTES,
    Environment,
    current_environment,
)
from datapath.storage.log_recovery import ExaminedLog, inspect_log
from datapath.storage.snapshot import SnapshotReader


class InspectedDirectory:
    """What a data directory holds. Use it in a `with` block, which keeps it locked.

    `identity` says whose it is. `log` and `marks` are None for a witness, which holds no data; of a
    replica `marks` is None if they cannot be read, and `damage` then says so. (`store_index`,
    `store_epoch`) is the last entry in the store, `digest` that of its `items` items there.
    """

    def __init__(self, path: str | Path) -> None:
        """Lock and read the directory; every checksum is verified.

        Raises:
            DataDirectoryError: in use, damaged, of another version, or no data directory. The text
                names the directory.
            DiskFailedError: it cannot be read.

        """
        self.path = Path(path).absolute()
        self.log: ExaminedLog | None = None
        self.marks: Marks | None = None
        self.damage: list[str] = []
        self.store_index = self.store_epoch = self.items = 0
        self.digest = ""
        if not (self.path / "identity.json").is_file():
            raise DataDirectoryError(
                f"{self.path} is not a data directory: it holds no identity.json"
            )
        self._lock = _lock(self.path)
        try:
            self.identity: Identity = read_identity(self.path)
            if (self.path / "store").is_dir():
                self._read()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its files, and release the lock. Closing twice is harmless."""
        if self.log is not None:
            self.log.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @property
    def is_witness(self) -> bool:
        """Whether it holds no data, only votes."""
        return self.log is None

    def open_store(self) -> SnapshotReader:
        """Return a reader of all that the store holds. Raises StorageError."""
        store = self.path / "store"
        name = current_environment(store)
        if not name:
            raise DataDirectoryError(f"{store} has lost its CURRENT file")
        environment = Environment(store / name, DEFAULT_MAP_SIZE_BYTES, readonly=True, alone=True)
        try:
            return SnapshotReader(environment)
        except BaseException:
            environment.release()
            raise

    def _read(self) -> None:
        reader = self.open_store()
        try:
            chunk = 0
            while reader.read_chunk(chunk) is not None:
                chunk += 1
            self.store_index, self.store_epoch = reader.index, reader.epoch
            self.items, self.digest = reader.count, reader.checksum
        finally:
            reader.close()
        self.log = inspect_log(self.path / "log", (self.store_index, self.store_epoch))
        if self.log.damage:
            self.damage.append(self.log.damage)
        try:
            self.marks = read_marks(self.path / "accepted")
        except DataDirectoryError as error:
            self.damage.append(f"{error}: whether entries are known to be missing here is lost")


def _lock(path: Path) -> int:
    """Lock the directory if it has a lock file (a copy may have none). Nothing is written."""
    try:
        lock = os.open(path / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1
    except OSError as error:
        raise storage_error(error, f"opening {path / 'lock'}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise DataDirectoryError(
            f"{path} is in use by process {holder}: stop that process for good first"
        ) from None
    return lock
