"""`Agreement` on PySyncObj: what the rest of onecopy holds in its hands."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable

from election.agreement import (
    AgreementFailedError,
    AgreementUnavailableError,
    Outcome,
    Refused,
)
from election.pysyncobj_adapter.inbox import Inbox, outcome_of
from election.pysyncobj_adapter.raft_thread import AgreementStatus, RaftThread
from election.pysyncobj_adapter.settings import AgreementSettings
from election.pysyncobj_adapter.view_machine import (
    MAX_COMMAND_BYTES,
    ProposeRequest,
    ReadRequest,
    ViewReply,
    encode_command,
)
from election.view import View, ViewChange, ViewStep

_WATCH_INTERVAL_S = 0.5
_SAVE_INTERVAL_S = 5.0
"""How often what is remembered of the other members is written down, if it has changed."""


class PySyncObjAgreement:
    """One node's member of the consensus group. Start and stop it once, on one event loop.

    Raft runs on a thread of its own, which touches the loop only by `call_soon_threadsafe`.
    """

    def __init__(self, settings: AgreementSettings) -> None:
        self._settings = settings
        self._runner = RaftThread(settings, self)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started: asyncio.Future[None] | None = None
        self._watches: list[asyncio.Task[None]] = []
        self._inbox = Inbox(lambda *call: self._loop_of().call_soon(*call))
        self._on_failure: list[Callable[[AgreementFailedError], None]] = []
        self._failure: AgreementFailedError | None = None
        self._stopped = False

    @property
    def view(self) -> View | None:
        """The newest committed view applied here; None until this node has caught up once."""
        return self._inbox.view

    @property
    def status(self) -> AgreementStatus | None:
        """How the group looks from here: for people and tests, never for a decision (E2)."""
        return self._runner.status

    @property
    def voters(self) -> frozenset[str] | None:
        """The Raft members whose change has been applied here; None until it has caught up."""
        status = self._runner.status
        return None if status is None or self.view is None else status.voters

    @property
    def heard(self) -> frozenset[str]:
        """The members with an open link, and this one."""
        status = self._runner.status
        return frozenset((self._settings.node_id, *(status.connected if status else ())))

    @property
    def founders(self) -> dict[str, str]:
        """The members with which the group's log began."""
        status = self._runner.status
        return dict(status.founders) if status is not None else {}

    @property
    def steps(self) -> tuple[ViewStep, ...]:
        """The last changes of the view that were applied here, oldest first."""
        status = self._runner.status
        return status.steps if status is not None else ()

    def subscribe(self, on_view: Callable[[View], None]) -> None:
        """Call `on_view` on the loop with each newer view that this node applies."""
        self._inbox.subscribe(on_view)

    def on_failure(self, callback: Callable[[AgreementFailedError], None]) -> None:
        """Call `callback` once if this member breaks after it has started."""
        self._on_failure.append(callback)
        if self._failure is not None:
            self._loop_of().call_soon(callback, self._failure)

    def on_reminder(self, callback: Callable[[int, int], None]) -> None:
        """Call `callback` with (epoch, index) that another member remembers of this node's data.

        On the loop, before any view or answer that consensus gave after it.
        """
        self._inbox.on_reminder(callback)

    def note_committed(self, epoch: int, index: int) -> None:
        """Have the other members remember how far this node's data is, by and by."""
        self._runner.position = (epoch, index)

    async def start(self) -> None:
        """Bind the port, read the stored state and join.

        Raises:
            AgreementFailedError: a subclass of it says why this node cannot take part.

        """
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.create_future()
        self._runner.start()
        try:
            await self._started
        except BaseException:
            await self.stop()
            raise
        self._watches = [
            self._loop.create_task(self._watch_ticks()),
            self._loop.create_task(self._save_memory()),
        ]

    async def stop(self) -> None:
        """Leave, and return when the port, the thread and the files are free. Idempotent."""
        self._stopped = True
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        self._watches = []
        await asyncio.to_thread(self._runner.stop)
        self._inbox.give_up("this agreement was stopped")

    async def propose(self, change: ViewChange, expected_version: int, timeout_ms: int) -> Outcome:
        """Propose one change; repeated under one request id until `timeout_ms` has passed."""
        request_id = os.urandom(16)
        try:
            at_ms = int(time.time() * 1000)
            command = encode_command(ProposeRequest(request_id, expected_version, change, at_ms))
        except (TypeError, ValueError, OverflowError) as error:
            return Refused(self.view, f"the change cannot be encoded: {error}")
        if len(command) > MAX_COMMAND_BYTES:
            return Refused(self.view, f"the change is larger than {MAX_COMMAND_BYTES} bytes")
        return outcome_of(await self._request(request_id, command, timeout_ms))

    async def read_view(self, timeout_ms: int) -> View | None:
        """Return the view after a committed no-op; None before the bootstrap.

        Raises:
            AgreementUnavailableError: no commit within `timeout_ms`.

        """
        request_id = os.urandom(16)
        answer = await self._request(
            request_id, encode_command(ReadRequest(request_id)), timeout_ms
        )
        if isinstance(answer, str):
            raise AgreementUnavailableError(answer)
        return answer.view

    async def _request(self, request_id: bytes, command: bytes, timeout_ms: int) -> ViewReply | str:
        """Return the answer, or why there is none (the request may be applied all the same)."""
        if self._loop is None or self._stopped or self._failure is not None:
            return "this agreement is not running"
        waiting: asyncio.Future[ViewReply] = self._loop.create_future()
        self._inbox.expect(request_id, waiting)
        self._runner.request(request_id, command)
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await waiting
        except TimeoutError:
            return f"no agreement within {timeout_ms} ms"
        except AgreementUnavailableError as error:
            return str(error)
        finally:
            self._inbox.forget(request_id)
            self._runner.forget(request_id)

    # Called by the Raft thread: hand over to the loop, and never raise.

    def on_started(self) -> None:
        """Let `start` return."""
        self._post(self._note_started)

    def on_news(self, view: View | None, answers: list[ViewReply]) -> None:
        """Publish the view first: who proposed it must see it when the answer comes."""
        self._post(self._note_news, view, answers)

    def on_remembered(self, epoch: int, index: int) -> None:
        """Tell what another member remembers of this node's data."""
        self._post(self._note_reminder, epoch, index)

    def on_failed(self, error: AgreementFailedError) -> None:
        """Report the failure."""
        self._post(self._note_failure, error)

    def _post(self, callback: Callable[..., None], *args: object) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # The loop has been closed: nobody is left to tell.
            self._loop.call_soon_threadsafe(callback, *args)

    # On the loop.

    def _note_started(self) -> None:
        if self._started is not None and not self._started.done():
            self._started.set_result(None)

    def _note_news(self, view: View | None, answers: list[ViewReply]) -> None:
        if not self._stopped:
            self._inbox.take_news(view, answers)

    def _note_reminder(self, epoch: int, index: int) -> None:
        if not self._stopped:
            self._inbox.take_reminder(epoch, index)

    def _note_failure(self, error: AgreementFailedError) -> None:
        if self._failure is not None or self._stopped:
            return
        self._failure = error
        self._inbox.give_up(str(error))
        if self._started is not None and not self._started.done():
            self._started.set_exception(error)
            return
        for callback in self._on_failure:
            self._loop_of().call_soon(callback, error)

    def _loop_of(self) -> asyncio.AbstractEventLoop:
        assert self._loop is not None
        return self._loop

    async def _save_memory(self) -> None:
        while True:
            await asyncio.sleep(_SAVE_INTERVAL_S)
            await asyncio.to_thread(self._runner.save_memory)

    async def _watch_ticks(self) -> None:
        """Report a Raft thread that makes no progress while this loop does."""
        loop = self._loop_of()
        ticks, silent_s, before = -1, 0.0, loop.time()
        while True:
            await asyncio.sleep(_WATCH_INTERVAL_S)
            # A stalled loop says nothing about the thread: count at most one interval at a time.
            silent_s += min(loop.time() - before, _WATCH_INTERVAL_S)
            before = loop.time()
            if self._runner.ticks != ticks:
                ticks, silent_s = self._runner.ticks, 0.0
            elif silent_s * 1000 >= self._settings.stall_limit_ms:
                reason = f"the consensus thread has made no progress for {silent_s:.1f} s"
                self._note_failure(AgreementFailedError(reason))
                return
