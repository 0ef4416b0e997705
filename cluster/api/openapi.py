"""The OpenAPI 3.1 document of the HTTP API, made from the tables that the API itself works by."""

from __future__ import annotations

import functools

from cluster.api.documents import (
    CurrentPrimary,
    FinishUpgrade,
    HandoverRequest,
    Move,
    Status,
    ViewHistory,
    ViewStepItem,
)
from cluster.api.openapi_access import (
    create_token,
    delete_role,
    list_roles,
    list_tokens,
    revoke_token,
    role_parameter,
    set_role,
    token_parameter,
    whoami,
)
from cluster.api.openapi_keys import (
    delete_key,
    delete_range,
    get_key,
    key_parameter,
    list_range,
    put_key,
    transaction,
)
from cluster.api.openapi_leases import (
    acquire,
    get_holder,
    get_lease,
    grant_lease,
    keep_alive,
    keep_all_alive,
    lease_parameter,
    list_leases,
    list_locks,
    name_parameter,
    release,
    revoke_lease,
)
from cluster.api.openapi_watch import observe_election, watch_keys
from cluster.api.params import (
    BACKUP_PARAMS,
    REMOVE_PARAMS,
    TIMEOUT,
)
from cluster.api.problems import CODES
from cluster.api.route_rights import SECURITY_SCHEMES
from cluster.api.schemas import (
    ANY_ROLE_CODES,
    BODY_CODES,
    CHANGE_CODES,
    HEADERS,
    PARAMETER_CODES,
    REPEAT_CODES,
    SCHEMAS,
    WRITE_CODES,
    Json,
    api_operation,
    headers,
    json_answer,
    json_content,
    query_parameters,
)
from cluster.groups.group_map import Group, GroupMap, GroupsDocument
from datapath.operations import ClusterStatus, Digest, NodeState
from election.view import View

_MOVE = Move(client="127.0.0.1:8103", peer="127.0.0.1:8203", raft="127.0.0.1:8303")
_VIEW = View(
    cluster_id="5f0c…",
    epoch=4,
    version=12,
    primary="n2",
    in_sync=("n1", "n2", "n3"),
    members=(),
    handed_over=True,
)


