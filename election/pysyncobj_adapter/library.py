"""PySyncObj's module, as the core needs it: the version that was read, its parts, and no pickle."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pysyncobj.syncobj as library
from pysyncobj.version import VERSION

from election.agreement import AgreementFailedError
from election.pysyncobj_adapter.journal import Journal
from election.pysyncobj_adapter.poller import NoNotifier, Poller

READ_VERSION = "0.3.17"
"""The one that has been read line by line for what replaces its private parts."""

_construction = threading.Lock()


def check_version() -> None:
    """Raise AgreementFailedError if another version is installed than the one that was read."""
    if VERSION != READ_VERSION:
        raise AgreementFailedError(
            f"PySyncObj {VERSION} is installed, but this adapter needs {READ_VERSION}: install "
            f"pysyncobj=={READ_VERSION}"
        )


@contextlib.contextmanager
def injected(journal: Journal, poller: Poller) -> Iterator[None]:
    """Let PySyncObj's constructor take these, and no wake-up pipe of its own."""
    names = ("createJournal", "createPoller", "PipeNotifier")
    with _construction:
        saved = {name: getattr(library, name) for name in names}
        library.createJournal = lambda _path: journal
        library.createPoller = lambda _kind: poller
        library.PipeNotifier = NoNotifier
        try:
            yield
        finally:
            for name, value in saved.items():
                setattr(library, name, value)


class _NoPickle:
    """Stands in for the pickle module in PySyncObj's core: nothing is ever unpickled."""

    def __getattr__(self, name: str) -> Any:
        raise AgreementFailedError(f"PySyncObj called pickle.{name}, which is disabled")


library.pickle = _NoPickle()
