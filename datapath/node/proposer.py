"""Proposes a replica's changes of the view to consensus, and learns what became of them."""

from __future__ import annotations

import logging
from collections.abc import Callable

from datapath.clock import clock_ms
from datapath.node.interpreter import Interpreter
from datapath.node.proposal import Proposal
from datapath.protocol import effects
from election.agreement import Agreement, AgreementUnavailableError, Committed
from election.view import View

logger = logging.getLogger(__name__)


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

    async def propose(self, effect: effects.Propose) -> None:
        """Carry one proposal out, and give the replica every view that it brings."""
        interpreter = self._interpreter
        proposal = Proposal(interpreter.replica, effect, self._on_view)
        while (step := proposal.step) != "end":
            if step == "propose":
                await self._propose(proposal)
            else:
                await self._read(proposal)
        interpreter.run(interpreter.replica.on_proposal_done, answered=proposal.answered)

    async def _propose(self, proposal: Proposal) -> None:
        change, version = proposal.effect.change, proposal.effect.expected_version
        outcome = await self.agreement.propose(change, version, self._timeout_ms)
        logger.info("proposed %s at version %d: %s", change, version, type(outcome).__name__)
        self.view_changes_total += isinstance(outcome, Committed)
        proposal.proposed(outcome)

    async def _read(self, proposal: Proposal) -> None:
        try:
            view = await self.agreement.read_view(self._timeout_ms)
        except AgreementUnavailableError as problem:
            logger.warning("consensus cannot be reached (to %s): %s", proposal.step, problem)
            proposal.unheard()
        else:
            proposal.heard(view, clock_ms())
