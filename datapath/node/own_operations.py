"""The operations that services ask for by themselves, on the primary (`Service.due`)."""

from __future__ import annotations

from collections.abc import Mapping

from datapath.errors import OperationError
from datapath.execution.pipeline import Pipeline
from datapath.execution.read_view import ReadView
from datapath.operations import Operation, Result
from datapath.service import Service

OWN_OPERATION_TIMEOUT_MS = 10_000
"""How long an operation that a service asks for by itself may wait."""


class OwnOperation:
    """What becomes of an operation that a service has asked for by itself."""

    __slots__ = ("name", "service", "under_way", "view")

    def __init__(self, name: str, service: Service, view: ReadView) -> None:
        self.name = name
        self.service = service
        self.view = view
        self.under_way = False

    def done(self) -> bool:
        """Whether it has been answered."""
        return not self.under_way

    def set_result(self, result: Result, /) -> None:
        """It has committed."""
        self.under_way = False
        self.service.on_done(result.value)

    def set_exception(self, exception: OperationError, /) -> None:
        """It was not executed, or nobody knows: the service asks again if it still wants to."""
        del exception
        self.under_way = False


class OwnOperations:
    """Submits them, one of each service at a time."""

    def __init__(
        self,
        services: Mapping[str, Service],
        views: Mapping[str, ReadView],
        pipeline: Pipeline,
    ) -> None:
        self._services = services
        self._pipeline = pipeline
        self._asking = [
            OwnOperation(name, service, views[name])
            for name, service in services.items()
            if type(service).due is not Service.due
        ]

    def on_epoch_open(self, now_ms: float) -> None:
        """This node is the primary now, and executes."""
        for service in self._services.values():
            service.on_epoch_open(now_ms)

    def on_tick(self, now_ms: float, *, may_execute: bool) -> None:
        """Time has passed on the primary: submit what is wanted now, if it may be executed.

        What cannot be submitted is asked for at a later tick.
        """
        for own in self._asking:
            if own.under_way or not may_execute:
                own.service.on_tick(now_ms)
                continue
            wanted = own.service.due(own.view, now_ms)
            if wanted is None:
                continue
            method, args = wanted
            own.under_way = True
            operation = Operation(method, args, service=own.name)
            try:
                self._pipeline.submit(operation, OWN_OPERATION_TIMEOUT_MS, own)
            except OperationError as problem:  # not the primary, or too much waits
                own.set_exception(problem)
