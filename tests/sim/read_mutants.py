"""Mutants of confirmed reads: what a round has to prove, and who waits for which (decision 17)."""

from __future__ import annotations

from unittest.mock import patch

from datapath.execution.tail import Tail
from datapath.node.interpreter import Interpreter
from datapath.protocol.heartbeats import Heartbeats
from datapath.protocol.primary import Primary
from datapath.protocol.progress import Progress
from tests.scenarios import test_confirmed_reads
from tests.sim.mutant import Mutant, Patch


def _reads_rest_on_leases() -> list[Patch]:
    return [patch.object(Interpreter, "needs_confirmation", lambda *_: False)]


def _answers_that_wrote_nothing_rest_on_leases() -> list[Patch]:
    init = Tail.__init__

    def without(tail: Tail, *args: object, **kwargs: object) -> None:
        init(tail, *args, **{**kwargs, "confirm": None})  # type: ignore[arg-type]

    return [patch.object(Tail, "__init__", without)]


def _an_older_answer_counts() -> list[Patch]:
    begin = Heartbeats._begin_round

    def earlier(heartbeats: Heartbeats) -> None:
        heartbeats.sequence -= 1
        try:
            begin(heartbeats)
        finally:
            heartbeats.sequence += 1

    return [patch.object(Heartbeats, "_begin_round", earlier)]


def _reads_join_an_open_round() -> list[Patch]:
    confirm = Heartbeats.confirm

    def join(heartbeats: Heartbeats) -> int:
        return heartbeats._round if heartbeats.round_sequence else confirm(heartbeats)

    return [patch.object(Heartbeats, "confirm", join)]


def _one_answer_is_enough() -> list[Patch]:
    def may_confirm(heartbeats: Heartbeats, sequence: int) -> bool:
        in_sync = heartbeats._in_sync
        answers = [in_sync.peers[node].answered_sequence for node in in_sync.required]
        return max(answers, default=sequence) >= sequence

    return [patch.object(Heartbeats, "may_confirm", may_confirm)]


def _who_is_being_added_is_not_asked() -> list[Patch]:
    def may_confirm(heartbeats: Heartbeats, sequence: int) -> bool:
        in_sync = heartbeats._in_sync
        asked = set(in_sync.view.in_sync) - {heartbeats._state.node_id}
        return all(in_sync.peers[node].answered_sequence >= sequence for node in asked)

    return [patch.object(Heartbeats, "may_confirm", may_confirm)]


def _before_the_epoch_is_open() -> list[Patch]:
    return [patch.object(Primary, "_maybe_end_round", lambda self: self.heartbeats.end_round())]


def _what_was_heard_counts() -> list[Patch]:
    """Any message of this epoch counts, not only the answer to a heartbeat of the round."""

    def may_confirm(heartbeats: Heartbeats, sequence: int) -> bool:
        del sequence
        state, in_sync = heartbeats._state, heartbeats._in_sync
        return all(
            state.now_ms - in_sync.peers[node].heard_ms < state.timing.suspect_after_ms
            for node in in_sync.required
        )

    return [patch.object(Heartbeats, "may_confirm", may_confirm)]


def _a_session_forgets_nothing() -> list[Patch]:
    """A heartbeat that was never answered counts when it has left."""
    sent = Progress.sent_heartbeat

    def counts(peer: Progress, sequence: int, now_ms: float) -> None:
        sent(peer, sequence, now_ms)
        peer.answered_sequence = sequence

    return [patch.object(Progress, "sent_heartbeat", counts)]


ROUNDS = "tests/unit/datapath/protocol/test_confirmed_rounds.py::"
READ_MUTANTS = (
    Mutant("D10", "reads rest on leases although clocks stop", _reads_rest_on_leases, clients=True),
    Mutant(
        "D10", "answers that wrote nothing rest on leases although clocks stop",
        _answers_that_wrote_nothing_rest_on_leases,
        scenario=test_confirmed_reads.test_nor_does_it_refuse_a_condition,
    ),
    Mutant(
        "D10", "an answer to an older heartbeat confirms", _an_older_answer_counts,
        unit=ROUNDS + "test_the_answer_to_an_older_heartbeat_confirms_nothing",
    ),
    Mutant(
        "D10", "reads join a round that is open", _reads_join_an_open_round,
        unit=ROUNDS + "test_a_read_waits_for_a_round_that_begins_after_it",
    ),
    Mutant(
        "D10", "one answer confirms", _one_answer_is_enough,
        unit=ROUNDS + "test_all_in_sync_and_who_is_being_added_confirm",
    ),
    Mutant(
        "D10", "who is being added is not asked", _who_is_being_added_is_not_asked,
        scenario=test_confirmed_reads.test_who_is_being_added_confirms_too,
    ),
    Mutant("D10", "confirmed before the epoch is open", _before_the_epoch_is_open),
    Mutant("D10", "whoever was heard lately confirms", _what_was_heard_counts),
    Mutant("D10", "a heartbeat confirms when it leaves", _a_session_forgets_nothing),
)  # fmt: skip
