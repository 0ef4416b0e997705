"""`/v1/cluster/handover`, `/finish-upgrade` and `/nodes`: what changes the cluster itself."""

from __future__ import annotations

import logging

import msgspec
from aiohttp.web import BaseRequest

from cluster.api.access import ApiAccess
from cluster.api.admin import check_admin_of
from cluster.api.answer import JSON, Answer
from cluster.api.body import read_json
from cluster.api.documents import FinishUpgrade, HandoverRequest, Move
from cluster.api.headers import who_lines
from cluster.api.leases import MAX_BODY_SIZE_BYTES
from cluster.api.params import REMOVE_PARAMS, TIMEOUT, decode_percent, parse_query
from cluster.api.problems import ProblemError
from cluster.api.settings import HttpSettings
from cluster.config.model import split_address
from datapath.operations import Node
from election.identity import Addresses
from election.view import View

logger = logging.getLogger(__name__)

_move_decoder = msgspec.json.Decoder(Move)
_handover_decoder = msgspec.json.Decoder(HandoverRequest)


class MemberHandlers:
    """The handlers of changes of the cluster."""

    def __init__(self, node: Node, settings: HttpSettings, access: ApiAccess) -> None:
        self._node = node
        self._settings = settings
        self._access = access

    async def hand_over(self, request: BaseRequest, query: str) -> Answer:
        """POST /v1/cluster/handover."""
        asked_by = self.check_admin(request)
        timeout_ms = self._timeout_ms(query)
        body = await read_json(request, MAX_BODY_SIZE_BYTES, self._settings.body_timeout_ms)
        try:
            to = _handover_decoder.decode(body).to
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ProblemError("invalid_body", f'{error}; expected: {{"to": "n2"}}') from None
        logger.info("handover to %s, requested by %s", to, asked_by)
        return self._answer(await self._node.handover(to, timeout_ms))

    async def finish_upgrade(self, request: BaseRequest, query: str) -> Answer:
        """POST /v1/cluster/finish-upgrade."""
        asked_by = self.check_admin(request)
        timeout_ms = self._timeout_ms(query)
        body = await read_json(request, MAX_BODY_SIZE_BYTES, self._settings.body_timeout_ms)
        try:
            msgspec.json.decode(body, type=FinishUpgrade)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ProblemError("invalid_body", f"{error}; expected: {{}}") from None
        return self._answer(await self._node.finish_upgrade(timeout_ms, asked_by=asked_by))

    async def move(self, request: BaseRequest, raw_node: str, query: str) -> Answer:
        """PATCH /v1/cluster/nodes/{id}."""
        asked_by = self.check_admin(request)
        node = _one_node(raw_node)
        timeout_ms = self._timeout_ms(query)
        body = await read_json(request, MAX_BODY_SIZE_BYTES, self._settings.body_timeout_ms)
        try:
            move = _move_decoder.decode(body)
        except (msgspec.MsgspecError, ValueError) as error:
            example = '{"peer": "10.0.0.2:8201"}'
            raise ProblemError("invalid_body", f"{error}; expected: {example}") from None
        given = {name: value for name, value in msgspec.structs.asdict(move).items() if value}
        for name, address in given.items():
            try:
                split_address(address)
            except ValueError as error:
                raise ProblemError("invalid_body", f"{name}: {error}") from None
        if not given:
            raise ProblemError("invalid_body", "name at least one of client, peer and raft")
        addresses = Addresses(move.client, move.peer, move.raft)
        view = await self._node.move_member(node, addresses, timeout_ms, asked_by=asked_by)
        return self._answer(view)

    async def remove(self, request: BaseRequest, raw_node: str, query: str) -> Answer:
        """DELETE /v1/cluster/nodes/{id}."""
        asked_by = self.check_admin(request)
        node = _one_node(raw_node)
        options = parse_query(query, REMOVE_PARAMS)
        force = options.get("force")
        if force not in (None, node):
            raise ProblemError(
                "invalid_parameter",
                f"force must be the id of the node to remove, {node!r}, not {force!r}",
            )
        timeout_ms = options.get("timeout_ms", self._settings.request_timeout_ms)
        view = await self._node.remove_member(
            node, timeout_ms, force=force is not None, asked_by=asked_by
        )
        return self._answer(view)

    def may_change(self, request: BaseRequest) -> bool:
        """Whether who asks may change the cluster, where there is no access control."""
        try:
            self.check_admin(request)
        except ProblemError:
            return False
        return True

    def check_admin(self, request: BaseRequest) -> str:
        """Return who asks to change the cluster, for the log. Raises Problem."""
        return check_admin_of(request, self._node, self._access, self._settings.admin_from)

    def _timeout_ms(self, query: str) -> int:
        value: int = parse_query(query, TIMEOUT).get(
            "timeout_ms", self._settings.request_timeout_ms
        )
        return value

    def _answer(self, view: View) -> Answer:
        node = self._node
        who = who_lines(node.node_id, node.epoch, node.views.cluster_id)
        return Answer(200, msgspec.json.encode(view), JSON, who)


def _one_node(raw_node: str) -> str:
    node = decode_percent(raw_node, "the node's id", "not_found").decode("utf-8")
    if not node or "/" in node:
        raise ProblemError("not_found", "name one node: /v1/cluster/nodes/{id}")
    return node
