"""One proposal of a replica, step by step: hear consensus, propose, read back, end. Pure.

`datapath.node.proposer` (and the simulator's consensus) do what `step` says, and tell how it ended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from datapath.protocol import effects
from datapath.protocol.replica import Replica
from election.agreement import Outcome, Unknown
from election.view import RemoveFromInSync, TakeOver, View, ViewChange

Step = Literal["hear", "propose", "read_back", "end"]


def must_hear_first(change: ViewChange) -> bool:
    """Whether a change leaves replicas out of the in-sync set: from then on they cannot take over.

    A node that sends and does not hear would have everyone else removed, and never learn that it is
    left to serve alone (docs/decisions/0006-hear-before-you-exclude.md).
    """
    return isinstance(change, RemoveFromInSync | TakeOver)


class Proposal:
    """What to do next for `effect` is `step`: "hear" and "read_back" ask consensus for its view.

    `on_view` gets each view that consensus answers with, before anything follows from it. At the
    end `answered` is what `Replica.on_proposal_done` is told.
    """

    def __init__(
        self, replica: Replica, effect: effects.Propose, on_view: Callable[[View], None]
    ) -> None:
        self._replica = replica
        self._on_view = on_view
        self.effect = effect
        self.step: Step = "hear" if must_hear_first(effect.change) else "propose"
        self.answered = True

    def heard(self, view: View | None, now_ms: float) -> None:
        """Consensus has answered with its view (None: there is none yet)."""
        if view is not None:
            self._on_view(view)
        if self.step == "hear" and self._replica.may_propose(self.effect, now_ms):
            self.step = "propose"
        else:
            self.step = "end"

    def unheard(self) -> None:
        """Consensus has not answered: nothing was proposed, or what became of it stays unknown."""
        self.answered = False
        self.step = "end"

    def proposed(self, outcome: Outcome) -> None:
        """Take what became of the proposal. Unknown is read back (E3)."""
        if isinstance(outcome, Unknown):
            self.step = "read_back"
            return
        if outcome.view is not None:
            self._on_view(outcome.view)
        self.step = "end"
