"""The asking side of the request links: calls with an id, and their answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from datapath.errors import OperationError, OperationNotAppliedError, OverloadedError
from datapath.transport.calls import (
    Call,
    Envelope,
    ErrorReturn,
    NoAnswerError,
    NotSentError,
    Return,
    decode_call,
    encode_call,
    make_error,
)
from datapath.transport.link import Link
from election.release import FIRST_LEVEL, Release, understands

MAX_OPEN_CALLS = 50_000


Outcome = Call | Return | OperationError | NoAnswerError
"""What has become of a call: its answer (a Return, but no ErrorReturn, if the other end keeps the
protocol), the error that was the answer, or that there will be none."""


class Caller:
    """The asking side of the request links: one link per peer, many calls on it at once.

    `releases` says what the linked nodes run.
    """

    def __init__(
        self,
        on_change: Callable[[], None],
        on_note: Callable[[Call | Return], None],
        greet: Callable[[Link], None],
        releases: Callable[[], Mapping[str, Release]] = dict,
    ) -> None:
        self._links: dict[str, Link] = {}
        self._open: dict[int, tuple[str, Callable[[Outcome], None]]] = {}
        self._next_id = 1
        self._on_change = on_change
        self._on_note = on_note
        self._greet = greet
        self._releases = releases

    # The LinkHandler of outgoing links of the kind "request".

    encode, decode = staticmethod(encode_call), staticmethod(decode_call)

    def on_open(self, link: Link) -> None:
        """A link is up: who waits for one may try."""
        self._links[link.peer] = link
        self._greet(link)
        self._on_change()

    def on_messages(self, link: Link, messages: list[Envelope]) -> None:
        """Answers, and notes, which answer nothing."""
        del link
        for envelope in messages:
            if envelope.id == 0:
                self._on_note(envelope.body)
                continue
            _, on_outcome = self._open.pop(envelope.id, ("", None))
            if on_outcome is not None:
                body = envelope.body
                on_outcome(make_error(body) if isinstance(body, ErrorReturn) else body)

    def on_close(self, link: Link, reason: str) -> None:
        """Calls on it that have no answer will get none."""
        if self._links.get(link.peer) is link:
            del self._links[link.peer]
        lost = [number for number, (peer, _) in self._open.items() if peer == link.peer]
        for number in lost:
            on_outcome = self._open.pop(number)[1]
            on_outcome(NoAnswerError(f"the link to {link.peer} was lost: {reason}"))
        self._on_change()

    def reaches(self, peer: str) -> bool:
        """Whether there is a link to `peer`."""
        return peer in self._links

    @property
    def peers(self) -> list[str]:
        """The nodes with a link."""
        return sorted(self._links)

    def note(self, peer: str, body: Call) -> None:
        """Send what needs no answer, if there is a link, and the node understands it (U3)."""
        link = self._links.get(peer)
        if link is not None and self._is_understood(peer, body):
            link.send(Envelope(0, body))

    def _is_understood(self, peer: str, body: Call) -> bool:
        since = body.since
        return since <= FIRST_LEVEL or understands(self._releases().get(peer), since)

    async def call(self, peer: str, body: Call, timeout_ms: float) -> Return:
        """Ask `peer` and return its answer; an ErrorReturn is raised as its error.

        Raises:
            NotSentError: no link; certainly not carried out.
            NoAnswerError: link lost or `timeout_ms` passed; perhaps carried out.
            OperationError: the answer was an error.

        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def settle(outcome: Outcome) -> None:
            if future.done():
                return  # its time is up
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        number = self.begin(peer, body, settle)
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await future  # type: ignore[no-any-return]
        except TimeoutError:
            raise NoAnswerError(f"{peer} did not answer within {timeout_ms:.0f} ms") from None
        finally:
            self.forget(number)

    def begin(self, peer: str, body: Call, on_outcome: Callable[[Outcome], None]) -> int:
        """Ask `peer`, and return the call's number. It has no time-out: `forget` it.

        `on_outcome` is called later, never before this returns, unless it is forgotten.
        Raises as `call` where nothing was sent.
        """
        link = self._links.get(peer)
        if link is None:
            raise NotSentError(f"no link to {peer}")
        if not self._is_understood(peer, body):
            raise OperationNotAppliedError(
                "upgrade_pending",
                f"{peer} runs a release without this, or has not told which one it runs: "
                "upgrade it first (`onecopy status`)",
            )
        if len(self._open) >= MAX_OPEN_CALLS:
            raise OverloadedError(
                "overloaded", "too many calls to other nodes are pending: try again later"
            )
        number = self._next_id
        self._next_id += 1
        self._open[number] = (peer, on_outcome)
        link.send(Envelope(number, body))
        return number

    def forget(self, number: int) -> None:
        """Nobody waits for that call's answer any more."""
        self._open.pop(number, None)
