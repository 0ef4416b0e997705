"""The views that a node hears of: one keeper, which judges each once and then tells all. Pure.

They come from consensus, from a peer that has it from there, and with the answer to a proposal. Who
listens is told in the order of `listen`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from election.view import View

logger = logging.getLogger(__name__)


class Views:
    """The newest committed view. `cluster_id` is the cluster of this node's data, "" if unknown.

    `belongs`: this node is known to be a member, by a view that it has heard since its start.
    After its removal it answers nothing from its own data, and before that only stale reads, while
    it is alone: what it holds may be from long before it was removed.
    """

    def __init__(self, node_id: str, cluster_id: str = "") -> None:
        self._node_id = node_id
        self._cluster_id = cluster_id
        self._listeners: list[Callable[[View], None]] = []
        self.newest: View | None = None
        self.belongs = False

    @property
    def cluster_id(self) -> str:
        """The cluster of the newest view, before there is one that of the data, or ""."""
        return self._cluster_id if self.newest is None else self.newest.cluster_id

    @property
    def primary(self) -> str:
        """The primary of the newest view, or ""."""
        return self.newest.primary if self.newest else ""

    @property
    def is_removed(self) -> bool:
        """Whether a view is known that this node is no member of."""
        return self.newest is not None and not self.belongs

    @property
    def is_in_sync(self) -> bool:
        """Whether this node is kept up to date, so that a read need not wait long here."""
        return self.newest is not None and self._node_id in self.newest.in_sync

    def is_news(self, view: View) -> bool:
        """Whether a view is of this cluster, and newer than the newest."""
        known = self.newest
        if known is None:
            return True
        if view.cluster_id != known.cluster_id:
            logger.error("a view of another cluster, %s, was offered", view.cluster_id)
            return False
        return view.version > known.version

    def take(self, view: View) -> None:
        """Take a committed view; what is no news is dropped."""
        if not self.is_news(view):
            return
        self.newest = view
        self.belongs = view.member(self._node_id) is not None
        for listener in self._listeners:
            listener(view)

    def listen(self, listener: Callable[[View], None]) -> None:
        """Call `listener` with each newer view, after those that listen already."""
        self._listeners.append(listener)