@functools.cache
def own_document() -> Json:
    """Return the document without services: `cluster.api.openapi_services` has the whole."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "onecopy",
            "version": "1",
            "description": (
                "A replicated key-value store. Any node accepts any request and forwards it to the "
                "primary where needed. Every error is a problem document (RFC 9457) with a stable "
                "`code`, and on writes an `outcome`. An unlisted method of a path gets 405, an "
                "unlisted path 404. `x-onecopy-right` is the right that an operation needs where "
                "there is access control, for the keys, locks or services that it names; a "
                "transaction needs `read` and `write` for its keys.\n\n"
            )
            + _code_list(),
        },
        "servers": [{"url": "/"}],
        "paths": {
            "/v1/kv/{key}": {
                "parameters": [key_parameter()],
                "put": put_key(),
                "get": get_key(),
                "head": _head(get_key()),
                "delete": delete_key(),
            },
            "/v1/kv": {**readable(list_range()), "delete": delete_range()},
            "/v1/txn": {"post": transaction()},
            "/v1/leases": {**readable(list_leases()), "post": grant_lease()},
            "/v1/leases/keepalive": {"post": keep_all_alive()},
            "/v1/leases/{id}": {
                "parameters": [lease_parameter()],
                **readable(get_lease()),
                "delete": revoke_lease(),
            },
            "/v1/leases/{id}/keepalive": {
                "parameters": [lease_parameter()],
                "post": keep_alive(),
            },
            "/v1/locks": readable(list_locks()),
            "/v1/locks/{name}": _lock(is_election=False),
            "/v1/elections/{name}": _lock(is_election=True),
            "/v1/elections/{name}/observe": {
                "parameters": [name_parameter()],
                **readable(observe_election()),
            },
            "/v1/watch": readable(watch_keys()),
            "/v1/whoami": readable(whoami()),
            "/v1/tokens": {**readable(list_tokens()), "post": create_token()},
            "/v1/tokens/{id}": {"parameters": [token_parameter()], "delete": revoke_token()},
            "/v1/roles": readable(list_roles()),
            "/v1/roles/{name}": {
                "parameters": [role_parameter()],
                "put": set_role(),
                "delete": delete_role(),
            },
            "/v1/cluster": readable(_cluster()),
            "/v1/cluster/views": readable(_views()),
            "/v1/cluster/handover": {"post": _handover()},
            "/v1/cluster/finish-upgrade": {"post": _finish_upgrade()},
            "/v1/cluster/nodes/{id}": {"delete": _remove_node(), "patch": _move_node()},
            "/v1/groups": {**readable(_groups()), "put": _publish_groups()},
            "/v1/digest": readable(_digest()),
            "/v1/backup": {"get": _backup()},
            "/livez": readable(_health("livez", "Live", "The process runs.", Status("live"))),
            "/readyz": readable(
                _health("readyz", "Ready", "The node can answer a linearizable read.",
                        Status("ready"), "not_ready")
            ),
            "/primary": readable(_primary()),
            "/metrics": readable(_metrics()),
            "/openapi.json": readable(_openapi()),
        },
        "components": {"schemas": SCHEMAS, "headers": HEADERS, "securitySchemes": SECURITY_SCHEMES},
    }  # fmt: skip


def _code_list() -> str:
    lines = (f"- `{code}` ({item.status}): {item.title}. {item.advice}"
             for code, item in CODES.items())  # fmt: skip
    return "Codes:\n\n" + "\n".join(lines)


# --- pieces ---


def _lock(*, is_election: bool) -> Json:
    return {
        "parameters": [name_parameter()],
        "post": acquire(is_election=is_election),
        **readable(get_holder(is_election=is_election)),
        "delete": release(is_election=is_election),
    }


def readable(operation: Json) -> Json:
    """Return a path that is read: GET, and HEAD."""
    return {"get": operation, "head": _head(operation)}


def _head(operation: Json) -> Json:
    """Return the same as `operation`, without bodies."""
    responses = {
        status: {name: part for name, part in answer.items() if name != "content"}
        for status, answer in operation["responses"].items()
    }
    name = f"{operation['operationId']}Head"
    return {**operation, "operationId": name, "responses": responses}


# --- the cluster ---


def _cluster() -> Json:
    node = NodeState(
        role="replica", client="127.0.0.1:8101", state="primary", applied_index=57,
        durable_index=57, lag=0, votes=True,
    )  # fmt: skip
    example = ClusterStatus(
        cluster="demo", cluster_id="5f0c", epoch=3, version=9, primary="n1", in_sync=("n1",),
        nodes={"n1": node},
    )  # fmt: skip
    return api_operation(
        "getCluster",
        "The primary, the in-sync set, and the state of each node",
        {
            "200": json_answer(
                "As seen by the primary, or else by this node.",
                example,
                "Onecopy-Revision",
            )
        },
        ("unknown_parameter",),
        access=ANY_ROLE_CODES,
    )


def _views() -> Json:
    step = ViewStepItem(
        version=12, epoch=4, kind="take_over", reason="n2 took over: n1 was silent", nodes=("n2",),
        primary="n2", in_sync=("n2", "n3"), at_ms=1_767_225_600_000,
    )  # fmt: skip
    return api_operation(
        "getViews",
        "The last changes of the view: who became primary, who was in sync, when and why",
        {"200": json_answer("As far as this node knows, oldest first.", ViewHistory([step]))},
        ("unknown_parameter",),
        access=ANY_ROLE_CODES,
    )


def _handover() -> Json:
    return api_operation(
        "handOver",
        "Make another in-sync replica the primary",
        {"200": json_answer("The new view.", _VIEW)},
        (
            *PARAMETER_CODES,
            "invalid_body",
            *BODY_CODES,
            "unsupported_media_type",
            "admin_forbidden",
            "handover_failed",
            *CHANGE_CODES,
        ),
        write=True,
        parameters=query_parameters(TIMEOUT),
        requestBody={
            "required": True,
            "content": json_content(HandoverRequest(to="n2")),
        },
    )


def _finish_upgrade() -> Json:
    return api_operation(
        "finishUpgrade",
        "Let the cluster use what its upgraded nodes support, for good",
        {"200": json_answer("The new view.", _VIEW)},
        (
            *PARAMETER_CODES,
            "invalid_body",
            *BODY_CODES,
            "unsupported_media_type",
            "admin_forbidden",
            "upgrade_pending",
            *CHANGE_CODES,
        ),
        write=True,
        parameters=query_parameters(TIMEOUT),
        requestBody={"required": True, "content": json_content(FinishUpgrade())},
    )


def _remove_node() -> Json:
    node = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"},
            "example": "n3"}  # fmt: skip
    force = {"example": "n3"}  # the node's id once more
    return api_operation(
        "removeNode",
        "Remove a node from the cluster for good",
        {"200": json_answer("The new view.", _VIEW)},
        (
            *PARAMETER_CODES,
            "not_found",
            "admin_forbidden",
            "is_primary",
            "unsafe_removal",
            "membership_pending",
            "no_majority",
            *CHANGE_CODES,
        ),
        write=True,
        parameters=[
            node,
            *(
                {**item, **(force if item["name"] == "force" else {})}
                for item in query_parameters(REMOVE_PARAMS)
            ),
        ],
    )


def _move_node() -> Json:
    node = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"},
            "example": "n3"}  # fmt: skip
    return api_operation(
        "moveNode",
        "Change the addresses of a node",
        {"200": json_answer("The new view.", _VIEW)},
        (
            *PARAMETER_CODES,
            "not_found",
            "invalid_body",
            *BODY_CODES,
            "unsupported_media_type",
            "admin_forbidden",
            *CHANGE_CODES,
        ),
        write=True,
        parameters=[node, *query_parameters(TIMEOUT)],
        requestBody={
            "required": True,
            "content": json_content(_MOVE),
        },
    )


_GROUPS = GroupMap(
    1,
    (
        Group("g1", ((0, 2047),), ("http://127.0.0.1:8101",)),
        Group("g2", ((2048, 4095),), ("http://127.0.0.1:9101",)),
    ),
)


def _groups() -> Json:
    example = GroupsDocument(_GROUPS.groups[1], _GROUPS)
    return api_operation(
        "getGroups",
        "The group of this node, and the map of all groups",
        {"200": json_answer("As far as this node knows.", example)},
        ("unknown_parameter", "not_found"),
        access=(),
    )


def _publish_groups() -> Json:
    return api_operation(
        "publishGroups",
        "Take a map of groups of a higher version, at the first group: other endpoints",
        {"200": json_answer("The map.", _GROUPS)},
        (
            *PARAMETER_CODES,
            "invalid_header",
            "invalid_body",
            *BODY_CODES,
            "unsupported_media_type",
            "admin_forbidden",
            "not_found",
            "precondition_failed",
            "refused",
            *REPEAT_CODES,
            *WRITE_CODES,
        ),
        write=True,
        parameters=query_parameters(TIMEOUT),
        requestBody={"required": True, "content": json_content(_GROUPS)},
    )


def _digest() -> Json:
    example = Digest(node="n1", applied_index=57, digest="9f86d081884c7d65…")
    return api_operation(
        "getDigest",
        "Digest of this node's own store: equal on all replicas at the same index",
        {"200": json_answer("The digest.", example)},
        ("unknown_parameter", "no_data", "stopping"),
    )


def _backup() -> Json:
    answer = {
        "description": "The backup. It is whole if its last block says so: "
        "see `onecopy backup verify`.",
        "headers": headers("Onecopy-Revision"),
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
    return api_operation(
        "backup",
        "Backup of the whole state at one revision, from this node's own store",
        {"200": answer},
        ("invalid_parameter", "unknown_parameter", "admin_forbidden", "no_data", "backup_running",
         "storage_full", "overloaded", "no_primary", "stopping"),
        parameters=query_parameters(BACKUP_PARAMS),
    )  # fmt: skip


# --- health ---


def _health(path: str, word: str, meaning: str, status: Status, *codes: str) -> Json:
    revision = ("Onecopy-Revision",) if path == "livez" else ()
    answer = json_answer(meaning, status, *revision)
    return api_operation(path, word, {"200": answer}, codes, access=())


def _primary() -> Json:
    example = CurrentPrimary(primary="n1", epoch=3)
    return api_operation(
        "primary",
        "Whether this node is the serving primary",
        {"200": json_answer("It is.", example)},
        ("not_primary",),
        access=(),
    )


def _metrics() -> Json:
    texts = ("text/plain", "application/openmetrics-text")
    answer = {
        "description": "Prometheus text format, or OpenMetrics if Accept asks for it.",
        "headers": headers(),
        "content": {text: {"schema": {"type": "string"}} for text in texts},
    }
    return api_operation(
        "getMetrics", "Metrics for Prometheus", {"200": answer}, (), access=ANY_ROLE_CODES
    )


def _openapi() -> Json:
    answer = {
        "description": "This document.",
        "headers": headers(),
        "content": {"application/json": {"schema": {"type": "object"}}},
    }
    return api_operation("getOpenapi", "This document", {"200": answer}, (), access=())
