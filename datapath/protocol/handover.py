"""Handing an epoch over to another replica: what is under way, and what ends it. Part of `Primary`.

A handover was asked for, or this log lacks something that an in-sync backup holds (a yield).
"""

from __future__ import annotations

from typing import Literal

from datapath.protocol import effects
from datapath.protocol.in_sync import InSync
from datapath.protocol.progress import Progress
from datapath.protocol.state import ReplicaState
from election.view import Handover, View

HandoverPhase = Literal["none", "draining", "proposed"]


class Handovers:
    """One epoch's handovers, one at a time.

    | phase | meaning | left by |
    |---|---|---|
    | none | operations are executed | `start`, `propose` |
    | draining | none is; `to` is to hold all that was | `propose`; its deadline; `to` is lost |
    | proposed | it may commit at any moment: nothing is served (D4) | a newer view (E3) |
    """

    def __init__(self, state: ReplicaState, in_sync: InSync) -> None:
        self._state = state
        self._in_sync = in_sync
        self.phase: HandoverPhase = "none"
        self.to = ""  # "" exactly in "none"
        self._deadline_ms = 0.0  # of "draining"
        self._version = 0  # of the view that it was proposed at; 0 unless "proposed"

    def start(self, to: str, timeout_ms: int, *, is_open: bool) -> str:
        """Begin to hand over an epoch that `is_open`; return "" or why that cannot be."""
        if self.phase != "none":
            return "another handover is in progress"
        if not is_open:
            return "this epoch is not open yet: try again in a moment"
        if not self.may_take(to):
            in_sync = ", ".join(sorted(self._in_sync.required))
            return f"{to!r} is not an in-sync backup; those are: {in_sync or 'none'}"
        self.phase, self.to = "draining", to
        self._deadline_ms = self._state.now_ms + timeout_ms
        return ""

    def drive(self) -> None:
        """Draining: propose it once `to` holds everything, or give it up."""
        if self._state.now_ms >= self._deadline_ms or not self.may_take(self.to):
            self._end(f"{self.to!r} did not catch up in time, or left the in-sync set")
        elif self.may_propose(self._in_sync.peers[self.to]):
            self.propose(self.to)

    def propose(self, to: str) -> None:
        """From here on this node serves nothing until the outcome is known (D4)."""
        version = self._in_sync.view.version
        self.phase, self.to, self._version = "proposed", to, version
        self._state.propose(Handover(to), version)

    def on_view(self, view: View) -> None:
        """A newer view of this epoch: what was proposed at an older one was not agreed (E3)."""
        if self.phase == "proposed" and view.version > self._version:
            self._end("the view has changed, and this node is still the primary")

    def may_take(self, to: str) -> bool:
        """E1: whether a replica may be handed the epoch, once it holds everything."""
        peer = self._in_sync.peers.get(to)
        return peer is not None and to in self._in_sync.view.in_sync and peer.state == "replicate"

    def may_propose(self, peer: Progress) -> bool:
        """D6: whether everything is committed, and the one that takes over holds it."""
        state = self._state
        return peer.match_index == state.log.last_index == state.commit_index

    def _end(self, reason: str) -> None:
        self.phase, self.to, self._version = "none", "", 0
        self._state.emit(effects.HandoverEnded(reason))
