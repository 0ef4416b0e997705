"""The first data directory of a new cluster, made of a kept state by a restore or a recovery.

The new cluster has an id of its own, so that no node of the old one can take part in it. It goes on
at a revision and an epoch above all that the old one may have given out after the kept state (rule
B2): what a client, or something outside, holds of the old one (an ETag, a lock's token, the place
to go on with a watch) can then never be mistaken for something of the new one.

The directory is filled in place, since it may be a mount point. A file marks it as unfinished until
all of it is durable: a node does not start on it, and the next attempt empties it.
"""

from __future__ import annotations

import math
import os
import secrets
import shutil
from pathlib import Path
from typing import NamedTuple, Self

from datapath.errors import DataDirectoryError
from datapath.storage.accepted import Accepted
from datapath.storage.data_directory import (
    UNFINISHED,
    DataDirectory,
    replace_file,
    storage_error,
    sync_directory,
)
from datapath.storage.environment import Environment, current_environment, writing

REVISION_MARGIN = 1_000_000_000_000
MAX_REVISIONS_PER_S = 1_000_000
"""No cluster commits more. The fixed margin is eleven days of it, for clocks that are wrong."""
EPOCH_MARGIN = 1_000_000
MAX_EPOCHS_PER_S = 1
MAX_FIRST_REVISION = 7 * 2**50
"""Numbers in JSON are exact everywhere up to 2**53: what is left lasts for 35 years."""
_EVERY_VOLUME = ("lost+found",)  # what a file system keeps at the root of a volume


class Founded(NamedTuple):
    """The new cluster: its id, the last (index, epoch) of the kept state, and where it goes on.

    Its first entry is `next_index`, of epoch `next_epoch`.
    """

    cluster_id: str
    kept_index: int
    kept_epoch: int
    next_index: int
    next_epoch: int


def continue_after(index: int, epoch: int, age_s: float = 0.0) -> tuple[int, int]:
    """Return (first index, first epoch) of a new cluster made of the state at (index, epoch).

    Rule B2: above all that may have been given out after that state was kept, `age_s` ago by this
    machine's clock. (Below 0, as where a clock was set back, it counts as 0.) As the margin grows
    with the age, a second restore of the same backup begins above all that the first cluster gave.

    Raises DataDirectoryError: revisions would be used up.
    """
    age = max(0, math.ceil(age_s))
    first = index + REVISION_MARGIN + age * MAX_REVISIONS_PER_S + 1
    if first > MAX_FIRST_REVISION:
        raise DataDirectoryError(
            f"the new cluster would begin at revision {first}, above {MAX_FIRST_REVISION}: the "
            f"state is at revision {index}, and {age} s old by the clock of this machine. Set the "
            "clock, if it is wrong"
        )
    return first, epoch + EPOCH_MARGIN + age * MAX_EPOCHS_PER_S


class Founding:
    """Makes a data directory; the caller fills the store under `store` for cluster `cluster_id`.

    Then `finish`, or `abort`, which leaves the directory as empty as it was: at the end of a `with`
    it is either finished or given up.
    """

    def __init__(self, path: str | Path, node_id: str, group: str = "") -> None:
        """Take an empty directory, or what an interrupted founding has left; make it if missing.

        `group`: the group whose state it is to hold, with its slots; "": there are no groups.

        Raises:
            DataDirectoryError: it is not empty, in use, or cannot be written.
            DiskFullError, DiskFailedError: it could not be marked.

        """
        self.path = Path(path).absolute()
        self.node_id = node_id
        self.group = group
        self.cluster_id = secrets.token_hex(16)
        self.store = self.path / "store"
        check_empty(self.path)
        self._directory = DataDirectory.reserve(self.path, node_id)
        try:
            check_empty(self.path)
        except BaseException:
            self._directory.close()
            raise
        try:
            self._clear()
            replace_file(self.path / UNFINISHED, b"")
        except OSError as error:
            self.abort()
            raise storage_error(error, f"making {self.path}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    def finish(self, index: int, epoch: int, map_size_bytes: int, *, age_s: float = 0.0) -> Founded:
        """Make the state in the store, which is durable and of (index, epoch), the new cluster's.

        `age_s`: as for `continue_after`.

        Raises:
            DataDirectoryError: as `continue_after`: `abort`.
            DiskFullError, DiskFailedError: it is not durable: `abort`.

        """
        next_index, next_epoch = continue_after(index, epoch, age_s)
        environment = Environment(self.store / current_environment(self.store), map_size_bytes)
        try:
            with writing(environment.path), environment.lmdb.begin(write=True) as transaction:
                # As if all entries in between had been applied.
                environment.write_meta(transaction, next_index - 1, next_epoch - 1, self.cluster_id)
        finally:
            environment.release()
        accepted = Accepted(self.path / "accepted")
        try:
            accepted.record(next_epoch - 1, self.node_id)
        finally:
            accepted.close()
        self._directory.found(self.cluster_id, next_epoch, self.group)
        try:
            (self.path / UNFINISHED).unlink()
            sync_directory(self.path)
        except OSError as error:
            raise storage_error(error, f"finishing {self.path}") from error
        self._directory.close()
        return Founded(self.cluster_id, index, epoch, next_index, next_epoch)

    def abort(self) -> None:
        """Give up, and empty the directory again. After `finish` it does nothing."""
        if self._directory.is_open:
            try:
                self._clear()
                (self.path / UNFINISHED).unlink(missing_ok=True)
                (self.path / "lock").unlink(missing_ok=True)
                sync_directory(self.path)
            except OSError as error:
                raise storage_error(error, f"emptying {self.path}") from error
            finally:
                self._directory.close()

    def _clear(self) -> None:
        """Remove what an attempt has written, but its mark and the lock."""
        shutil.rmtree(self.store, ignore_errors=True)
        for name in ("accepted", "accepted.new", "identity.json.new"):
            (self.path / name).unlink(missing_ok=True)
        sync_directory(self.path)


def check_empty(path: Path) -> None:
    """Raise DataDirectoryError unless `path` is empty, absent, or left by an interruption."""
    if not path.is_dir():
        return
    names = {item.name for item in os.scandir(path)} - {"lock", *_EVERY_VOLUME}
    # The identity is written last: with it, the mark is what a crash has left of a success.
    if names and (UNFINISHED not in names or "identity.json" in names):
        raise DataDirectoryError(
            f"data directory {path} is not empty (it holds {', '.join(sorted(names)[:5])}): name "
            "an empty one, or move it away"
        )
