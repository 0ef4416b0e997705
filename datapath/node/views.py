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
    """The newest committed view, and what follows from it for this node.

    `cluster_id`: of that view; before there is one, that of this node's data, "" if unknown.
    `is_removed`: this node is no member by it. `is_in_sync`: this node is kept up to date by it, so
    that a read need not wait long here.

    `belongs`: this node is known to be a member, by a view that it has heard since its start. After
    its removal it answers nothing from its own data, and before that only stale reads, while it is
    alone: what it holds may be from long before it was removed.
    """

    def __init__(self, node_id: str, cluster_id: str = "") -> None:
        self._node_id = node_id
        self._listeners: list[Callable[[View], None]] = []
        self.newest: View | None = None
        self.belongs = False
        self.cluster_id = cluster_id
        self.primary = ""  # of the newest view, or ""
        self.is_removed = False
        self.is_in_sync = False

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
        self.is_removed = not self.belongs
        self.is_in_sync = self._node_id in view.in_sync
        self.cluster_id, self.primary = view.cluster_id, view.primary
        for listener in self._listeners:
            listener(view)

    def listen(self, listener: Callable[[View], None]) -> None:
        """Call `listener` with each newer view, after those that listen already."""
        self._listeners.append(listener)
