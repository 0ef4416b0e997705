"""The client's calls for operators: status, digest, and changes of the members."""

from __future__ import annotations

import time
from urllib.parse import quote

import msgspec

from cluster.client.arguments import check_flag, check_node, check_text, check_timeout
from cluster.client.endpoints import normalize_endpoint
from cluster.client.errors import (
    ClientError,
    InvalidRequestError,
    UnavailableError,
    UnknownOutcomeError,
)
from cluster.client.exchange import Request
from cluster.client.requests import JSON_HEADERS, decode_reply, write_call
from cluster.client.results import ViewSummary
from cluster.client.retries import STATUS, Transport
from cluster.groups.group_map import (
    GroupMap,
    GroupMapError,
    GroupsDocument,
    check_map,
    encode_map,
)
from datapath.operations import ClusterStatus, Digest

LEFT_MIN_MS = 50  # what a call's last step gets, however much of its time is gone


class AsyncOperatorCalls:
    """What `AsyncClient` offers to operators."""

    _transport: Transport

    async def status(self, *, timeout_ms: int | None = None) -> ClusterStatus:
        """Return the cluster as its primary sees it."""
        reply = await self._transport.call(STATUS, check_timeout(timeout_ms))
        return decode_reply(STATUS, reply, ClusterStatus)

    async def digest(self, node: str, *, timeout_ms: int | None = None) -> Digest:
        """Return the checksum of that node's own store, scanned now (an id, or a base URL)."""
        deadline = self._deadline(timeout_ms)
        if "://" in check_node("node", node):
            try:
                url: str | None = normalize_endpoint(node)
            except ValueError as error:
                raise InvalidRequestError(str(error), code="invalid_argument") from None
        else:
            url = self._transport.endpoints.url_of(node)
        if url is None:
            status = await self.status(timeout_ms=_left_ms(deadline))
            url = self._transport.endpoints.url_of(node)
            if node not in status.nodes:
                raise InvalidRequestError(f"no node {node!r}", code="unknown_node")
        if url is None:
            raise InvalidRequestError(
                f"this client uses only its given endpoints, not the address that {node} "
                "advertises: add a URL that reaches the node",
                code="unknown_address",
            )
        reply = await self._transport.ask(url, "/v1/digest", _left_ms(deadline))
        return decode_reply(Request("GET", "/v1/digest"), reply, Digest)

    async def handover(self, to: str, *, timeout_ms: int | None = None) -> ViewSummary:
        """Make the in-sync replica `to` the primary. No pending request fails."""
        deadline = self._deadline(timeout_ms)
        body = msgspec.json.encode({"to": check_node("to", to)})
        call = Request(
            "POST", "/v1/cluster/handover", JSON_HEADERS, body, writes=True, retry_unknown=False
        )
        try:
            reply = await self._transport.call(call, _left_ms(deadline))
            return decode_reply(call, reply, ViewSummary)
        except UnknownOutcomeError as error:
            try:
                view = await self.status(timeout_ms=_left_ms(deadline))
            except ClientError:
                raise error from None  # what the status failed with says nothing of the handover
            if view.primary != to:
                raise
            return ViewSummary(
                epoch=view.epoch, version=view.version, primary=to, in_sync=view.in_sync
            )

    async def finish_upgrade(self, *, timeout_ms: int | None = None) -> ViewSummary:
        """Let the cluster use what its upgraded nodes support: no older release can join any more.

        Refused (`code` "upgrade_pending") unless every node is known to support it.
        """
        call = Request("POST", "/v1/cluster/finish-upgrade", JSON_HEADERS, b"{}", writes=True)
        reply = await self._transport.call(call, check_timeout(timeout_ms))
        return decode_reply(call, reply, ViewSummary)

    async def move(
        self,
        node: str,
        *,
        client: str = "",
        peer: str = "",
        raft: str = "",
        timeout_ms: int | None = None,
    ) -> ViewSummary:
        """Change the addresses ("host:port") of a node; "" keeps one.

        Then set the same addresses in the node's configuration file and restart it.
        """
        given = {
            name: check_text(name, value)
            for name, value in (("client", client), ("peer", peer), ("raft", raft))
        }
        body = msgspec.json.encode({name: text for name, text in given.items() if text})
        target = f"/v1/cluster/nodes/{quote(check_node('node', node), safe='')}"
        call = Request("PATCH", target, JSON_HEADERS, body, writes=True)  # twice is as good as once
        reply = await self._transport.call(call, check_timeout(timeout_ms))
        return decode_reply(call, reply, ViewSummary)

    async def groups(self, *, timeout_ms: int | None = None) -> GroupsDocument:
        """Return which group the asked node belongs to, and the newest map that it knows.

        Raises InvalidRequestError ("not_found") where there are no groups.
        """
        call = Request("GET", "/v1/groups", waits=False)
        reply = await self._transport.call(call, check_timeout(timeout_ms))
        found = decode_reply(call, reply, GroupsDocument)
        if found.map is not None:
            try:
                check_map(found.map)
            except GroupMapError as error:
                raise UnavailableError(
                    f"not a map of groups: {error}", code="bad_answer"
                ) from error
        return found

    async def publish_groups(self, new_map: GroupMap, *, timeout_ms: int | None = None) -> GroupMap:
        """Make a map the deployment's, at the first group: of a higher version than it holds.

        Its groups and their slots stay as they are. Raises PreconditionFailedError where that
        version, or a later one, was published meanwhile, RefusedError for other slots.
        """
        body = encode_map(_checked(new_map))
        call = write_call("PUT", "/v1/groups", dict(JSON_HEADERS), body, "")
        reply = await self._transport.call(call, check_timeout(timeout_ms))
        return decode_reply(call, reply, GroupMap)

    async def remove(
        self, node: str, *, force: bool = False, timeout_ms: int | None = None
    ) -> ViewSummary:
        """Remove a node from the cluster for good; its id cannot be used again.

        Refused (`code` "unsafe_removal", …) if that could lose acknowledged writes or the majority:
        the error says what to do first. `force` removes it anyway.
        """
        name = quote(check_node("node", node), safe="")
        target = f"/v1/cluster/nodes/{name}"
        if check_flag("force", force):
            target += f"?force={name}"
        call = Request("DELETE", target, writes=True)  # to remove a node twice is to remove it
        reply = await self._transport.call(call, check_timeout(timeout_ms))
        return decode_reply(call, reply, ViewSummary)

    def _deadline(self, timeout_ms: int | None) -> float:
        chosen_ms = check_timeout(timeout_ms) or self._transport.timeout_ms
        return time.monotonic() + chosen_ms / 1000


def _checked(new_map: object) -> GroupMap:
    if not isinstance(new_map, GroupMap):
        raise TypeError(f"new_map must be a GroupMap, not {type(new_map).__name__}")
    try:
        check_map(new_map)
    except GroupMapError as error:
        raise InvalidRequestError(f"new_map: {error}", code="invalid_argument") from None
    return new_map


def _left_ms(deadline: float) -> int:
    return max(LEFT_MIN_MS, int((deadline - time.monotonic()) * 1000))
