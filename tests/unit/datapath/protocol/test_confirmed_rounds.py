"""The rounds of confirmed reads at the primary: who has to answer what, and who waits for which."""

from __future__ import annotations

from datapath.errors import NotPrimaryError, OperationError
from datapath.protocol import effects
from datapath.protocol.confirmations import Confirmations, ReadPoint
from datapath.protocol.messages import Heartbeat, HeartbeatReply, StaleEpoch
from tests.unit.datapath.protocol.test_primary_guards import Lead, _sent


class Round:
    """A read that waits; what the replica asks for goes into `effects`."""

    def __init__(self, lead: Lead, waiting: Confirmations) -> None:
        self.point: ReadPoint | None = None
        self.problem: OperationError | None = None
        self.gone = False
        self.effects = waiting.ask(self)
        for effect in self.effects:
            if isinstance(effect, effects.Confirmed):
                waiting.confirmed(effect.number)
        del lead

    def done(self) -> bool:
        return self.gone or self.point is not None or self.problem is not None

    def set_result(self, point: ReadPoint, /) -> None:
        assert not self.done(), "nobody waits"
        self.point = point

    def set_exception(self, exception: OperationError, /) -> None:
        assert not self.done(), "nobody waits"
        self.problem = exception


def _waiting(lead: Lead) -> Confirmations:
    return Confirmations(lead.replica, lambda: NotPrimaryError("no_primary", "not here", ""))


def _sequence(emitted: list[effects.Effect], peer: str) -> int:
    """The number of the last heartbeat that leaves for a peer."""
    return max(
        e.message.sequence
        for e in emitted
        if isinstance(e, effects.Send) and e.peer == peer and isinstance(e.message, Heartbeat)
    )


def _answer(lead: Lead, waiting: Confirmations, peer: str, sequence: int) -> list[effects.Effect]:
    reply = HeartbeatReply(lead.sessions[peer], 1, sequence, 0, lead.last_index, writable=True)
    emitted = lead.hear(peer, reply)
    for effect in emitted:
        if isinstance(effect, effects.Confirmed):
            waiting.confirmed(effect.number)
    return emitted


def test_a_read_waits_for_a_round_that_begins_after_it() -> None:
    lead = Lead("abc", answered="ac")
    waiting = _waiting(lead)
    first = Round(lead, waiting)
    assert _sent(first.effects, Heartbeat) == ["a", "c"]
    second = Round(lead, waiting)
    assert second.effects == []
    _answer(lead, waiting, "a", _sequence(first.effects, "a"))
    emitted = _answer(lead, waiting, "c", _sequence(first.effects, "c"))
    assert first.point == ReadPoint(1, lead.commit_index)
    assert not second.done(), "what was answered had left before the second read"
    assert _sent(emitted, Heartbeat) == ["a", "c"], "the next round begins for it"
    for peer in "ac":
        _answer(lead, waiting, peer, _sequence(emitted, peer))
    assert second.point == ReadPoint(1, lead.commit_index)
    assert len(waiting.waiting) == 0


def test_all_in_sync_and_who_is_being_added_confirm() -> None:
    lead = Lead("ab", answered="a")
    lead.match("c")
    lead.tick(60)
    assert lead.primary.in_sync.adding == "c"
    lead.promise("a")
    waiting = _waiting(lead)
    read = Round(lead, waiting)
    _answer(lead, waiting, "a", _sequence(read.effects, "a"))
    assert not read.done()
    _answer(lead, waiting, "c", _sequence(read.effects, "c"))
    assert read.point is not None


def test_the_answer_to_an_older_heartbeat_confirms_nothing() -> None:
    lead = Lead("ab", answered="a")
    older = _sequence(lead.tick(60), "a")
    waiting = _waiting(lead)
    read = Round(lead, waiting)
    _answer(lead, waiting, "a", older)
    assert not read.done()


def test_a_lost_heartbeat_is_made_up_for_by_the_next_regular_one() -> None:
    lead = Lead("ab", answered="a")
    waiting = _waiting(lead)
    read = Round(lead, waiting)
    regular = _sequence(lead.tick(60), "a")
    assert regular > _sequence(read.effects, "a")
    _answer(lead, waiting, "a", regular)
    assert read.point is not None


def test_who_is_alone_in_sync_is_confirmed_at_once() -> None:
    lead = Lead("b")
    waiting = _waiting(lead)
    read = Round(lead, waiting)
    assert read.point == ReadPoint(1, lead.commit_index)
    assert _sent(read.effects, Heartbeat) == []


def test_a_primary_that_is_handing_over_confirms_nothing() -> None:
    lead = Lead("ab", answered="a")
    waiting = _waiting(lead)
    assert lead.replica.start_handover("a", 500)[0] == ""
    read = Round(lead, waiting)
    _answer(lead, waiting, "a", _sequence(read.effects, "a"))
    assert not read.done()


def test_with_the_epoch_the_reads_end() -> None:
    lead = Lead("ab", answered="a")
    waiting = _waiting(lead)
    read = Round(lead, waiting)
    for effect in lead.hear("a", StaleEpoch(1, 2, "a")):
        if isinstance(effect, effects.StepDown):
            waiting.step_down()
    assert isinstance(read.problem, NotPrimaryError)
    late = Round(lead, waiting)
    assert isinstance(late.problem, NotPrimaryError)
    assert len(waiting.waiting) == 0


def test_reads_that_wait_no_more_are_forgotten_also_when_a_round_never_ends() -> None:
    lead = Lead("ab", answered="a")
    waiting = _waiting(lead)
    reads = [Round(lead, waiting) for _ in range(5)]
    for read in reads[1:]:
        read.gone = True
    waiting.expire()
    assert len(waiting.waiting) == 1


def test_who_has_gone_is_told_nothing() -> None:
    lead = Lead("ab", answered="a")
    waiting = _waiting(lead)
    gone, read = Round(lead, waiting), Round(lead, waiting)
    gone.gone = True
    emitted = _answer(lead, waiting, "a", _sequence(gone.effects, "a"))
    assert gone.point is None
    read.gone = True
    _answer(lead, waiting, "a", _sequence(emitted, "a"))
    assert read.point is None
    last = Round(lead, waiting)
    last.gone = True
    waiting.step_down()
    assert last.problem is None


def test_nobody_is_forgotten_who_waits() -> None:
    lead = Lead("ab", answered="a")
    waiting = _waiting(lead)
    waiting.expire()
    read = Round(lead, waiting)
    waiting.expire()
    assert len(waiting.waiting) == 1
    _answer(lead, waiting, "a", _sequence(read.effects, "a"))
    assert read.point is not None
