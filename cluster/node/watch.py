"""What a node watches over its life: that nobody else holds its identity, and that it belongs."""

from __future__ import annotations

import asyncio
import logging

from cluster.config.model import split_address
from cluster.node.joining import JOIN_RETRY_INTERVAL_S, WAITING_LOG_INTERVAL_S, ask_hello
from cluster.node.parts import Parts, removed
from datapath.errors import DataDirectoryError
from datapath.transport.dialer import find_second_holder
from election.agreement import Agreement

logger = logging.getLogger(__name__)

MOVE_SILENCE_S = 3.0
"""A node whose addresses have changed starts only if its old one has been silent for so long."""
ACCUSATION_CHECK_S = 1.0
REMOVED_CHECK_INTERVAL_S = 0.5
"""How often a node that consensus does not reach asks the others whether it was removed."""
ALONE_AFTER_S = 3.0
"""A node that could ask nobody for so long whether it was removed answers stale reads."""


class Watch:
    """`leaving`: this node was removed, and stays only as long as it votes (decision 12)."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.leaving = False

    def check_votes(self) -> None:
        """Refuse to vote with a memory of votes that is gone."""
        raft = self._parts.directory.path / "raft"
        if self._parts.directory.joined and not (raft.is_dir() and any(raft.iterdir())):
            raise DataDirectoryError(
                f"{raft} is missing or empty, but this node has voted. Do not restore an older "
                f"copy; run `onecopy remove {self._parts.node_id}` and give the node a new id "
                "and an empty data directory"
            )

    async def check_alone(self) -> None:
        """Refuse to start beside another process with the same identity.

        It would answer at the address that the cluster has agreed on. Where that is this node's own
        address still, a moment is enough; where it has changed, the other may be restarting.
        """
        known = self._parts.directory.members.get(self._parts.node_id)
        if known is None or not known.addresses.peer:
            return
        loop = asyncio.get_running_loop()
        moved = known.addresses != self._parts.registry.claim.addresses
        until = loop.time() + (MOVE_SILENCE_S if moved else 0.0)
        if moved:
            logger.info(
                "the addresses have changed: checking for another process at %s for %g s",
                known.addresses.peer,
                MOVE_SILENCE_S,
            )
        while True:
            problem = await find_second_holder(
                split_address(known.addresses.peer),
                self._parts.config.name,
                self._parts.mesh.secret,
                self._parts.registry,
                self._parts.mesh.tls,
            )
            if problem:
                raise self._second_holder(problem)
            if loop.time() >= until:
                return
            await asyncio.sleep(JOIN_RETRY_INTERVAL_S)

    async def accusations(self) -> None:
        """End this process if peers go on refusing it for what it is."""
        while not (verdict := self._parts.registry.accusation()).code:  # noqa: ASYNC110 -- time tells
            await asyncio.sleep(ACCUSATION_CHECK_S)
        if verdict.code == "second":
            self._parts.end(self._second_holder(verdict.reason))
            return
        directory = self._parts.directory
        self._parts.end(
            DataDirectoryError(
                f"{verdict.reason}. Data directory {directory.path} belongs to cluster "
                f"{directory.cluster_id}: start the node with the directory that it used in the "
                "cluster at these addresses, or correct the addresses in the configuration file"
            )
        )

    def _second_holder(self, problem: str) -> DataDirectoryError:
        return DataDirectoryError(
            f"{problem}. If {self._parts.directory.path} is the copy: to make a new cluster from "
            "the data, write it to a file with `onecopy dump` on the running cluster, start a "
            "cluster with another cluster.name and empty data directories, and run `onecopy "
            f"load`; to move node {self._parts.node_id} here, stop the other process for good first"
        )

    def leave(self) -> None:
        """This node was removed: it serves nothing any more, and stays only as long as it votes.

        The others may need its vote to take that vote away (decision 12).
        """
        if not self.leaving:
            self.leaving = True
            logger.warning("this node has been removed from cluster %s", self._parts.config.name)

    async def membership(self, agreement: Agreement) -> None:
        """End this node once it was removed for good. It asks the others while it cannot know.

        Who is removed while it is away, or faster than it hears of it, hears nothing more from
        consensus: its links are refused. So whoever hears no majority asks.
        """
        last_log = last_told = asyncio.get_running_loop().time()
        while True:
            if self._parts.gateway.belongs and self._parts.gateway.hears_majority:
                self.leaving = False
                await asyncio.sleep(REMOVED_CHECK_INTERVAL_S)
                continue
            if self.leaving and self._parts.gateway.has_no_vote(self._parts.node_id):
                self._end_removed()
                return
            others = [
                node for node in self._parts.gateway.caller.peers if node != self._parts.node_id
            ]
            answers = await asyncio.gather(*(ask_hello(self._parts, node) for node in others))
            if any(answer is not None and answer.removed for answer in answers):
                self._end_removed()
                return
            for answer in answers:
                if answer is not None and answer.unfit:
                    self._parts.end(DataDirectoryError(answer.problem))
                    return
            now = asyncio.get_running_loop().time()
            if any(answer is not None and answer.view is not None for answer in answers):
                last_told = now
            self._parts.gateway.is_alone = now - last_told > ALONE_AFTER_S
            if self._parts.gateway.view is None:
                self._parts.gateway.waits_for = self._what_is_missing(agreement)
                if now - last_log > WAITING_LOG_INTERVAL_S:
                    last_log = now
                    logger.info("%s", self._parts.gateway.waits_for)
            if self.leaving and now - last_log > WAITING_LOG_INTERVAL_S:
                last_log = now
                logger.warning(
                    "this node was removed, but its vote still counts: it keeps running until "
                    "the others have withdrawn the vote. Check that a majority of the nodes is "
                    "running"
                )
            await asyncio.sleep(REMOVED_CHECK_INTERVAL_S)

    def _what_is_missing(self, agreement: Agreement) -> str:
        """Return why there is no view yet, though this node takes part in consensus."""
        known = {*self._parts.config.nodes, *self._parts.directory.members, self._parts.node_id}
        heard = agreement.heard & known
        return (
            "waiting for a majority of the nodes: consensus reaches "
            f"{', '.join(sorted(heard))} of "
            f"{', '.join(sorted(known))}{self._parts.why_no_link(sorted(known - heard))}"
        )

    def _end_removed(self) -> None:
        self._parts.directory.mark_removed()
        self._parts.end(removed(self._parts.config.name, self._parts.node_id))
