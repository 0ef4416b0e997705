"""The services that every node has: the store, leases, locks."""

from __future__ import annotations

from collections.abc import Callable

from cluster.services.kv import KeyValue
from cluster.services.leases import LEASES_SERVICE, Leases
from cluster.services.locks import LOCKS_SERVICE, Locks
from datapath.clock import clock_ms
from datapath.operations import STORE
from datapath.service import Service
from datapath.settings import Timing


def built_in_services(
    stall_threshold_ms: float = Timing().stall_threshold_ms,
    clock: Callable[[], float] = clock_ms,
) -> dict[str, Service]:
    """Make the services of one node, by their names. `clock` (ms) is its replica's."""
    leases = Leases(clock, stall_threshold_ms)
    return {STORE: KeyValue(leases), LEASES_SERVICE: leases, LOCKS_SERVICE: Locks(leases)}
