"""`/v3/auth`: etcd's tokens are this cluster's own.

A user's password is a token of this cluster, and the token that he is given for it is the same.
"""

from __future__ import annotations

import asyncio

from aiohttp import hdrs

from cluster.api.access import ApiAccess, principal_in
from cluster.api.certificate_name import certificate_name
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
from cluster.services.access_guard import principal_of, principal_of_certificate
from cluster.services.rights import Need
from datapath.errors import OperationError
from datapath.operations import Principal

_BEARER = "bearer "


def etcd_caller(headers: Headers, transport: asyncio.BaseTransport | None) -> Principal:
    """Return whom a request names as its caller: by a token, with `Bearer` before it or without.

    Without a token it is who the connection's certificate names. Raises EtcdError for what is no
    token at all.
    """
    values = headers.getall(hdrs.AUTHORIZATION, ())
    if not values:
        return principal_of_certificate(certificate_name(transport))
    value = values[0].strip(" \t")
    if value[: len(_BEARER)].lower() != _BEARER:
        value = _BEARER + value
    principal = principal_in(value) if len(values) == 1 else None
    if principal is None:
        raise EtcdError(UNAUTHENTICATED, "etcdserver: invalid auth token")
    return principal


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
