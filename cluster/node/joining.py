"""A node's entry among the members: how it comes in, and how it is kept up to date."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Mapping

from cluster.node.addresses import edit_or_move, next_step
from cluster.node.parts import Parts, member_of
from datapath.errors import (
    DataDirectoryError,
    DiskFullError,
    NotAdmittedError,
    OperationError,
)
from datapath.transport.calls import (
    HelloCall,
    HelloReturn,
    JoinCall,
    JoinReturn,
    NoAnswerError,
    NotSentError,
)
from election.agreement import Agreement, AgreementUnavailableError
from election.registry import addresses_of
from election.release import Release, first_level
from election.view import Bootstrap, Member, View

logger = logging.getLogger(__name__)

HELLO_TIMEOUT_MS = 500
JOIN_TIMEOUT_MS = 5000
JOIN_RETRY_INTERVAL_S = 0.2
REGISTER_INTERVAL_S = 0.5
WAITING_LOG_INTERVAL_S = 5.0


async def ask_hello(parts: Parts, node: str) -> HelloReturn | None:
    """Ask another node whether this one may take part; None: no answer."""
    directory, release = parts.directory, parts.registry.release
    call = HelloCall(parts.node_id, directory.data_id, directory.joined, release)
    try:
        answer = await parts.gateway.caller.call(node, call, HELLO_TIMEOUT_MS)
    except (NotSentError, NoAnswerError, OperationError):
        return None
    return answer if isinstance(answer, HelloReturn) else None


class Joining:
    """`rejoin` goes over to a consensus member that begins with what the cluster has told.

    `hint` says why others may not reach this node, for who waits for them.
    """

    def __init__(
        self,
        parts: Parts,
        rejoin: Callable[[Mapping[str, str], Mapping[str, str]], None],
        hint: str,
    ) -> None:
        self._parts = parts
        self._rejoin = rejoin
        self._hint = hint
        self._view_seen = False
        self._registering = False
        self._founders: dict[str, Release] = {}  # what they run, as far as they have told

    # -- coming in

    async def enter(self) -> None:
        """Take part for the first time with this data directory.

        A node that lost its disk has forgotten votes and acknowledgements, so an empty directory
        may take part only if nobody knows this node with another one. Where a cluster exists, it
        is asked to add this node; where none does yet, every other node must have answered, and
        has pinned this directory. A node of a cluster that knows no view yet (it has just started,
        or misses its majority) is asked again: to begin beside it would be to begin another one.

        A founder asks nobody: its cluster has no node but it (rule B2).
        """
        if self._parts.directory.first_epoch:
            own = self._parts.member()
            self._rejoin({own.id: own.raft}, {own.id: own.raft})
            return
        others = [node for node in self._parts.config.nodes if node != self._parts.node_id]
        clear: set[str] = set()
        last_log = 0.0
        loop = asyncio.get_running_loop()
        while len(clear) < len(others):
            for node in others:
                answer = await ask_hello(self._parts, node)
                if answer is None:
                    continue
                if answer.problem:
                    problem = f"{node} refuses this node: {answer.problem}"
                    # Where no cluster exists yet, the others have taken note of this directory.
                    kind = NotAdmittedError if answer.cluster_id else DataDirectoryError
                    raise kind(f"{problem} (here: {self._parts.directory.path})")
                if not answer.cluster_id:
                    clear.add(node)
                    self._founders[node] = answer.release
                elif answer.view is not None and await self._join(node):
                    return
            if len(clear) < len(others):
                missing = sorted(set(others) - clear)
                said = f"first start with an empty directory: waiting for {missing}"
                self._parts.gateway.waits_for = said + self._parts.why_no_link(missing)
                if loop.time() - last_log > WAITING_LOG_INTERVAL_S:
                    last_log = loop.time()
                    logger.info("%s", said)
                    if self._hint:
                        logger.warning("%s", self._hint)
                await asyncio.sleep(JOIN_RETRY_INTERVAL_S)

    async def _join(self, node: str) -> bool:
        """Have the cluster that `node` belongs to add this node (or register its disk)."""
        call = JoinCall(self._parts.member(), JOIN_TIMEOUT_MS, self._parts.registry.release)
        try:
            answer = await self._parts.gateway.caller.call(node, call, JOIN_TIMEOUT_MS)
        except (NotSentError, NoAnswerError) as problem:
            logger.warning("%s could not add this node yet: %s", node, problem)
            return False
        except OperationError as problem:
            if problem.code in ("lost_disk", "refused", "removed"):
                raise NotAdmittedError(f"{node} refuses this node: {problem}") from problem
            logger.warning("%s could not add this node yet: %s", node, problem)
            return False
        if not isinstance(answer, JoinReturn):
            return False
        view = answer.view
        self._rejoin({member.id: member.raft for member in view.members}, answer.founders)
        self._parts.gateway.on_view(view)
        return True

    async def bootstrap(self, agreement: Agreement) -> None:
        """Make the first view, once: a founder does, else the configuration's first replica."""
        directory = self._parts.directory
        if directory.first_epoch:
            change = Bootstrap(
                directory.cluster_id,
                self._parts.node_id,
                (self._parts.member(),),
                directory.first_epoch,
                self._parts.registry.release.level,
            )
            await self._bootstrap(agreement, change)
            return
        pins = {**directory.pins, self._parts.node_id: directory.data_id}
        members = tuple(
            member_of(node, item, pins.get(node, ""))
            for node, item in self._parts.config.nodes.items()
        )
        founders = {**self._founders, self._parts.node_id: self._parts.registry.release}
        level = first_level([founders.get(member.id, Release()) for member in members])
        await self._bootstrap(
            agreement, Bootstrap(secrets.token_hex(16), self._parts.node_id, members, level=level)
        )

    async def _bootstrap(self, agreement: Agreement, change: Bootstrap) -> None:
        while self._parts.gateway.view is None:
            try:
                view = await agreement.read_view(2000)
            except AgreementUnavailableError:
                continue  # `Watch.membership` says so
            if view is None:
                await agreement.propose(change, 0, 2000)
            else:
                self._parts.gateway.share_view(view)

    # -- keeping it up to date

    def check(self, view: View, member: Member) -> None:
        """See that the view's entry is of this very disk and role, and compare the addresses."""
        own = self._parts.member()
        if member.data_id not in ("", own.data_id):
            # A first start is refused with nothing left behind.
            kind = DataDirectoryError if self._parts.directory.joined else NotAdmittedError
            self._parts.end(
                kind(
                    f"node {own.id} is known with another data directory than "
                    f"{self._parts.directory.path}: start it with that directory; or, if its "
                    f"disk is lost, run `onecopy remove {own.id}` and give the node a new id"
                )
            )
        elif member.role != own.role:
            self._parts.end(
                DataDirectoryError(
                    f"{self._parts.config.path}: nodes.{own.id}.role: the node is a "
                    f"{member.role} of the cluster, not a {own.role}: correct the role, or "
                    "remove the node and give it a new id and an empty data directory"
                )
            )
        else:
            self._compare_addresses(view, member)

    def _compare_addresses(self, view: View, member: Member) -> None:
        """Have the view follow the configuration, or the operator the view: the newer counts."""
        configured, agreed = self._parts.registry.claim.addresses, addresses_of(member)
        known = self._parts.directory.members_version
        is_first = not self._view_seen and view.version >= known
        self._view_seen = self._view_seen or is_first
        step = next_step(configured, agreed, self._parts.directory.addresses, is_first=is_first)
        if step in ("refuse", "warn"):
            text = edit_or_move(self._parts.node_id, self._parts.config.path, configured, agreed)
            if step == "refuse":
                self._parts.end(DataDirectoryError(text))
            else:
                logger.warning("%s", text)
        elif step == "none":
            with contextlib.suppress(DiskFullError):
                self._parts.directory.note_addresses(configured)
        if (step == "register" or not member.data_id) and not self._registering:
            self._registering = True
            self._parts.spawn(self._register())

    async def _register(self) -> None:
        """Have the cluster agree on this node's disk and addresses, however long it takes."""
        last = ""
        try:
            while (problem := await self._register_once()) is not None:
                if problem != last:
                    logger.warning(
                        "this node's addresses could not be updated: %s. That needs a majority "
                        "of nodes that know its addresses, from the view or from their files",
                        problem,
                    )
                last = problem
                await asyncio.sleep(REGISTER_INTERVAL_S)
            logger.info("the cluster has agreed to this node's addresses")
        finally:
            self._registering = False

    async def _register_once(self) -> str | None:
        """Ask the other nodes in turn, and then the own consensus member; None: it is done.

        A node that has moved may have no consensus link: the others do not know yet where to dial.
        """
        mine = self._parts.member()
        problem = ""
        for peer in self._parts.gateway.caller.peers:
            try:
                call = JoinCall(mine, JOIN_TIMEOUT_MS, self._parts.registry.release)
                answer = await self._parts.gateway.caller.call(peer, call, JOIN_TIMEOUT_MS)
                if isinstance(answer, JoinReturn):
                    self._parts.gateway.on_view(answer.view)
                    return None
            except (NotSentError, NoAnswerError, OperationError) as error:
                problem = f"{peer}: {error}"
        try:
            await self._parts.gateway.add_member(mine, JOIN_TIMEOUT_MS, anew=False)
        except OperationError as error:
            return problem or str(error)
        return None
