"""What a node hears of consensus, and in which order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pytest

from election.agreement import AgreementUnavailableError, Committed, Refused, Unknown
from election.pysyncobj_adapter.inbox import Inbox, outcome_of
from election.pysyncobj_adapter.view_machine import ViewReply
from election.view import View

VIEW = View(cluster_id="c", epoch=1, version=1, primary="a", in_sync=("a",), members=())


class _Waiting:
    """Notes what it is given, in a turn of its own, as a task that awaits a future does."""

    def __init__(self, turns: deque[Callable[[], object]], heard: list[object]) -> None:
        self._turns = turns
        self._heard = heard
        self._done = False

    def done(self) -> bool:
        return self._done

    def set_result(self, result: ViewReply, /) -> None:
        self._done = True
        self._turns.append(lambda: self._heard.append(result))

    def set_exception(self, exception: AgreementUnavailableError, /) -> None:
        self._done = True
        self._turns.append(lambda: self._heard.append(str(exception)))


class TestInbox:
    def setup_method(self) -> None:
        self.turns: deque[Callable[[], object]] = deque()
        self.heard: list[object] = []
        self.inbox = Inbox(lambda call, *args: self.turns.append(lambda: call(*args)))
        self.inbox.subscribe(self.heard.append)
        self.inbox.on_reminder(lambda *mark: self.heard.append(mark))
        self.inbox.expect(b"r", _Waiting(self.turns, self.heard))

    def _turn(self) -> None:
        while self.turns:
            self.turns.popleft()()

    def test_who_proposed_hears_of_the_view_before_the_answer(self) -> None:
        answer = ViewReply(b"r", VIEW)
        self.inbox.take_news(VIEW, [answer])
        assert self.inbox.view is VIEW
        self._turn()
        assert self.heard == [VIEW, answer]

    def test_a_reminder_comes_before_the_answers_after_it(self) -> None:
        answer = ViewReply(b"r", VIEW)
        self.inbox.take_reminder(2, 7)
        self.inbox.take_news(None, [answer])
        self._turn()
        assert self.heard == [(2, 7), answer]

    def test_an_answer_that_nobody_waits_for_is_dropped(self) -> None:
        self.inbox.forget(b"r")
        self.inbox.take_news(None, [ViewReply(b"r", VIEW), ViewReply(b"other", VIEW)])
        self._turn()
        assert self.heard == []

    def test_an_answer_that_comes_twice_is_given_once(self) -> None:
        for _ in range(2):
            self.inbox.take_news(None, [ViewReply(b"r", VIEW)])
        self.inbox.give_up("this agreement was stopped")
        self._turn()
        assert self.heard == [ViewReply(b"r", VIEW)]

    def test_who_waits_at_the_end_is_told_why_there_is_no_answer(self) -> None:
        self.inbox.give_up("this agreement was stopped")
        self._turn()
        assert self.heard == ["this agreement was stopped"]


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (ViewReply(b"r", VIEW), Committed(VIEW)),
        (ViewReply(b"r", VIEW, "no"), Refused(VIEW, "no")),
        (ViewReply(b"r", None, "no"), Refused(None, "no")),
        ("no agreement within 5 ms", Unknown("no agreement within 5 ms")),
    ],
)
def test_what_an_answer_means(answer: ViewReply | str, outcome: object) -> None:
    assert outcome_of(answer) == outcome
