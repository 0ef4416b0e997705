"""`/v3/lease`: etcd's leases, kept among this service's own under ids of their own."""

from __future__ import annotations

import secrets

from cluster.etcd.answers import MAX_LEASE_ID, Document, shown_lease, stored_lease, with_numbers
from cluster.etcd.backend import Backend
from cluster.etcd.errors import (
    OUT_OF_RANGE,
    EtcdError,
    invalid,
)
from cluster.etcd.messages import (
    EmptyRequest,
    LeaseGrantRequest,
    LeaseIdRequest,
    LeaseTimeToLiveRequest,
)
from cluster.services.leases import LEASES_SERVICE, MAX_LISTED_LEASES
from datapath.errors import RejectedError
from datapath.operations import Operation, Query, Result

MIN_GRANTED_TTL_S = 2
"""etcd's, at its default election timeout."""
MAX_ASKED_TTL_S = 9_000_000_000
"""Over that, etcd refuses."""
MAX_GRANTED_TTL_S = (2**32 - 1) // 1000
"""What a longer one comes to: 49 days. The answer says so."""
_DRAWS = 3


class EtcdLeases:
    """The calls of the service Lease."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def grant(self, request: LeaseGrantRequest) -> Document:
        """Begin a lease."""
        if request.TTL > MAX_ASKED_TTL_S:
            raise EtcdError(OUT_OF_RANGE, "etcdserver: too large lease TTL")
        if request.ID < 0 or request.ID > MAX_LEASE_ID:
            raise invalid(f"onecopy: the ID of a lease is between 1 and {MAX_LEASE_ID}")
        ttl_s = min(max(request.TTL, MIN_GRANTED_TTL_S), MAX_GRANTED_TTL_S)
        for draw in range(_DRAWS):
            lease = request.ID or 1 + secrets.randbelow(MAX_LEASE_ID)
            asked = Operation("grant", (ttl_s * 1000, stored_lease(lease)), service=LEASES_SERVICE)
            try:
                result = await self._backend.execute(asked)
            except RejectedError as error:
                if error.code != "lease_exists" or request.ID or draw == _DRAWS - 1:
                    raise
                continue
            break
        header = self._backend.header(result.index, result.epoch)
        return {"header": header, **with_numbers([("ID", lease), ("TTL", ttl_s)])}

    async def revoke(self, request: LeaseIdRequest) -> Document:
        """End a lease, and its keys with it."""
        asked = Operation("revoke", (stored_lease(request.ID),), service=LEASES_SERVICE)
        result = await self._backend.execute(asked)
        return {"header": self._backend.header(result.index, result.epoch)}

    async def keep_alive(self, request: LeaseIdRequest) -> Document:
        """Start a lease's time anew; a lease that has gone is answered without a TTL."""
        asked = Operation("keep_alive", ((stored_lease(request.ID),),), service=LEASES_SERVICE)
        result = await self._backend.execute(asked)
        [ttl_ms] = result.value
        header = self._backend.header(result.index, result.epoch)
        return {"header": header, **with_numbers([("ID", request.ID), ("TTL", ttl_ms // 1000)])}

    async def time_to_live(self, request: LeaseTimeToLiveRequest) -> Document:
        """Return how long a lease has still to live: -1 if it has gone."""
        backend = self._backend
        result = await self._look_up(stored_lease(request.ID))
        if result is None:
            known = await backend.now()
            header = backend.header(known.index, known.epoch)
            return {"header": header, **with_numbers([("ID", request.ID), ("TTL", -1)])}
        ttl_ms, left_ms, keys, _ = result.value
        numbers = [("ID", request.ID), ("TTL", left_ms // 1000), ("grantedTTL", ttl_ms // 1000)]
        fields = with_numbers(numbers)
        if request.keys and keys:
            fields["keys"] = list(keys)
        return {"header": backend.header(result.index, result.epoch), **fields}

    async def _look_up(self, lease: int) -> Result | None:
        try:
            asked = Operation("look_up", (lease,), service=LEASES_SERVICE)
            return await self._backend.execute(asked)
        except RejectedError as error:
            if error.code != "lease_not_found":
                raise
            return None

    async def list(self, _request: EmptyRequest) -> Document:
        """Return the ids of all leases, up to MAX_LISTED_LEASES."""
        asked = Query("list", (0, MAX_LISTED_LEASES), service=LEASES_SERVICE)
        result = await self._backend.query(asked)
        items, _ = result.value
        document: Document = {"header": self._backend.header(result.index, result.epoch)}
        if items:
            document["leases"] = [{"ID": str(shown_lease(lease))} for lease, _, _ in items]
        return document
