"""What can go wrong with an archive.

ArchiveError
├── ArchiveUnavailableError   the store cannot be reached, or refuses: try again later
├── ArchiveDamagedError       an object is cut short, changed, or not what its name says
├── ArchiveConflictError      it holds another history, or several clusters'
└── MissingPieceError         it does not reach the revision or the time that was asked for
"""

from __future__ import annotations


class ArchiveError(Exception):
    """An archive cannot be used as asked. `str(error)` names the object and what to do."""


class ArchiveUnavailableError(ArchiveError):
    """The store cannot be reached, or refuses."""


class ArchiveDamagedError(ArchiveError):
    """An object is cut short, changed, or not what its name says."""


class ArchiveConflictError(ArchiveError):
    """It holds what does not belong together."""


class MissingPieceError(ArchiveError):
    """It does not reach that point. `reaches`: the last revision that can be restored before it."""

    def __init__(self, text: str, reaches: int | None) -> None:
        super().__init__(text)
        self.reaches = reaches
