"""Who is a member, and changes of that: asked for by operators, or by nodes that come in or move.

The rules are `datapath.node.membership`, and what becomes of one change is decided by
`datapath.node.member_change`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import msgspec

from datapath.clock import clock_ms
from datapath.errors import NotPrimaryError, OperationError, RejectedError
from datapath.node.context import Context
from datapath.node.member_change import (
    MemberChange,
    addition,
    change_of_addresses,
    check_join,
    raised_level,
    removal,
)
from datapath.node.membership import Facts, MembershipRefusal, refusals, unjudged, without_a_primary
from datapath.operations import Principal
from datapath.transport.calls import (
    FinishUpgradeCall,
    HelloReturn,
    JoinReturn,
    NoAnswerError,
    NotSentError,
    PingCall,
    PingReturn,
    RemoveCall,
)
from election.agreement import AgreementUnavailableError, Committed, Outcome, Refused
from election.identity import Addresses
from election.release import LEVEL, Release, unsupported
from election.view import Member, View

logger = logging.getLogger(__name__)

PING_TIMEOUT_MS = 500
"""A node that does not answer within this time counts as dead when one is to be removed."""
PROPOSAL_TIMEOUT_MS = 1000
"""How long one proposal runs; then the view, and for a removal the nodes, are looked at anew."""
CONFIRM_TIMEOUT_MS = 400
"""How long a node that asks whether it was removed makes this one ask consensus."""
RELEASE_LOOKS = 40
RELEASE_INTERVAL_MS = 50
"""A node tells what it runs on its consensus link, which may open after the others: so often, and
at such intervals, is looked for it before it counts as unknown."""


class MemberAdmin:
    """Changes of the members, at one node.

    `pin` remembers another node's data id and says whether it is the known one.
    """

    def __init__(
        self, context: Context, pin: Callable[[str, str], bool], min_in_sync: int = 1
    ) -> None:
        self._context = context
        self._pin = pin
        self._min_in_sync = min_in_sync

    # -- removals

    async def remove(
        self,
        node: str,
        timeout_ms: int,
        *,
        force: bool = False,
        asked_by: str = "",
        caller: Principal | None = None,
    ) -> View:
        """Take a node out of the cluster for good, as the primary judges (rules M1, A1).

        Without a primary nobody knows who holds what: then only force removes, and only for the
        administrator of this node's file.
        """
        context, primary = self._context, self._context.views.primary
        if context.views.newest is None or context.views.is_removed:
            raise context.no_primary("")
        is_here = primary == context.node_id and context.engine is not None
        if is_here and (context.is_primary or not force):
            context.check_admin(caller)
            return await self.remove_here(node, timeout_ms, force=force, asked_by=asked_by)
        try:
            if not is_here:
                call = RemoveCall(node, timeout_ms, force, asked_by, caller)
                return await context.ask_for_view(primary, call, timeout_ms)
        except NotPrimaryError as problem:
            if not force:
                raise NotPrimaryError(
                    "no_primary", without_a_primary(node, str(problem))
                ) from problem
        if not context.is_configured_admin(caller):
            raise context.no_primary("")
        return await self.remove_here(node, timeout_ms, force=True, asked_by=asked_by)

    async def remove_here(self, node: str, timeout_ms: int, *, force: bool, asked_by: str) -> View:
        """Judge a removal by what can be seen now, and propose it."""
        who = asked_by or "another node"
        change = removal(node, clock_ms() + timeout_ms, force=force)

        async def look(view: View) -> list[MembershipRefusal]:
            return await self._against_removal(view, node)

        try:
            view = await self._carry_out(change, look)
        except RejectedError as problem:
            logger.warning("removal of %s, requested by %s: refused (%s)", node, who, problem.code)
            raise
        forced = " by force" if change.forced else ""
        logger.warning("%s was removed from the cluster%s, requested by %s", node, forced, who)
        return view

    async def _against_removal(self, view: View, node: str) -> list[MembershipRefusal]:
        context, engine = self._context, self._context.engine
        if engine is None or not context.is_primary:
            return unjudged(view, node, str(context.no_primary("")))
        live = await self._live(view)
        voters = context.agreement.voters
        facts = Facts(
            live=live,
            voters=frozenset(member.id for member in view.members) if voters is None else voters,
            min_in_sync=self._min_in_sync,
            may_lack_entries=engine.replica.state.tail_cut or engine.replica.state.incomplete,
        )
        return refusals(view, facts, node)

    async def _live(self, view: View) -> frozenset[str]:
        """Return who has just answered, and is linked in consensus: the others count as dead."""
        context = self._context
        others = [member.id for member in view.members if member.id != context.node_id]
        answered = await asyncio.gather(*map(self._answers, others))
        live = {node for node, alive in zip(others, answered, strict=True) if alive}
        return frozenset(live & context.agreement.heard) | {context.node_id}

    async def _answers(self, node: str) -> bool:
        try:
            answer = await self._context.caller.call(node, PingCall(), PING_TIMEOUT_MS)
        except (NotSentError, NoAnswerError, OperationError):
            return False
        return isinstance(answer, PingReturn)

    # -- additions and moves

    async def move(
        self, node: str, addresses: Addresses, timeout_ms: int, *, asked_by: str = ""
    ) -> View:
        """Have the cluster agree on other addresses for a member; "" leaves one as it is."""
        logger.info("move of %s to %s, requested by %s", node, addresses, asked_by or "a node")
        return await self._carry_out(change_of_addresses(node, addresses, clock_ms() + timeout_ms))

    async def add(
        self,
        member: Member,
        timeout_ms: int,
        *,
        anew: bool = True,
        release: Release | None = None,
    ) -> View:
        """Make a node a member, or register the disk of one that is.

        Without `anew` a node that is no member (any more) does not become one. Raises
        RejectedError if it was removed before: by the view that the change is made for, which may
        be newer than the one that this node knew when it was asked.
        """
        change = addition(member, clock_ms() + timeout_ms, anew=anew, release=release)
        return await self._carry_out(change)

    # -- upgrades

    async def finish_upgrade(
        self, timeout_ms: int, *, asked_by: str = "", caller: Principal | None = None
    ) -> View:
        """Raise the cluster's level to that of the primary's release (rules U2, A1)."""
        context, primary = self._context, self._context.views.primary
        if context.views.newest is None or context.views.is_removed:
            raise context.no_primary("")
        if primary == context.node_id and context.engine is not None:
            context.check_admin(caller)
            return await self.finish_upgrade_here(timeout_ms, asked_by)
        timeout_ms = await self._hear_releases([primary] if primary else [], timeout_ms)
        call = FinishUpgradeCall(timeout_ms, asked_by, caller)
        return await context.ask_for_view(primary, call, timeout_ms)

    async def finish_upgrade_here(self, timeout_ms: int, asked_by: str) -> View:
        """Propose this release's level, if everybody is known to support it."""
        view = self._context.views.newest
        members = [] if view is None else [member.id for member in view.members]
        timeout_ms = await self._hear_releases(members, timeout_ms)
        change = raised_level(LEVEL, self._context.releases, clock_ms() + timeout_ms)
        view = await self._carry_out(change)
        who = asked_by or "another node"
        logger.warning("the cluster is at level %d, requested by %s", view.level, who)
        return view

    async def _hear_releases(self, nodes: list[str], timeout_ms: int) -> int:
        """Wait a moment for nodes that have just come back to tell which release they run.

        Returns what is left of the time; at least half of it.
        """
        looks = min(RELEASE_LOOKS, timeout_ms // 2 // RELEASE_INTERVAL_MS)
        for look in range(looks):
            known = self._context.releases()
            if self._context.stopping or all(node in known for node in nodes):
                return timeout_ms - look * RELEASE_INTERVAL_MS
            await asyncio.sleep(RELEASE_INTERVAL_MS / 1000)
        return timeout_ms - looks * RELEASE_INTERVAL_MS

    async def _carry_out(
        self,
        change: MemberChange,
        look: Callable[[View], Awaitable[list[MembershipRefusal]]] | None = None,
    ) -> View:
        """Do what the change says, to its end."""
        context = self._context
        while True:
            newest, now_ms = context.views.newest, clock_ms()
            match change.next(now_ms, newest, stopping=context.stopping):
                case "wait":
                    await context.wait_for_change(change.deadline_ms)
                case "look" if look is not None and newest is not None:
                    found = await look(newest)
                    if context.views.newest is newest:  # else it was seen under another view
                        change.looked(newest, found)
                case "propose" if newest is not None and change.change is not None:
                    left_ms = int(min(change.deadline_ms - now_ms, PROPOSAL_TIMEOUT_MS)) + 1
                    outcome = await context.agreement.propose(
                        change.change, newest.version, left_ms
                    )
                    self._take(outcome)
                    change.proposed(outcome)
                case _:
                    answer = change.answer(context.no_primary(""))
                    if isinstance(answer, OperationError):
                        raise answer
                    return answer

    def _take(self, outcome: Outcome) -> None:
        match outcome:
            case Committed(view):
                self._context.share_view(view)
            case Refused(View() as view, _):
                self._context.take_view(view)

    # -- what nodes ask that come in, or come back

    async def let_join(self, member: Member, timeout_ms: int, release: Release) -> JoinReturn:
        """Make a node a member that asks for it."""
        context = self._context
        if context.views.newest is not None:
            check_join(context.views.newest, member, release)
        if not self._pin(member.id, member.data_id):
            raise RejectedError("lost_disk", _lost_disk(member.id))
        view = await self.add(member, timeout_ms, release=release)
        logger.info("%s joined the cluster at its own request", member.id)
        return JoinReturn(view, context.agreement.founders)

    async def hello(
        self, node: str, data_id: str, *, joined: bool, release: Release
    ) -> HelloReturn:
        """May `node`, with that data directory and that release, take part?"""
        context = self._context
        answer = await self._judge_hello(node, data_id, joined=joined)
        view = context.views.newest
        if not answer.problem and view is not None:  # U1
            problem = unsupported(node, release, view.level)
            answer = msgspec.structs.replace(answer, problem=problem, unfit=bool(problem))
        return msgspec.structs.replace(
            answer,
            cluster_id=context.views.cluster_id,
            release=context.releases().get(context.node_id, Release()),
        )

    async def _judge_hello(self, node: str, data_id: str, *, joined: bool) -> HelloReturn:
        view = self._context.views.newest
        member = view.member(node) if view else None
        if member is not None and member.data_id not in ("", data_id):
            return HelloReturn(_lost_disk(node), view)
        if view is not None and member is None:
            if joined:
                return HelloReturn("", view, removed=await self._is_out(node))
            if node in view.removed:
                return HelloReturn(
                    f"node {node} was removed from this cluster, and an id cannot be used again: "
                    f"give the node a new id in the configuration file (rename [nodes.{node}]), "
                    "and start it under that id with an empty data directory",
                    view,
                )
        if not self._pin(node, data_id):
            return HelloReturn(_lost_disk(node), view)
        return HelloReturn("", view)

    async def _is_out(self, node: str) -> bool:
        """Whether consensus says now that `node` is no member, and its vote is gone too.

        What this node knows may be from before that node came in: so consensus is asked.
        """
        try:
            view = await self._context.agreement.read_view(CONFIRM_TIMEOUT_MS)
        except AgreementUnavailableError:
            return False
        return view is not None and view.member(node) is None and self._context.has_no_vote(node)


def _lost_disk(node: str) -> str:
    return (
        f"node {node} is known with another data directory. If its disk was lost, its "
        "promises are lost too, and it must not return under the same id: run `onecopy remove "
        f"{node}`, give the node a new id in the configuration file (rename [nodes.{node}]), and "
        "start it under that id. If the directory still exists, start the node with it"
    )
