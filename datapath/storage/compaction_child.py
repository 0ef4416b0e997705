"""The process that copies a store without its free pages: `datapath.storage.compaction` starts it.

    python -m datapath.storage.compaction_child SOURCE TARGET MAP_SIZE_BYTES

SOURCE and TARGET are environments, TARGET an empty directory. The copy is durable when this ends
with 0; else standard error says why. It ends when its standard input does: with its parent.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import lmdb

from datapath.errors import StorageError
from datapath.storage.data_directory import FILE_MODE, sync_directory, sync_file
from datapath.storage.environment import Environment

_NICENESS = 10
"""It gives way to the node."""


def copy(source: Path, target: Path, map_size_bytes: int) -> None:
    """Copy an environment, durably. Raises StorageError, OSError, lmdb.Error."""
    environment = Environment(source, map_size_bytes, readonly=True)
    environment.lmdb.copy(str(target), compact=True)
    (target / "data.mdb").chmod(FILE_MODE)
    sync_file(target / "data.mdb")
    sync_directory(target)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def copy_named_on_the_command_line() -> int:
    """Copy what the command line names; return the exit status."""
    os.nice(_NICENESS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the node's to act on
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        copy(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    except (StorageError, OSError, lmdb.Error) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    # Not `sys.exit`: the thread still reads.
    status = copy_named_on_the_command_line()
    sys.stderr.flush()
    os._exit(status)
