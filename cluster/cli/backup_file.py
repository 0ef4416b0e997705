"""A backup as a file that a command was given. Imports no client: that takes 0.2 s."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from cluster.bulk.progress import ProgressView
from cluster.cli.common import STDIN, UNCHANGED, fail, report_errors
from cluster.exit_codes import EXIT_DAMAGED, EXIT_NOT_APPLIED
from datapath.errors import BackupError
from datapath.storage.backup_format import BackupReader

NO_BACKUP_FILE = (
    "Name a file that onecopy backup has written, or the URL of an archive (file:///…). To make a "
    "cluster of data directories: onecopy recover"
)


@contextlib.contextmanager
def open_backup(file: Path, verb: str = "checked") -> Iterator[tuple[BackupReader, ProgressView]]:
    """Open a backup, and show progress; end the process if it cannot be used as it is."""
    try:
        with _open(file) as source:
            size_bytes = None if file == STDIN else file.stat().st_size
            reader = BackupReader(source, str(file))
            with ProgressView(verb, size_bytes) as view:
                yield reader, view
    except BackupError as error:
        fail(str(error), f"Use another backup. {UNCHANGED}", EXIT_DAMAGED)
    except KeyboardInterrupt:
        with report_errors(as_json=False, interrupted="nothing was changed"):
            raise


def _open(file: Path) -> contextlib.AbstractContextManager[BinaryIO]:
    if file == STDIN:
        return contextlib.nullcontext(sys.stdin.buffer)
    try:
        return file.open("rb")
    except OSError as error:
        fail(f"{file}: {error.strerror}", NO_BACKUP_FILE, EXIT_NOT_APPLIED)
