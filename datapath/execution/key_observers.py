"""Who waits for committed writes of a key, on this replica."""

from __future__ import annotations

from collections.abc import Callable

from datapath.records import Entry

Observer = Callable[[], None]


class KeyObservers:
    """Observers by keyspace and key; each is called after an entry that wrote its key is applied.

    They are called amid a commit: they take note only. One that misses nothing must be added before
    it looks at the state.
    """

    __slots__ = ("_observers",)

    def __init__(self) -> None:
        self._observers: dict[tuple[int, bytes], list[Observer]] = {}

    def __bool__(self) -> bool:
        return bool(self._observers)

    def add(self, keyspace: int, key: bytes, observer: Observer) -> None:
        """Call `observer` from now on."""
        self._observers.setdefault((keyspace, key), []).append(observer)

    def remove(self, keyspace: int, key: bytes, observer: Observer) -> None:
        """Call it no longer."""
        found = self._observers[keyspace, key]
        found.remove(observer)
        if not found:
            del self._observers[keyspace, key]

    def on_applied(self, entries: list[Entry]) -> None:
        """These entries are applied."""
        for entry in entries:
            for keyspace, key, _ in entry:
                for observer in self._observers.get((keyspace, key), ()):
                    observer()

    def on_snapshot(self) -> None:
        """The state was replaced: every key may have been written."""
        for found in self._observers.values():
            for observer in found:
                observer()
