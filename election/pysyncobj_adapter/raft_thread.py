"""The Raft thread: ticks the core, carries requests in and answers out.

Requests wait here until the log answers them, whatever becomes of a single sending: each goes to
every new leader, and again after a while to the same one. The request id makes that harmless.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec

from election.agreement import AgreementFailedError
from election.pysyncobj_adapter.clock import monotonic
from election.pysyncobj_adapter.files import REAL_DISK, Disk
from election.pysyncobj_adapter.network import Network
from election.pysyncobj_adapter.raft_core import RaftCore
from election.pysyncobj_adapter.settings import AgreementSettings
from election.pysyncobj_adapter.storage import RaftStorage
from election.pysyncobj_adapter.view_machine import ReadRequest, ViewReply, encode_command
from election.view import View, ViewStep

MAX_PENDING_REQUESTS = 1024
_FIRST_RETRY_S = 0.1
_MAX_RETRY_S = 1.0

logger = logging.getLogger(__name__)


class AgreementStatus(msgspec.Struct, frozen=True):
    """How the consensus group looks from here. For people and tests: no authority (E2)."""

    leader: str | None
    term: int
    applied_index: int
    log_entries: int
    members: tuple[str, ...]
    connected: tuple[str, ...]
    voters: frozenset[str]
    founders: dict[str, str]
    steps: tuple[ViewStep, ...]


class RaftThreadListener(Protocol):
    """Who is told. Called on the Raft thread; must not raise."""

    def on_started(self) -> None:
        """The port is bound and the stored state is read."""

    def on_news(self, view: View | None, answers: list[ViewReply]) -> None:
        """A newer view, if any, and the answers to requests. Only after the member caught up."""

    def on_remembered(self, epoch: int, index: int) -> None:
        """Another member remembers that this node's data was committed up to there."""

    def on_failed(self, error: AgreementFailedError) -> None:
        """The member is broken, and the thread ends."""


class _Pending:
    """A request on its way."""

    def __init__(self, command: bytes) -> None:
        self.command = command
        self.sent_to: tuple[str, int] | None = None
        self.retry_at = 0.0
        self.retry_after_s = _FIRST_RETRY_S


