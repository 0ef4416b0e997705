"""What can break a member for good. All mean that the process must stop; nothing may be concluded.

AgreementFailedError (election.agreement)
├── AgreementDamagedError
│   ├── StorageCorruptError a file of the raft directory is damaged or missing
│   └── RolledBackError     the raft directory is older than what this node has taken part in
├── StorageFullError        the disk has no room for what must be written
├── AddressInUseError       the raft port cannot be bound
├── DirectoryInUseError     another process uses the raft directory
└── SafetyViolationError    the group did what Raft excludes; the data is kept for inspection
"""

from __future__ import annotations

from pathlib import Path

from election.agreement import AgreementDamagedError, AgreementFailedError


class StorageCorruptError(AgreementDamagedError):
    """A file is damaged. The node must not vote with what is left of its memory."""

    def __init__(self, path: Path, offset_bytes: int, what: str) -> None:
        super().__init__(
            f"{path}: {what} at byte {offset_bytes}. This node's vote and log can no longer be "
            "trusted. Keep the file for inspection, remove this node from the cluster, and start "
            "it under a new id with an empty directory."
        )
        self.path = path
        self.offset_bytes = offset_bytes


class RolledBackError(AgreementDamagedError):
    """The raft directory is an old copy: votes and entries that this node gave are gone from it."""

    def __init__(
        self, directory: Path, held: tuple[int, int], known: tuple[int, int], by: str = ""
    ) -> None:
        """`held` and `known` are (term, entry); `by` is the node that remembers `known`."""
        super().__init__(
            f"{directory} is an old copy: it holds term {held[0]} and entry {held[1]}, but "
            f"{(f'{by} remembers that ' if by else '')}this node had reached term {known[0]} and "
            f"entry {known[1]}. Without the missing entries it would vote again, and could let a "
            "replica take over that lacks acknowledged writes. Put the newest files back if you "
            "still have them; or remove this node from the cluster, and start it under a new id "
            "with an empty directory."
        )


class RaftStorageFullError(AgreementFailedError):
    """The disk is full. Free space and start again: nothing that was promised is lost."""


class AddressInUseError(AgreementFailedError):
    """The raft address cannot be bound."""


class DirectoryInUseError(AgreementFailedError):
    """Another process holds the lock on the raft directory."""


class SafetyViolationError(AgreementFailedError):
    """An impossible case of Raft was seen: stop loudly, keep the data."""
