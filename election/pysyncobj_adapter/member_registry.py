"""Who the members were when this node first started, and which disk each one has.

Both are kept on disk. The founders' list (the configured list of the first start, or what a member
told this node when it joined) is where the log begins; whatever the log or a dump says later counts
more, and an edited configuration counts less.

Each raft directory has a random id. The first time that a member proves itself, its directory's id
is noted; from then on that member with another directory is refused: it has lost its disk, and
with it its vote and the entries that it has acknowledged, and must come back under a new id.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from election.pysyncobj_adapter.files import REAL_DISK, Disk, load_file, store_file

MEMBER_REGISTRY_MAGIC = b"OCRAFTM1"


class _Content(msgspec.Struct, frozen=True, array_like=True):
    founders: dict[str, str]
    directories: dict[str, bytes]


def read_founders(path: Path, disk: Disk) -> dict[str, str]:
    """Return the members with which a node's log began; {} if that is not noted.

    Raises StorageCorruptError.
    """
    found = load_file(path, MEMBER_REGISTRY_MAGIC, _Content, disk)
    return {} if found is None else found.founders


class MemberBook:
    """The file; every change is durable on return."""

    def __init__(self, path: Path, configured: dict[str, str], disk: Disk = REAL_DISK) -> None:
        """Read the file; at the first start, write it with the configured members.

        Raises:
            StorageCorruptError: the file is damaged.
            StorageFullError: there is no room for it.

        """
        self.path = path
        self._disk = disk
        found = load_file(path, MEMBER_REGISTRY_MAGIC, _Content, disk)
        self._content = found or _Content(dict(configured), {})
        if found is None:
            self._save()

    @property
    def founders(self) -> dict[str, str]:
        """The members with which this node's log began: ids and raft addresses."""
        return self._content.founders

    def judge(self, node_id: str, directory_id: bytes, *, noting: bool = True) -> str:
        """Return why a member with that directory is refused; note a directory seen first."""
        known = self._content.directories.get(node_id)
        if known == directory_id:
            return ""
        if known is not None:
            return (
                f"{node_id!r} is known with another raft directory: a node that has lost its "
                "disk must return under a new id"
            )
        if noting:
            self._set({**self._content.directories, node_id: directory_id})
        return ""

    def forget(self, node_id: str) -> None:
        """Forget the directory of a member that was removed."""
        directories = dict(self._content.directories)
        if directories.pop(node_id, None) is not None:
            self._set(directories)

    def _set(self, directories: dict[str, bytes]) -> None:
        self._content = _Content(self._content.founders, directories)
        self._save()

    def _save(self) -> None:
        store_file(self.path, MEMBER_REGISTRY_MAGIC, self._content, self._disk)