class RaftThread:
    """One member on a thread of its own."""

    def __init__(
        self,
        settings: AgreementSettings,
        listener: RaftThreadListener,
        *,
        disk: Disk = REAL_DISK,
        network: Network | None = None,
    ) -> None:
        self.status: AgreementStatus | None = None
        self._status_facts: tuple[object, ...] = ()
        self.ticks = 0
        self.position = (0, 0)
        """(epoch, index) up to which this node's data is committed and durable; set by anybody."""
        self._settings = settings
        self._listener = listener
        self._disk = disk
        self._network = network
        self._mailbox: deque[Callable[[], None]] = deque()
        self._pending: dict[bytes, _Pending] = {}
        self._answers: list[ViewReply] = []
        self._catch_up_id = os.urandom(16)
        self._caught_up = False
        self._published_version = 0
        self._stopping = False
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._wake_lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=f"raft {settings.node_id}")
        self._core: RaftCore | None = None
        self._storage: RaftStorage | None = None

    # Called from any thread.

    def start(self) -> None:
        """Start the thread; `on_started` or `on_failed` tells how it went."""
        self._thread.start()

    def request(self, request_id: bytes, command: bytes) -> None:
        """Send a command until it is answered or forgotten."""
        self._post(lambda: self._add(request_id, command))

    def forget(self, request_id: bytes) -> None:
        """Send it no more. It may still be applied."""
        self._post(lambda: self._drop(request_id))

    def stop(self) -> None:
        """End the thread, and wait until port and files are free."""
        self._stopping = True
        self._wake()
        if self._thread.ident is not None:
            self._thread.join()
        with self._wake_lock:
            if self._wake_fd >= 0:
                os.close(self._wake_fd)
                self._wake_fd = -1

    def save_memory(self) -> None:
        """Write down what is remembered of the other members. Blocks on the disk."""
        if self._storage is not None:
            self._storage.marks.save()

    def _post(self, action: Callable[[], None]) -> None:
        self._mailbox.append(action)
        self._wake()

    def _wake(self) -> None:
        with self._wake_lock:
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    # The thread.

    def _run(self) -> None:
        storage: RaftStorage | None = None
        try:
            self._storage = storage = RaftStorage(self._settings, self._disk)
            self._core = core = RaftCore(self._settings, storage, self, self._network)
            core.watch(self._wake_fd, self._on_wake)
            # Between applying and waiting: an answer must not wait for the next event.
            core.addOnTickCallback(lambda: self._report(core))
            self._report(core)
            self._listener.on_started()
            self._add(self._catch_up_id, encode_command(ReadRequest(self._catch_up_id)))
            while not self._stopping:
                core.position = self.position
                self._send_pending(core)
                core.tick()
                self._drain()
        except AgreementFailedError as error:
            self._listener.on_failed(error)
        except Exception as error:
            # The state of Raft and disk is not known any more: stop, and restart from disk.
            logger.exception("the consensus member of %s failed", self._settings.node_id)
            failure = AgreementFailedError(f"the consensus member failed: {error!r}")
            failure.__cause__ = error
            self._listener.on_failed(failure)
        finally:
            if self._core is not None:
                self._core.close()
            if storage is not None:
                storage.close()

    def _on_wake(self, descr: int, _mask: int) -> None:
        os.eventfd_read(descr)

    def _drain(self) -> None:
        while self._mailbox:
            self._mailbox.popleft()()

    def _add(self, request_id: bytes, command: bytes) -> None:
        if len(self._pending) < MAX_PENDING_REQUESTS:
            self._pending[request_id] = _Pending(command)

    def _drop(self, request_id: bytes) -> None:
        self._pending.pop(request_id, None)

    def _send_pending(self, core: RaftCore) -> None:
        leader = core.leader_in_term
        if leader is None or not self._pending:
            return
        now = monotonic()
        for pending in self._pending.values():
            if pending.sent_to != leader:
                pending.retry_after_s = _FIRST_RETRY_S
            elif now < pending.retry_at:
                continue
            pending.sent_to = leader
            pending.retry_at = now + pending.retry_after_s
            pending.retry_after_s = min(2 * pending.retry_after_s, _MAX_RETRY_S)
            core.submit(pending.command)

    def on_applied(self, answer: ViewReply) -> None:
        """Keep the answer if somebody waits for it."""
        if self._pending.pop(answer.request_id, None) is None:
            return
        if answer.request_id == self._catch_up_id:
            self._caught_up = True
        else:
            self._answers.append(answer)

    def on_remembered(self, epoch: int, index: int) -> None:
        """Hand it on at once: before any answer or view that comes later (decision 18)."""
        self._listener.on_remembered(epoch, index)

    def on_restored(self) -> None:
        """Look whether a dump answers what is pending."""
        assert self._core is not None
        for request_id in list(self._pending):
            answer = self._core.machine.answer_to(request_id)
            if answer is not None:
                self.on_applied(answer)

    def _report(self, core: RaftCore) -> None:
        self.ticks += 1
        facts = core.status_facts()
        if facts != self._status_facts:
            self._status_facts = facts
            self.status = self._new_status(core)
        if not self._caught_up or not core.isReady():
            return
        view = core.machine.view
        is_newer = view is not None and view.version > self._published_version
        if is_newer or self._answers:
            answers, self._answers = self._answers, []
            if is_newer and view is not None:
                core.note_progress()  # before the data path rests on it
                self._published_version = view.version
            self._listener.on_news(view if is_newer else None, answers)

    @staticmethod
    def _new_status(core: RaftCore) -> AgreementStatus:
        leader = core.leader_in_term
        return AgreementStatus(
            None if leader is None else leader[0],
            int(core.raftCurrentTerm),
            int(core.raftLastApplied),
            core.log_entries,
            tuple(core.member_ids),
            tuple(core.connected_ids()),
            frozenset(core.machine.raft_members),
            core.founders,
            core.machine.steps,
        )
