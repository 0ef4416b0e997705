"""`/v3/auth`: etcd's tokens are this cluster's own.

A user's password is a token of this cluster, and the token that he is given for it is the same.
"""

from __future__ import annotations

import asyncio

from aiohttp import hdrs

from cluster.api.access import ApiAccess, caller_named
from cluster.api.headers import Headers
from cluster.etcd.answers import Document
from cluster.etcd.backend import Backend
from cluster.etcd.errors import (
    FAILED_PRECONDITION,
    INVALID_ARGUMENT,
    UNAUTHENTICATED,
    EtcdError,
)
from cluster.etcd.messages import AuthenticateRequest, EmptyRequest
from cluster.services.access_guard import principal_of
from cluster.services.rights import Need
from datapath.errors import OperationError
from datapath.operations import Principal

_BEARER = "bearer "


def etcd_caller(headers: Headers, transport: asyncio.BaseTransport | None) -> Principal:
    """Return whom a request names as its caller (`etcd_caller_named`).

    Raises EtcdError for what is no token at all.
    """
    values = headers.getall(hdrs.AUTHORIZATION, (None,))
    principal = etcd_caller_named(values[0], transport) if len(values) == 1 else None
    if principal is None:
        raise EtcdError(UNAUTHENTICATED, "etcdserver: invalid auth token")
    return principal


def etcd_caller_named(
    authorization: str | None, transport: asyncio.BaseTransport | None
) -> Principal | None:
    """Return whom an Authorization header names, as `caller_named`; `Bearer` may be missing."""
    if authorization is not None:
        value = authorization.strip(" \t")
        is_bearer = value[: len(_BEARER)].lower() == _BEARER
        authorization = value if is_bearer else _BEARER + value
    return caller_named(authorization, transport)


class AuthCalls:
    """The calls of the service Auth that are offered."""

    def __init__(self, backend: Backend, access: ApiAccess) -> None:
        self._backend = backend
        self._access = access

    async def authenticate(self, request: AuthenticateRequest) -> Document:
        """Return the token for a name and a password. The name is not looked at."""
        if not self._access.is_on:
            raise EtcdError(FAILED_PRECONDITION, "etcdserver: authentication is not enabled")
        if not request.name:
            raise EtcdError(INVALID_ARGUMENT, "etcdserver: user name is empty")
        principal = principal_of(request.password)
        try:
            if principal is None:
                raise _wrong()
            self._access.enter_as(principal)
            await self._access.admit(principal, Need("status"))
            known = await self._backend.now()
        except OperationError as error:
            if error.code in {"unauthenticated", "forbidden"}:
                raise _wrong() from None
            raise
        return {
            "header": self._backend.header(known.index, known.epoch),
            "token": request.password,
        }

    async def status(self, _request: EmptyRequest) -> Document:
        """Return whether there is access control."""
        node = self._backend.node
        document: Document = {"header": self._backend.header(node.commit_index, node.epoch)}
        if self._access.is_on:
            document["enabled"] = True
        document["authRevision"] = "1"
        return document


def _wrong() -> EtcdError:
    return EtcdError(
        INVALID_ARGUMENT,
        "etcdserver: authentication failed, invalid user ID or password",
        refuses_caller=True,
    )
