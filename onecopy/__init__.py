"""onecopy: a replicated key-value service that behaves like one copy. All public names are here.

    import onecopy

    with onecopy.Client("http://127.0.0.1:8101") as client:
        client.put("hello", b"world")

A name is imported when it is first used: `import onecopy` alone loads neither aiohttp nor lmdb.
The client needs `pip install onecopy`; running nodes needs `pip install "onecopy[server]"`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.client.aio import AsyncClient
    from cluster.client.endpoints import DEFAULT_ENDPOINTS
    from cluster.client.errors import (
        ClientError,
        InvalidRequestError,
        LockHeldError,
        LockLostError,
        NotAppliedError,
        PreconditionFailedError,
        RefusedError,
        RevisionCompactedError,
        StorageFullError,
        UnavailableError,
        UnknownOutcomeError,
        WrongClusterError,
    )
    from cluster.client.leasing import AsyncLease, AsyncLock
    from cluster.client.mirrors import AsyncMirror
    from cluster.client.results import (
        Change,
        DeleteRangeResult,
        DeleteResult,
        GetResult,
        Item,
        Leader,
        LeaderEvent,
        LeaseInfo,
        ListedLease,
        NewTokenInfo,
        Page,
        PutResult,
        RevokeResult,
        RoleInfo,
        RoleRights,
        TokenInfo,
        TxnDeleteResult,
        TxnPutResult,
        TxnResult,
        ViewSummary,
        WatchEvent,
    )
    from cluster.client.sync import Client
    from cluster.client.sync_leasing import Lease, Lock
    from cluster.client.sync_watching import KeyWatch, Mirror
    from cluster.client.txn import gt, lt, ne
    from cluster.client.watching import AsyncKeyWatch
    from cluster.node.embedded import EmbeddedNode as Node
    from cluster.services.decorators import service_operation as operation
    from cluster.services.decorators import service_query as query
    from cluster.services.timers import at, every
    from datapath.errors import RejectedError
    from datapath.operations import ClusterStatus, Digest, NodeState
    from datapath.service import ReadTransaction, Service, Transaction

__all__ = [
    "DEFAULT_ENDPOINTS",
    "AsyncClient",
    "AsyncKeyWatch",
    "AsyncLease",
    "AsyncLock",
    "AsyncMirror",
    "Change",
    "Client",
    "ClientError",
    "ClusterStatus",
    "DeleteRangeResult",
    "DeleteResult",
    "Digest",
    "GetResult",
    "InvalidRequestError",
    "Item",
    "KeyWatch",
    "Leader",
    "LeaderEvent",
    "Lease",
    "LeaseInfo",
    "ListedLease",
    "Lock",
    "LockHeldError",
    "LockLostError",
    "Mirror",
    "NewTokenInfo",
    "Node",
    "NodeState",
    "NotAppliedError",
    "Page",
    "PreconditionFailedError",
    "PutResult",
    "ReadTransaction",
    "RefusedError",
    "RejectedError",
    "RevisionCompactedError",
    "RevokeResult",
    "RoleInfo",
    "RoleRights",
    "Service",
    "StorageFullError",
    "TokenInfo",
    "Transaction",
    "TxnDeleteResult",
    "TxnPutResult",
    "TxnResult",
    "UnavailableError",
    "UnknownOutcomeError",
    "ViewSummary",
    "WatchEvent",
    "WrongClusterError",
    "at",
    "every",
    "gt",
    "lt",
    "ne",
    "operation",
    "query",
]

# What the imports above say to type checkers, for the run time: the modules and their names.
_EXPORTS = {
    "cluster.client.aio": ("AsyncClient",),
    "cluster.client.endpoints": ("DEFAULT_ENDPOINTS",),
    "cluster.client.errors": (
        "ClientError",
        "InvalidRequestError",
        "LockHeldError",
        "LockLostError",
        "NotAppliedError",
        "PreconditionFailedError",
        "RefusedError",
        "RevisionCompactedError",
        "StorageFullError",
        "UnavailableError",
        "UnknownOutcomeError",
        "WrongClusterError",
    ),
    "cluster.client.leasing": ("AsyncLease", "AsyncLock"),
    "cluster.client.mirrors": ("AsyncMirror",),
    "cluster.client.sync": ("Client",),
    "cluster.client.sync_leasing": ("Lease", "Lock"),
    "cluster.client.sync_watching": ("KeyWatch", "Mirror"),
    "cluster.client.watching": ("AsyncKeyWatch",),
    "cluster.client.results": (
        "DeleteRangeResult",
        "Change",
        "DeleteResult",
        "GetResult",
        "Item",
        "Leader",
        "LeaderEvent",
        "LeaseInfo",
        "ListedLease",
        "NewTokenInfo",
        "Page",
        "PutResult",
        "RevokeResult",
        "RoleInfo",
        "RoleRights",
        "TokenInfo",
        "TxnDeleteResult",
        "TxnPutResult",
        "TxnResult",
        "ViewSummary",
        "WatchEvent",
    ),
    "cluster.client.txn": ("gt", "lt", "ne"),
    "datapath.errors": ("RejectedError",),
    "datapath.operations": ("ClusterStatus", "Digest", "NodeState"),
    "cluster.node.embedded": ("Node",),
    "cluster.services.decorators": ("operation", "query"),
    "cluster.services.timers": ("at", "every"),
    "datapath.service": ("ReadTransaction", "Service", "Transaction"),
}
_OWN_NAMES = {"Node": "EmbeddedNode", "operation": "service_operation", "query": "service_query"}
"""What a module calls what has another name here."""
_MODULES = {name: module for module, names in _EXPORTS.items() for name in names}


def __getattr__(name: str) -> object:
    """Import a public name. Those that come with it (its errors, say) are named alike."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        importlib.import_module(_MODULES[name])
    except ModuleNotFoundError as error:
        raise ImportError(
            f"onecopy.{name} needs {error.name}, which is not installed: "
            "pip install 'onecopy[server]'"
        ) from error
    for module, names in _EXPORTS.items():
        if (found := sys.modules.get(module)) is not None:
            _adopt([vars(found).get(_OWN_NAMES.get(each, each)) for each in names])
    value = globals()[name] = getattr(sys.modules[_MODULES[name]], _OWN_NAMES.get(name, name))
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _adopt(objects: list[object]) -> None:
    """Have tracebacks and documentation say `onecopy.Client`, not which module defines it."""
    for each in objects:
        # A struct keeps its module, where msgspec looks up what its annotations name.
        if hasattr(each, "__module__") and not hasattr(each, "__struct_fields__"):
            each.__module__ = __name__


# PyPI has another package `cluster`. pip installs its __init__.py over ours, which is empty, or
# ours over its; ours has to work both ways, also where theirs fails for want of `pkg_resources`.
try:
    importlib.import_module("cluster")
except ImportError:
    _spec = importlib.util.find_spec("cluster")
    if _spec is None:
        raise
    sys.modules["cluster"] = importlib.util.module_from_spec(_spec)
