"""Observing an election: who leads, and who leads after that, over as many nodes as it takes."""

from __future__ import annotations

from urllib.parse import quote

import msgspec
from msgspec import UNSET, UnsetType

from cluster.client.arguments import check_text
from cluster.client.errors import InvalidRequestError, RevisionCompactedError
from cluster.client.group_routes import GroupRoutes, name_span
from cluster.client.results import Leader, LeaderEvent, Problem
from cluster.client.watching import AsyncStream


class _LeaderLine(msgspec.Struct, frozen=True):
    """A line of the stream: who leads, progress, or its end."""

    revision: int = 0
    leader: Leader | UnsetType | None = UNSET
    end: Problem | None = None

    def event(self) -> LeaderEvent | None:
        if self.leader is UNSET:
            return None
        return LeaderEvent(revision=self.revision, leader=self.leader)


_decode = msgspec.json.Decoder(_LeaderLine).decode


class AsyncElectionWatch(AsyncStream[LeaderEvent]):
    """Who leads an election, first now and then whenever that changes; see `AsyncStream`.

    Where nodes no longer keep the changes since it was last connected, it goes on with who leads
    then: leaders in between are not given.
    """

    def __init__(
        self, routes: GroupRoutes, name: str, after: int | None, timeout_ms: int | None
    ) -> None:
        target = election_target(name) + "/observe"
        super().__init__(routes, name_span(name), target, after, timeout_ms, _decode)
        self._given: LeaderEvent | None = None

    async def __anext__(self) -> LeaderEvent:
        """Return who leads next. Nothing is lost where this is cancelled."""
        while True:
            try:
                event = await super().__anext__()
            except RevisionCompactedError:
                self.revision = None  # who leads now is given next
                continue
            if self._given is None or event.leader != self._given.leader:
                self._given = event
                return event


def election_target(name: str) -> str:
    """Return the path of an election. Raises InvalidRequestError."""
    if not check_text("name", name):
        raise InvalidRequestError("name must not be empty", code="invalid_argument")
    return f"/v1/elections/{quote(name, safe='')}"
