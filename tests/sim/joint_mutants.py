"""Mutants for the simulator of replicas over real consensus: what joins the two."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

from datapath.protocol.state import ReplicaState
from election.pysyncobj_adapter import view_machine
from election.pysyncobj_adapter.raft_thread import RaftThread
from election.view import View, ViewChange, ViewRefusal, apply_change
from tests.sim import consensus_mutants as same
from tests.sim.mutant import Mutant, Patch


def _versions_are_not_compared() -> list[Patch]:
    """Consensus alone cannot notice: its oracle runs the same machine."""

    def apply(view: View | None, change: ViewChange, _version: int) -> View | ViewRefusal:
        return applies(view, change, 0 if view is None else view.version)

    applies = apply_change
    return [patch.object(view_machine, "apply_change", apply)]


def _tells_what_is_not_committed() -> list[Patch]:
    def position(state: ReplicaState) -> tuple[int, int]:
        return (state.log.last_epoch, state.log.last_index)

    return [patch.object(ReplicaState, "committed_position", property(position))]


def _reminders_are_dropped() -> list[Patch]:
    return [patch.object(RaftThread, "on_remembered", lambda *_: None)]


def _mutant(rule: str, broken: str, patches: Callable[[], list[Patch]], seed: int = 0) -> Mutant:
    """Return one that schedules of both together are to notice, from that seed on."""
    return Mutant(rule, f"joint: {broken}", patches, seed=seed, joint=True)


JOINT_MUTANTS = (
    _mutant(
        "E1", "a change is not compared with the view's version", _versions_are_not_compared, 70
    ),
    _mutant("D7", "how far a replica is, is told too early", _tells_what_is_not_committed, 380),
    _mutant("D6", "what the others remember is not handed on", _reminders_are_dropped, 20),
    _mutant("E4", "a vote is only in memory", same._e4_votes_in_memory),
)
