"""One request that waits for a single change of a key (`cluster.api.streams`)."""

from __future__ import annotations

import asyncio

from cluster.api.problems import ProblemError
from datapath.execution.changes import Span
from datapath.operations import Principal


class NextChange:
    """One that waits for a single change; `refused`: why it may not any more."""

    __slots__ = ("caller", "changed", "refused", "span")

    def __init__(self, caller: Principal | None, span: Span, changed: asyncio.Event) -> None:
        self.caller = caller
        self.span = span
        self.changed = changed
        self.refused: ProblemError | None = None

    def refuse(self, problem: ProblemError) -> None:
        """End it: its caller has not the right any more."""
        self.refused = problem
        self.changed.set()

    def is_refused(self) -> bool:
        """Whether its caller may not watch any more."""
        return self.refused is not None
