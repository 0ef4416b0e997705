"""What the parts of one running node share: its views, consensus, replica, and links to others."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from datapath.clock import clock_ms
from datapath.errors import NotPrimaryError, OperationUnknownError
from datapath.execution.access_guard import AccessGuard
from datapath.node.engine import Engine
from datapath.node.views import Views
from datapath.operations import ArchiveState, Principal
from datapath.transport.caller import Caller
from datapath.transport.calls import (
    ArchivedNote,
    Call,
    Envelope,
    NoAnswerError,
    NoticeNote,
    NotSentError,
    Return,
    ViewNote,
    ViewReturn,
)
from datapath.transport.link import Link
from election.agreement import Agreement
from election.registry import PeerRegistry
from election.release import Release
from election.view import View

logger = logging.getLogger(__name__)

RETRY_INTERVAL_S = 0.05
"""How long to wait for a change (a view, a link) before trying again anyway."""
CALL_MARGIN_MS = 200
MAX_NOTICE_LENGTH = 500


class ArchiveProgress(Protocol):
    """What archives the log, and tells how far it is; see `cluster.archive.archiver`."""

    def state(self) -> ArchiveState | None:
        """Return how far the archive is; None: this node does not write it now."""

    def counters(self) -> Mapping[str, float]:
        """Numbers for metrics."""


class Context:
    """Made by `Gateway`. `engine` is None on a witness.

    `waits_for` says why this node knows no view yet, for who asks it. `is_alone`: this node took
    part before, and nobody who knows a view answers it. `archive` tells how far the archive is,
    if there is one.
    """

    def __init__(self, node_id: str, agreement: Agreement, cluster_id: str = "") -> None:
        self.node_id = node_id
        self.agreement = agreement
        self.views = Views(node_id, cluster_id)
        self.engine: Engine | None = None
        self.access: AccessGuard | None = None
        self.registry: PeerRegistry | None = None
        self.stopping = False
        self.waits_for = ""
        self.is_alone = False
        self.archive: ArchiveProgress | None = None
        self.forwarded_total = 0
        self.caller = Caller(self.note_change, self.take_note, self.tell_view, self.releases)
        self._changed = asyncio.Event()
        self._shared_version = 0

    # -- views

    def take_view(self, view: View) -> None:
        """Take a committed view, from consensus or from a peer that has it from there."""
        if self.views.newest is not None and self.views.is_news(view):
            self._tell_removed(self.views.newest, view)
        self.views.take(view)

    def share_view(self, view: View) -> None:
        """Take a view that this node has just got committed, and tell every peer.

        Also where consensus was faster to tell this node: it may not reach every other one.
        """
        if view.version > self._shared_version:
            self._shared_version = view.version
            for peer in self.caller.peers:
                self.caller.note(peer, ViewNote(view))
        self.take_view(view)

    def _tell_removed(self, before: View, after: View) -> None:
        """Tell who is no member any more, as long as there is a link to it."""
        for member in before.members:
            if after.member(member.id) is None:
                self.caller.note(member.id, ViewNote(after))

    def tell_view(self, link: Link) -> None:
        """Tell a member the view as soon as there is a link: each end does.

        A node that has moved learns it so: the others do not know yet where to dial.
        """
        view = self.views.newest
        if view is not None and view.member(link.peer) is not None:
            link.send(Envelope(0, ViewNote(view)))

    # -- who waits

    def note_change(self) -> None:
        """A view, a role or a link has changed: who waits may try again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_for_change(self, deadline_ms: float) -> None:
        """Wait for the next change, or `RETRY_INTERVAL_S`, or until the deadline."""
        changed = self._changed
        left_s = max(0.0, (deadline_ms - clock_ms()) / 1000)
        try:
            async with asyncio.timeout(min(RETRY_INTERVAL_S, left_s)):
                await changed.wait()
        except TimeoutError:
            pass

    # -- where this node stands

    @property
    def is_primary(self) -> bool:
        """Whether this node is the primary and serves under its leases right now."""
        return self.engine is not None and self.engine.replica.may_serve(clock_ms())

    def check_admin(self, caller: Principal | None) -> None:
        """Raise OperationError unless this primary knows that `caller` may change the cluster (A1).

        None is the node itself.
        """
        access, engine = self.access, self.engine
        if access is None or not access.is_on or caller is None:
            return
        if engine is None or not self.is_primary:
            raise self.no_primary("")
        engine.interpreter.check_admin(caller)

    def is_configured_admin(self, caller: Principal | None) -> bool:
        """Whether this node alone may let a caller change the cluster: there is nobody to ask (A1).

        A witness knows nothing of revoked tokens. None is the node itself.
        """
        access, engine = self.access, self.engine
        if access is None or not access.is_on or caller is None:
            return True
        return engine is not None and access.is_configured_admin(caller, engine.interpreter.stored)

    def replica_here(self) -> Engine:
        """Return the replica that runs on this node. Raises NotPrimaryError on a witness."""
        if self.engine is None:
            raise NotPrimaryError("no_primary", f"{self.node_id} is a witness")
        return self.engine

    def releases(self) -> Mapping[str, Release]:
        """Return what runs on this node and on those that are linked and have told it."""
        return self.registry.releases() if self.registry is not None else {}

    def has_no_vote(self, node: str) -> bool:
        """Whether consensus is known not to count that node's vote (yet, or any more)."""
        voters = self.agreement.voters
        return voters is not None and node not in voters

    def no_primary(self, last: str) -> NotPrimaryError:
        """Make the error that no primary could take it; `last`: how the last attempt ended."""
        views, primary = self.views, self.views.primary
        if views.is_removed:
            reason = f"{self.node_id} has been removed from the cluster: ask another node"
        elif views.newest is None:
            reason = "consensus has not been reached: check that a majority of the nodes is running"
            reason += f" ({self.waits_for})" if self.waits_for else ""
        elif self.engine is not None and primary == self.node_id:
            reason = self.engine.interpreter.why_not_serving()
        else:
            in_sync = ", ".join(views.newest.in_sync)
            reason = (
                f"{primary}, the primary of epoch {views.newest.epoch}, cannot be reached "
                f"from {self.node_id}; only a replica of its in-sync set ({in_sync}) may take "
                "over, and that needs a majority of the nodes"
            )
        detail = f"no primary was available in time: {reason}"
        if last and last != reason:
            detail += f" (last answer: {last})"
        return NotPrimaryError("no_primary", detail, primary)

    # -- what other nodes tell and are asked

    def take_note(self, note: Call | Return) -> None:
        """Take what needs no answer, from either end of a link."""
        match note:
            case ViewNote(view):
                self.take_view(view)
            case NoticeNote(text) if self.registry is not None:
                self.registry.notice(text[:MAX_NOTICE_LENGTH])
            case ArchivedNote(index) if self.engine is not None:
                self.engine.committed_log.archived(index)
            case _:
                pass

    def share_notices(self, registry: PeerRegistry) -> None:
        """Show what `registry` warns of in the status, and tell it to the other nodes."""
        self.registry = registry
        loop = asyncio.get_running_loop()
        registry.on_notice = lambda text: _post(loop, self._tell_notice, text)

    def _tell_notice(self, text: str) -> None:
        logger.error("%s", text)
        for peer in self.caller.peers:
            self.caller.note(peer, NoticeNote(text))

    async def ask_for_view(self, primary: str, call: Call, timeout_ms: int) -> View:
        """Ask the primary for a change whose answer is a view; take that."""
        if not primary:
            raise self.no_primary("")
        try:
            answer = await self.caller.call(primary, call, timeout_ms + CALL_MARGIN_MS)
        except NotSentError as problem:
            raise self.no_primary(str(problem)) from problem
        except NoAnswerError as problem:
            raise OperationUnknownError("unknown_outcome", str(problem)) from problem
        if not isinstance(answer, ViewReturn):
            raise OperationUnknownError("unknown_outcome", f"{primary} gave an invalid answer")
        self.take_view(answer.view)
        return answer.view


def _post(loop: asyncio.AbstractEventLoop, callback: Callable[[str], None], text: str) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
        loop.call_soon_threadsafe(callback, text)
