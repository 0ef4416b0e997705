"""What the fast path and the server need of the API, which is made of more than they know."""

from __future__ import annotations

import asyncio
from typing import Protocol

from cluster.api.access import ApiAccess
from cluster.api.answer import Answer
from cluster.api.kv import KvHandlers
from cluster.api.leases import LeaseHandlers
from datapath.complaints import Complaints
from datapath.operations import Node, Principal


class ServedApi(Protocol):
    """What the server needs of the API whose connections it has."""

    complaints: Complaints

    def tick(self, now: float) -> None:
        """Time has passed; called again and again."""


class FastPathApi(ServedApi, Protocol):
    """What the fast path needs of the API."""

    access: ApiAccess
    kv: KvHandlers
    leases: LeaseHandlers
    node: Node

    def refuse(self, error: Exception, method: str, target: str) -> Answer:
        """Return the answer that says why a request has failed."""

    def observe(self, method: str, target: str, answer: Answer, seconds: float) -> None:
        """Count an answered request."""

    def note_refusal(
        self,
        answer: Answer,
        method: str,
        target: str,
        caller: Principal | None,
        transport: asyncio.BaseTransport | None,
    ) -> None:
        """Note in the audit log, if there is one, that a request was refused for its caller."""
