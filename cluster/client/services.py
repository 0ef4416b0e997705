"""Calling users' services: the names, arguments and results of a service's methods.

    shop = client.service(Shop)
    order = shop.reserve(item="x", count=2)

What is called is known from the class itself: whether a method reads or writes, the names of its
arguments, and the type that its result is decoded into.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Concatenate, Generic, ParamSpec, TypedDict, TypeVar, Unpack, overload
from urllib.parse import quote

import msgspec

from cluster.client.arguments import (
    check_idempotency_after,
    check_idempotency_key,
    check_text,
    check_timeout,
)
from cluster.client.errors import (
    InvalidRequestError,
    RefusedError,
    UnavailableError,
    UnknownOutcomeError,
)
from cluster.client.exchange import FinalResponse, Request, decode_problem, raise_for
from cluster.client.requests import query_string, read_query, write_call, write_query
from cluster.client.retries import Transport
from datapath.operations import Ack, Consistency
from datapath.service import Service

_P = ParamSpec("_P")
_R = TypeVar("_R")
ServiceT = TypeVar("ServiceT", bound=Service)


class CallOptions(TypedDict, total=False):
    """How the calls of one proxy are made. As for `put`: `ack`, `min_copies`, `idempotency_key`,
    `idempotency_after`; as for `get`: `consistency`, `max_staleness_ms`; for both `timeout_ms`.
    Of a service that is given by name alone: `reads` calls queries; `from_text`: values may come as
    text where the method takes numbers.
    """

    ack: Ack
    min_copies: int
    consistency: Consistency
    max_staleness_ms: int | None
    idempotency_key: str
    idempotency_after: int | None
    timeout_ms: int | None
    reads: bool
    from_text: bool


class ServiceName(msgspec.Struct, frozen=True):
    """A service: its name in the cluster, and its class, None where only the name is known."""

    name: str
    kind: type[Service] | None = None


class _Answer(msgspec.Struct):
    result: msgspec.Raw


class MethodCall(msgspec.Struct, frozen=True):
    """One call of a method: where it goes, and the type of its result.

    `reads`: it is a query; None: not known.
    """

    target: str
    arguments: bytes
    reads: bool | None
    result: Any


def name_service(service: type[Service] | str, name: str = "") -> ServiceName:
    """Return which service is meant: a class, by its own name or `name`, or a name alone."""
    check_text("name", name)
    if isinstance(service, str):
        return ServiceName(check_text("service", service))
    if not _is_service(service):
        kind = type(service).__name__
        raise TypeError(f"service must be a class of services or a service's name, not {kind}")
    return ServiceName(name or service.service_name(), service)


def _is_service(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, Service)


def make_method_call(
    service: ServiceName, method: str, args: tuple[Any, ...], named: Mapping[str, Any]
) -> MethodCall:
    """Return a call of a method. Raises TypeError for arguments that the method has not."""
    target = f"/v1/services/{quote(service.name, safe='')}/{quote(method, safe='')}"
    if service.kind is None:
        if args:
            raise TypeError(f"{service.name}.{method}: give the arguments by name")
        return MethodCall(target, _encode(service, method, named), None, Any)
    function = getattr(service.kind, method, None)
    mark = getattr(function, "__onecopy__", None)
    if function is None or mark is None:
        raise AttributeError(f"{service.kind.__qualname__} has no operation or query {method!r}")
    # In place of self and the transaction.
    bound = inspect.signature(function).bind(None, None, *args, **named)
    arguments = dict(list(bound.arguments.items())[2:])
    result = typing.get_type_hints(function, include_extras=True).get("return", Any)
    return MethodCall(target, _encode(service, method, arguments), mark == "query", result)


class AsyncServiceProxy(Generic[ServiceT]):
    """A service as `AsyncClient` calls it: each of its methods, to be awaited.

    `call` is what type checkers understand: `await shop.call(Shop.reserve, item="x", count=2)`.
    """

    def __init__(self, send: Callable[[MethodCall], Awaitable[Any]], service: ServiceName) -> None:
        self._send = send
        self._service = service

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        def call(*args: Any, **named: Any) -> Awaitable[Any]:
            return self._send(make_method_call(self._service, name, args, named))

        return _named(call, name)

    async def call(
        self, method: Callable[Concatenate[Any, _P], _R], /, *args: _P.args, **named: _P.kwargs
    ) -> _R:
        """Call a method of the class, as `Shop.reserve`. Raises ClientError."""
        call = make_method_call(self._service, method.__name__, args, named)
        result: _R = await self._send(call)
        return result


class ServiceProxy:
    """A service as `Client` calls it: each of its methods, which return the result."""

    def __init__(self, send: Callable[[MethodCall], Any], service: ServiceName) -> None:
        self._send = send
        self._service = service

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            return self._send(make_method_call(self._service, name, args, named))

        return _named(call, name)


def _named(call: Callable[..., Any], name: str) -> Callable[..., Any]:
    if name.startswith("_"):
        raise AttributeError(name)
    call.__name__ = name
    return call


def check_call_options(options: CallOptions) -> None:
    """Refuse options that are none. Raises TypeError and InvalidRequestError as the calls do."""
    write_query(options.get("ack", "all"), options.get("min_copies", 0))
    read_query(options.get("consistency", "linearizable"), options.get("max_staleness_ms"))
    key = options.get("idempotency_key", "")
    check_idempotency_after(check_idempotency_key(key), options.get("idempotency_after"))
    check_timeout(options.get("timeout_ms"))


def make_request(call: MethodCall, options: CallOptions) -> Request:
    """Return the HTTP request that makes a call."""
    reads = options.get("reads", False) if call.reads is None else call.reads
    from_text = "true" if options.get("from_text", False) else None
    if reads:
        consistency = options.get("consistency", "linearizable")
        query = read_query(consistency, options.get("max_staleness_ms"))
        query |= {"arguments": call.arguments.decode(), "from_text": from_text}
        return Request("GET", call.target + query_string(query))
    query = write_query(options.get("ack", "all"), options.get("min_copies", 0))
    query["from_text"] = from_text
    return write_call(
        "POST",
        call.target + query_string(query),
        {"Content-Type": "application/json"},
        call.arguments,
        options.get("idempotency_key", ""),
        options.get("idempotency_after"),
    )


def decode_result(call: Request, reply: FinalResponse, kind: Any) -> Any:
    """Return the result that an answer carries, as `kind`. Raises ClientError."""
    if reply.status == 409 and (problem := decode_problem(409, reply.body)).outcome != "unknown":
        raise RefusedError(problem.detail, code=problem.code, status=409)
    if reply.status != 200:
        raise_for(call, reply)
    try:
        answer = msgspec.json.decode(reply.body, type=_Answer)
        return msgspec.json.decode(answer.result, type=kind)
    except msgspec.MsgspecError as error:
        kind_of_error = UnknownOutcomeError if call.writes else UnavailableError
        raise kind_of_error(
            f"the answer is not of the type expected: {error}", code="bad_answer"
        ) from error


def _encode(service: ServiceName, method: str, arguments: Mapping[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(arguments)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(
            f"{service.name}.{method}: an argument cannot be sent as JSON: {error}",
            code="invalid_argument",
        ) from None


class AsyncServiceCalls:
    """What an `AsyncClient` has for services."""

    _transport: Transport

    @overload
    def service(self, service: str, **options: Unpack[CallOptions]) -> AsyncServiceProxy[Any]: ...
    @overload
    def service(
        self, service: type[ServiceT], *, name: str = "", **options: Unpack[CallOptions]
    ) -> AsyncServiceProxy[ServiceT]: ...
    def service(
        self, service: type[ServiceT] | str, *, name: str = "", **options: Unpack[CallOptions]
    ) -> AsyncServiceProxy[Any]:
        """Return a service of the cluster, whose methods can be called and awaited.

        `service` is its class or its name; `name`: where it is not hosted under the class's own.
        Its refusals are RefusedError. Options and other errors as for `put` and `get`.
        """
        found = name_service(service, name)
        check_call_options(options)

        async def send(call: MethodCall) -> Any:
            return await self._call_service(call, options)

        return AsyncServiceProxy(send, found)

    async def _call_service(self, call: MethodCall, options: CallOptions) -> Any:
        request = make_request(call, options)
        reply = await self._transport.call(request, check_timeout(options.get("timeout_ms")))
        return decode_result(request, reply, call.result)
