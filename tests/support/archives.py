"""Archives in tests: waiting for one, reading one, and the model that it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cluster.archive.catalog import Base, RestorePlan
from cluster.archive.reading import Archive, Replay
from cluster.archive.restoring import load_base, restore_store
from cluster.services.kv import HEAD_SIZE_BYTES, decode_head
from datapath.keyspaces import KV
from datapath.storage.store import Store
from tests.support.cluster import Cluster, wait_until

MAP_SIZE_BYTES = 1 << 30


class Model:
    """What acknowledged writes have made of the keys, at each revision."""

    def __init__(self) -> None:
        self._writes: dict[int, tuple[str, bytes | None]] = {}

    def note(self, revision: int, key: str, value: bytes | None) -> None:
        """A write was acknowledged; None: the key was deleted."""
        assert revision not in self._writes
        self._writes[revision] = (key, value)

    @property
    def first(self) -> int:
        return min(self._writes)

    @property
    def last(self) -> int:
        return max(self._writes)

    def at(self, revision: int) -> dict[str, tuple[int, bytes]]:
        """Return each key's last revision and value."""
        found: dict[str, tuple[int, bytes]] = {}
        for number in sorted(self._writes):
            if number > revision:
                break
            key, value = self._writes[number]
            found.pop(key, None)
            if value is not None:
                found[key] = (number, value)
        return found


def content(store: Store) -> dict[str, tuple[int, bytes]]:
    """Return each key's last revision and value."""
    return {
        key.decode(): (decode_head(stored).revision, stored[HEAD_SIZE_BYTES:])
        for key, stored in store.range(KV, b"", None, 1_000_000)
    }


def check_points(
    archive: Archive, base: Base, points: Sequence[int], model: Model, directory: Path
) -> None:
    """Replay from a base through rising revisions, and compare the state at each."""
    path = directory / f"base-{base.revision}-{base.time_ms}"
    load_base(archive, base, path, "", map_size_bytes=MAP_SIZE_BYTES)
    store = Store.open(path)
    replay = Replay(archive.records(archive.catalog.chain(base.revision)), store)
    for point in points:
        replay.to(point)
        assert store.applied_index == point
        assert content(store) == model.at(point), point
    store.close()


def restored_digest(archive: Archive, plan: RestorePlan, path: Path) -> tuple[int, str]:
    """Restore a point of its own, and return its index and digest."""
    made = restore_store(archive, plan, path, "", map_size_bytes=MAP_SIZE_BYTES)
    return made.revision, made.digest


async def wait_archived(cluster: Cluster, revision: int) -> None:
    """Wait until the primary says that a revision is archived."""

    async def is_archived() -> bool:
        status = await cluster.status(await cluster.primary())
        archive = status.archive if status else None
        return archive is not None and (archive.revision or 0) >= revision

    await wait_until(is_archived, f"revision {revision} is archived")
