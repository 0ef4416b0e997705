"""Agreement without consensus: one shared object in memory, for tests of what stands on it.

A `StaticGroup` holds the view; each node's `StaticAgreement` proposes to it. Changes are judged by
the same `apply_change` as in production. Nothing is random, and time passes only through the
injected `sleep`, so a test that sets the faults decides every outcome.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable

import msgspec

from election.agreement import (
    AgreementFailedError,
    AgreementUnavailableError,
    Committed,
    Outcome,
    Refused,
    Unknown,
)
from election.view import (
    MAX_REMEMBERED_STEPS,
    View,
    ViewChange,
    ViewRefusal,
    ViewStep,
    apply_change,
    step_of,
)


class Fault(enum.Enum):
    """What happens to a node's proposals. All but NONE answer `Unknown` (E3)."""

    NONE = "none"
    CUT_OFF = "cut off"  # no effect; the node sees no new views, and its reads fail
    LOST = "lost"  # no effect, but views still arrive
    ANSWER_LOST = "answer lost"  # applied, but the proposer is not told
    LATE = "late"  # applied only when `StaticGroup.deliver_late` is called


class _Late(msgspec.Struct, frozen=True):
    change: ViewChange
    expected_version: int


class StaticGroup:
    """The consensus group: the one view, and the nodes that attached to it in order."""

    def __init__(
        self,
        view: View | None = None,
        *,
        delay_ms: float = 0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.view = view
        self.steps: tuple[ViewStep, ...] = ()
        self.delay_ms = delay_ms
        self._sleep = sleep
        self._nodes: dict[str, StaticAgreement] = {}
        self._late: list[_Late] = []

    def agreement(self, node_id: str) -> StaticAgreement:
        """Return the node's agreement, made at the first call."""
        if node_id not in self._nodes:
            self._nodes[node_id] = StaticAgreement(self, node_id)
        return self._nodes[node_id]

    def set_fault(self, node_id: str, fault: Fault) -> None:
        """Set what happens to the node's proposals from now on; NONE heals it."""
        node = self.agreement(node_id)
        node._fault = fault
        node._catch_up()

    def fail(self, node_id: str, reason: str) -> None:
        """Break the node's member for good: its `on_failure` callbacks are called."""
        self.agreement(node_id)._fail(AgreementFailedError(reason))

    def deliver_late(self) -> list[View | ViewRefusal]:
        """Apply, in order, the proposals made under `Fault.LATE`; return what became of each."""
        late, self._late = self._late, []
        return [self._apply(item.change, item.expected_version) for item in late]

    async def _pass_time(self) -> None:
        await self._sleep(self.delay_ms / 1000)

    def _apply(self, change: ViewChange, expected_version: int) -> View | ViewRefusal:
        result = apply_change(self.view, change, expected_version)
        if isinstance(result, View):
            step = step_of(self.view, change, result)
            if step is not None:
                self.steps = (*self.steps, step)[-MAX_REMEMBERED_STEPS:]
            self.view = result
            for node in self._nodes.values():
                node._catch_up()
        return result


class StaticAgreement:
    """One node's `Agreement`. Made by `StaticGroup.agreement`."""

    def __init__(self, group: StaticGroup, node_id: str) -> None:
        self.node_id = node_id
        self._group = group
        self._fault = Fault.NONE
        self._view: View | None = None
        self._running = False
        self._on_view: list[Callable[[View], None]] = []
        self._on_failure: list[Callable[[AgreementFailedError], None]] = []

    @property
    def view(self) -> View | None:
        """The newest view that this node has seen."""
        return self._view

    @property
    def voters(self) -> frozenset[str] | None:
        """The members of the view that this node has seen: they all vote at once."""
        return None if self._view is None else frozenset(item.id for item in self._view.members)

    @property
    def heard(self) -> frozenset[str]:
        """Every node of the group that is not cut off."""
        nodes = self._group._nodes.items()
        return frozenset(name for name, node in nodes if node._fault is not Fault.CUT_OFF)

    @property
    def founders(self) -> dict[str, str]:
        """Nobody: there is no log."""
        return {}

    @property
    def steps(self) -> tuple[ViewStep, ...]:
        """The changes that the group has agreed on."""
        return self._group.steps

    def subscribe(self, on_view: Callable[[View], None]) -> None:
        """Call `on_view` with each newer view, from the event loop's next round on."""
        self._on_view.append(on_view)

    def on_failure(self, callback: Callable[[AgreementFailedError], None]) -> None:
        """Call `callback` when `StaticGroup.fail` breaks this node."""
        self._on_failure.append(callback)

    def on_reminder(self, callback: Callable[[int, int], None]) -> None:
        """Never call it: nothing here is ever put back."""

    def note_committed(self, epoch: int, index: int) -> None:
        """Nobody remembers it."""

    async def start(self) -> None:
        """See the group's view from now on."""
        self._running = True
        self._catch_up()

    async def stop(self) -> None:
        """See and propose nothing from now on."""
        self._running = False

    async def propose(self, change: ViewChange, expected_version: int, timeout_ms: int) -> Outcome:
        """Propose one change, under the fault that is set when the delay is over."""
        del timeout_ms  # Nothing here takes longer than the delay.
        await self._group._pass_time()
        if not self._running:
            return Unknown("this agreement is stopped")
        fault = self._fault
        if fault in (Fault.CUT_OFF, Fault.LOST):
            return Unknown(f"the proposal was {fault.value}")
        if fault is Fault.LATE:
            self._group._late.append(_Late(change, expected_version))
            return Unknown("the proposal is late")
        result = self._group._apply(change, expected_version)
        if fault is Fault.ANSWER_LOST:
            return Unknown("the answer was lost")
        if isinstance(result, ViewRefusal):
            return Refused(self._group.view, result.reason)
        return Committed(result)

    async def read_view(self, timeout_ms: int) -> View | None:
        """Return the group's view.

        Raises:
            AgreementUnavailableError: the node is cut off or stopped.

        """
        del timeout_ms
        await self._group._pass_time()
        if not self._running or self._fault is Fault.CUT_OFF:
            raise AgreementUnavailableError(f"{self.node_id} is cut off from the group")
        self._catch_up()
        return self._group.view

    def _catch_up(self) -> None:
        view = self._group.view
        if view is None or not self._running or self._fault is Fault.CUT_OFF:
            return
        if self._view is not None and self._view.version >= view.version:
            return
        self._view = view
        for on_view in self._on_view:
            # Never inside the proposer's own call: production has no such re-entrance either.
            asyncio.get_running_loop().call_soon(on_view, view)

    def _fail(self, error: AgreementFailedError) -> None:
        self._running = False
        for callback in self._on_failure:
            asyncio.get_running_loop().call_soon(callback, error)
