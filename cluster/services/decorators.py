"""`onecopy.operation` and `onecopy.query`: what `datapath.service` has, typed as callers see it.

To a type checker a marked method has no transaction, and an `async` one returns what it returns
when awaited: that is how `client.service(Shop).reserve(item="x", count=2)` is called. At run time
the method stays what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar, overload

from datapath import service
from datapath.service import ReadTransaction, Transaction

_S = TypeVar("_S")
_P = ParamSpec("_P")
_R = TypeVar("_R")


@overload
def service_operation(
    method: Callable[Concatenate[_S, Transaction, _P], Coroutine[Any, Any, _R]],
) -> Callable[Concatenate[_S, _P], _R]: ...
@overload
def service_operation(
    method: Callable[Concatenate[_S, Transaction, _P], _R],
) -> Callable[Concatenate[_S, _P], _R]: ...
def service_operation(method: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a method that may write: `def reserve(self, tx: Transaction, item: str) -> Order`.

    It runs once, on the primary; it may be `async`. Arguments and result are annotated with types
    that JSON can carry (msgspec's). To refuse, raise `RejectedError`.
    """
    return service.operation(method)


def service_query(
    method: Callable[Concatenate[_S, ReadTransaction, _P], _R],
) -> Callable[Concatenate[_S, _P], _R]:
    """Mark a method that only reads, on any node; it must not be `async`."""
    service.query(method)
    return method  # type: ignore[return-value]  # see above: what callers see
