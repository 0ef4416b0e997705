"""The interface to consensus, for the rest of onecopy.

Two implementations: the hardened PySyncObj adapter (`election.pysyncobj_adapter`) in production,
and `election.static` for tests that need no consensus.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from election.view import View, ViewChange, ViewStep


class Committed(msgspec.Struct, frozen=True):
    """The change was applied; `view` is the view that it made."""

    view: View


class Refused(msgspec.Struct, frozen=True):
    """The change was not and will never be applied; `view` is the one that refused it."""

    view: View | None
    reason: str


class Unknown(msgspec.Struct, frozen=True):
    """The change may or may not have been applied, or may still be (E3)."""

    reason: str


Outcome = Committed | Refused | Unknown


class AgreementUnavailableError(Exception):
    """Consensus did not answer in time. Nothing may be concluded about the view."""


class AgreementFailedError(Exception):
    """The local member of consensus failed (bad journal, dead listener): the node must stop."""


class AgreementDamagedError(AgreementFailedError):
    """The state of the local member is damaged: restarting it unchanged will not help."""


class Agreement(Protocol):
    """Proposes changes of the view and reports the committed one.

    All methods are called from one asyncio loop, and call back on it.
    """

    @property
    def view(self) -> View | None:
        """The newest committed view this node has applied; may be stale, never uncommitted.

        None until this node has caught up once (`isReady` and a committed no-op).
        """

    @property
    def voters(self) -> frozenset[str] | None:
        """The nodes whose votes count in consensus, as applied on this node; may be stale.

        They follow the view's members, one by one. None until this node has caught up once.
        """

    @property
    def heard(self) -> frozenset[str]:
        """The nodes that consensus has an open link with, this one included."""

    @property
    def founders(self) -> dict[str, str]:
        """The members with which consensus began, and their raft addresses: for a joining node."""

    @property
    def steps(self) -> tuple[ViewStep, ...]:
        """The last changes of the view that this node has applied, oldest first; for people."""

    def subscribe(self, on_view: Callable[[View], None]) -> None:
        """Call `on_view` with each newer view, in order of versions (some may be skipped)."""

    def on_failure(self, callback: Callable[[AgreementFailedError], None]) -> None:
        """Call `callback` once if the local member breaks for good: the process must exit."""

    def on_reminder(self, callback: Callable[[int, int], None]) -> None:
        """Call `callback` with (epoch, index) up to which another member remembers this node's
        data to have been committed here: before any view or answer that rests on that member.
        """

    def note_committed(self, epoch: int, index: int) -> None:
        """Have the other members remember that this node's data is committed up to there.

        It must be durable here: a replica that lacks it later has gone back (decision 18).
        """

    async def start(self) -> None:
        """Join the consensus group and return; `view` appears when this node has caught up."""

    async def stop(self) -> None:
        """Leave and free the port, thread and files."""

    async def propose(self, change: ViewChange, expected_version: int, timeout_ms: int) -> Outcome:
        """Propose one change. Never raises; a time-out or a lost connection is `Unknown`."""

    async def read_view(self, timeout_ms: int) -> View | None:
        """Return the view after a committed no-op: nothing committed before the call is missing.

        Returns None when the cluster has not been bootstrapped.

        Raises:
            AgreementUnavailableError: no commit within `timeout_ms`.

        """
