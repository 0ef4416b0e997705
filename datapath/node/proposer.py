"""Proposes a replica's changes of the view to consensus, and learns what became of them."""

from __future__ import annotations

import logging
from collections.abc import Callable

from datapath.clock import clock_ms
from datapath.node.interpreter import Interpreter
from datapath.protocol import effects as fx
from election.agreement import Agreement, AgreementUnavailableError, Committed, Unknown
from election.view import RemoveFromInSync, TakeOver, View

log = logging.getLogger(__name__)

EXCLUDING = (RemoveFromInSync, TakeOver)
"""Changes that leave replicas out of the in-sync set: from then on they cannot take over."""


class Proposer:
    """One replica's proposals. `on_view`: consensus has answered with this view."""

    def __init__(
        self,
        interpreter: Interpreter,
        agreement: Agreement,
        timeout_ms: int,
        on_view: Callable[[View], None],
    ) -> None:
        self._interpreter = interpreter
        self._timeout_ms = timeout_ms
        self._on_view = on_view
        self.agreement = agreement
        self.view_changes_total = 0

    async def propose(self, proposal: fx.Propose) -> None:
        """Propose, and give the replica whatever view that brought. Unknown is read back (E3)."""
        replica, version = self._interpreter.replica, proposal.expected_version
        if isinstance(proposal.change, EXCLUDING):
            heard = await self._hears_consensus()
            if not heard or not replica.may_propose(proposal, clock_ms()):
                self._interpreter.run(replica.on_proposal_done, answered=heard)
                return
        outcome = await self.agreement.propose(proposal.change, version, self._timeout_ms)
        result = type(outcome).__name__
        log.info("proposed %s at version %d: %s", proposal.change, version, result)
        view: View | None = None
        answered = True
        if isinstance(outcome, Unknown):
            try:
                view = await self.agreement.read_view(self._timeout_ms)
            except AgreementUnavailableError as problem:
                log.warning("consensus cannot be reached: %s", problem)
                answered = False
        else:
            view = outcome.view
            self.view_changes_total += isinstance(outcome, Committed)
        if view is not None:
            self._on_view(view)
        self._interpreter.run(replica.on_proposal_done, answered=answered)

    async def _hears_consensus(self) -> bool:
        """Whether consensus answers; what it says is taken.

        A node that sends and does not hear would have everyone else removed, and never learn that
        it is left to serve alone (docs/decisions/0006-hear-before-you-exclude.md).
        """
        try:
            view = await self.agreement.read_view(self._timeout_ms)
        except AgreementUnavailableError as problem:
            log.warning("nothing proposed, for consensus cannot be heard: %s", problem)
            return False
        if view is not None:
            self._on_view(view)
        return True
