"""The services that every node has: the store, leases, locks, tokens and roles, the groups."""

from __future__ import annotations

from collections.abc import Callable

from cluster.services.access import ACCESS_SERVICE, Access
from cluster.services.groups import GROUPS_SERVICE, Groups
from cluster.services.kv import KeyValue
from cluster.services.leases import LEASES_SERVICE, Leases
from cluster.services.locks import LOCKS_SERVICE, Locks
from datapath.clock import clock_ms
from datapath.operations import STORE, Principal
from datapath.service import Service
from datapath.settings import Timing


def built_in_services(
    stall_threshold_ms: float = Timing().stall_threshold_ms,
    clock: Callable[[], float] = clock_ms,
    first_admin: Principal | None = None,
    slot: int | None = None,
) -> dict[str, Service]:
    """Make the services of one node, by their names. `clock` (ms) is its replica's.

    `first_admin`: whose token is an administrator's from the start. `slot`: the group's first one;
    None: there are no groups.
    """
    leases = Leases(clock, stall_threshold_ms, slot)
    return {
        STORE: KeyValue(leases),
        LEASES_SERVICE: leases,
        LOCKS_SERVICE: Locks(leases),
        ACCESS_SERVICE: Access(first_admin),
        GROUPS_SERVICE: Groups(),
    }
