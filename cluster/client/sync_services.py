"""What a `Client` has for services: their methods, called without asyncio."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack, overload

from cluster.client.arguments import draw_key
from cluster.client.services import (
    CallOptions,
    MethodCall,
    ServiceProxy,
    ServiceT,
    check_call_options,
    name_service,
)


class ServiceCalls:
    """What a `Client` has for services."""

    _run: Callable[..., Any]

    @overload
    def service(self, service: str, **options: Unpack[CallOptions]) -> ServiceProxy: ...
    @overload
    def service(
        self, service: type[ServiceT], *, name: str = "", **options: Unpack[CallOptions]
    ) -> ServiceT: ...
    def service(
        self, service: type[ServiceT] | str, *, name: str = "", **options: Unpack[CallOptions]
    ) -> Any:
        """Return a service of the cluster, whose methods can be called; see `AsyncClient.service`.

        To a type checker it is the class itself: `client.service(Shop).reserve(item="x", count=2)`.
        """
        found = name_service(service, name)
        check_call_options(options)

        def send(call: MethodCall) -> Any:
            own = options.copy()
            key = None
            if not (options.get("reads") if call.reads is None else call.reads):
                key = options.get("idempotency_key", "") or draw_key()
                own["idempotency_key"] = key
            return self._run(
                lambda client: client._call_service(call, own),
                options.get("timeout_ms"),
                write=key,
            )

        return ServiceProxy(send, found)
