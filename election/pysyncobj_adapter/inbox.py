"""What a node hears of consensus, in the order in which it must, and what an answer means. Pure.

The Raft thread's news arrive here on the node's event loop (in the simulator: in turns of it).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from election.agreement import AgreementUnavailableError, Committed, Outcome, Refused, Unknown
from election.pysyncobj_adapter.view_machine import ViewReply
from election.view import View


class WaitingCaller(Protocol):
    """Who waits for the answer to a request: a future."""

    def done(self) -> bool:
        """Whether it waits no more."""

    def set_result(self, result: ViewReply, /) -> None:
        """Take the answer."""

    def set_exception(self, exception: AgreementUnavailableError, /) -> None:
        """Take the reason why there is none."""


def outcome_of(answer: ViewReply | str) -> Outcome:
    """Return what became of a proposal; a string says why there is no answer (E3)."""
    if isinstance(answer, str):
        return Unknown(answer)
    if answer.refusal is not None:
        return Refused(answer.view, answer.refusal)
    assert answer.view is not None
    return Committed(answer.view)


class Inbox:
    """`call_soon` calls back in a later turn of the loop, in order."""

    def __init__(self, call_soon: Callable[..., object]) -> None:
        self._call_soon = call_soon
        self._waiting: dict[bytes, WaitingCaller] = {}
        self._on_view: list[Callable[[View], None]] = []
        self._on_reminder: list[Callable[[int, int], None]] = []
        self.view: View | None = None

    def subscribe(self, on_view: Callable[[View], None]) -> None:
        """Call `on_view` with each newer view."""
        self._on_view.append(on_view)

    def on_reminder(self, callback: Callable[[int, int], None]) -> None:
        """Call `callback` with (epoch, index) that another member remembers of this node."""
        self._on_reminder.append(callback)

    def expect(self, request_id: bytes, waiting: WaitingCaller) -> None:
        """Give `waiting` the answer to that request."""
        self._waiting[request_id] = waiting

    def forget(self, request_id: bytes) -> None:
        """Nobody waits for it any more."""
        self._waiting.pop(request_id, None)

    def take_news(self, view: View | None, answers: list[ViewReply]) -> None:
        """Publish the view first: who proposed it must see it when the answer comes."""
        if view is not None:
            self.view = view
            for on_view in self._on_view:
                self._call_soon(on_view, view)
        for answer in answers:
            waiting = self._waiting.get(answer.request_id)
            if waiting is not None and not waiting.done():
                waiting.set_result(answer)

    def take_reminder(self, epoch: int, index: int) -> None:
        """Tell it at once: an answer of `take_news` wakes who waits for it only later."""
        for callback in self._on_reminder:
            callback(epoch, index)

    def give_up(self, reason: str) -> None:
        """No answers come any more."""
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(AgreementUnavailableError(reason))
