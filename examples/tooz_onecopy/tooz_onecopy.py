"""A driver for tooz, OpenStack's coordination library: its groups, locks and leaders on onecopy.

    coordinator = coordination.get_coordinator("onecopy://10.0.0.1:8101,10.0.0.2:8101", b"host1")

In the cluster:

    tooz/groups/GROUP           a group; each join writes it again, so that its removal notices
    tooz/members/GROUP/MEMBER   the capabilities of a member, on the lease of its coordinator
    lock tooz/locks/NAME        a lock
    election tooz/leaders/GROUP the leader; its value is the member

Names are percent-encoded, because tooz's are bytes. The client keeps leases alive by itself, so
that a coordinator needs no heartbeat; one whose process is gone is a member for
`membership_timeout` more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeVar
from urllib.parse import quote, unquote_to_bytes

import tooz
from tooz import coordination, locking, utils

import onecopy

T = TypeVar("T")

GROUPS, MEMBERS, LOCKS, LEADERS = "tooz/groups/", "tooz/members/", "tooz/locks/", "tooz/leaders/"
DEFAULT_TTL_S = 10.0
CONNECT_TIMEOUT_MS = 5000


def encode(name: bytes | str) -> str:
    """Return tooz's name as a part of a key."""
    return quote(name, safe="")


@contextmanager
def translated() -> Iterator[None]:
    """Raise onecopy's errors as tooz's."""
    try:
        yield
    except onecopy.UnavailableError as error:
        raise coordination.ToozConnectionError(str(error)) from error
    except onecopy.UnknownOutcomeError as error:
        raise coordination.OperationTimedOut(str(error)) from error
    except onecopy.ClientError as error:
        raise tooz.ToozError(str(error)) from error


class OnecopyLock(locking.Lock):
    """An exclusive lock, first come first served."""

    def __init__(self, coordinator: OnecopyDriver, name: bytes, ttl: float) -> None:
        super().__init__(name)
        self._coordinator = coordinator
        self._lock_name = LOCKS + encode(name)
        self._ttl = ttl
        self._held: onecopy.Lock | None = None
        self._guard = threading.Lock()  # of `_held`: threads may share this object

    @property
    def acquired(self) -> bool:
        """Whether this object took the lock, and has not released it."""
        return self._held is not None

    def acquire(
        self, blocking: bool | float = True, shared: bool = False, timeout: float | None = None
    ) -> bool:
        """Take the lock; `blocking` may be the seconds to wait. Returns whether it was taken."""
        if shared:
            raise tooz.NotImplemented("onecopy has no shared locks")
        wait = (timeout if blocking else 0) if isinstance(blocking, bool) else blocking
        until = None if wait is None else time.monotonic() + wait
        coordinator = self._coordinator
        with translated():
            lock = self._take(until)
            if lock is None:
                return False
            before = self._exchange(lock)
            if before is not None:
                before.release()  # somebody broke it: only its lease is left
        coordinator.acquired_locks.add(self)
        return True

    def _take(self, until: float | None) -> onecopy.Lock | None:
        """Wait for the lock; None: it is not free by then."""
        client, note = self._coordinator.client, encode(self._coordinator.member_id)
        while True:
            wait = None if until is None else max(0.0, until - time.monotonic())
            lock = client.lock(self._lock_name, ttl=self._ttl, note=note, wait=wait)
            try:
                lock.acquire()
            except onecopy.LockHeldError:
                return None
            except onecopy.LockLostError:  # its place in the queue: nobody was reached for too long
                if not wait and wait is not None:
                    return None
            else:
                return lock

    def release(self) -> bool:
        """Give the lock up; return whether it was held until now."""
        held = self._exchange(None)
        self._coordinator.acquired_locks.discard(self)
        if held is None:
            return False
        with translated():
            try:
                return self._coordinator.client.release_lock(held.name, held.token)
            finally:
                held.release()

    def is_still_owner(self) -> bool:
        """Whether the cluster says that this object holds the lock."""
        held = self._held
        if held is None:
            return False
        with translated():
            holder = self._coordinator.client.leader(held.name)
        return holder is not None and holder.token == held.token

    def break_(self) -> bool:
        """Take the lock away from whoever holds it."""
        client = self._coordinator.client
        with translated():
            holder = client.leader(self._lock_name)
            return holder is not None and client.release_lock(self._lock_name, holder.token)

    def _exchange(self, lock: onecopy.Lock | None) -> onecopy.Lock | None:
        with self._guard:
            before, self._held = self._held, lock
            return before


class OnecopyDriver(
    coordination.CoordinationDriverCachedRunWatchers, coordination.CoordinationDriverWithExecutor
):
    """A coordinator on a onecopy cluster.

    onecopy://HOST:PORT[,HOST:PORT…][?timeout=10][&lock_timeout=…][&membership_timeout=…]
    [&leader_timeout=…]: the seconds after which a lock, a membership or a leader that is not heard
    of any more is free. One node is enough: the client finds the others.
    """

    CHARACTERISTICS = (
        coordination.Characteristics.NON_TIMEOUT_BASED,
        coordination.Characteristics.DISTRIBUTED_ACROSS_THREADS,
        coordination.Characteristics.DISTRIBUTED_ACROSS_PROCESSES,
        coordination.Characteristics.DISTRIBUTED_ACROSS_HOSTS,
        coordination.Characteristics.LINEARIZABLE,
        coordination.Characteristics.SERIALIZABLE,
        coordination.Characteristics.SAME_VIEW_UNDER_PARTITIONS,
    )

    def __init__(self, member_id: bytes | str, parsed_url: Any, options: dict[str, Any]) -> None:
        super().__init__(utils.to_binary(member_id, "utf-8"), parsed_url, options)
        self.client: onecopy.Client
        self.acquired_locks: set[OnecopyLock] = set()
        self._endpoints = [f"http://{node}" for node in parsed_url.netloc.split(",") if node]
        chosen = utils.collapse(options)
        timeout = chosen.get("timeout", DEFAULT_TTL_S)
        self._lock_ttl = float(chosen.get("lock_timeout", timeout))
        self._membership_ttl = float(chosen.get("membership_timeout", timeout))
        self._leader_ttl = float(chosen.get("leader_timeout", timeout))
        self._leading: dict[bytes, onecopy.Lock] = {}
        self._membership: onecopy.Lease | None = None
        self._membership_guard = threading.Lock()
        self._held = ExitStack()

    @property
    def member_id(self) -> bytes:
        """Who this coordinator is."""
        return bytes(self._member_id)

    # -- start and stop

    def _start(self) -> None:
        with translated(), ExitStack() as held:
            self.client = held.enter_context(onecopy.Client(self._endpoints or None))
            self.client.status(timeout_ms=CONNECT_TIMEOUT_MS)
            self._held = held.pop_all()

    def _stop(self) -> None:
        with suppress(tooz.ToozError), translated(), self._held:  # what is left ends with its lease
            for lock in list(self.acquired_locks):
                lock.release()
            for group_id in list(self._leading):
                self.stand_down_group_leader(group_id)
        self._membership = None

    def _lease(self) -> str:
        """Return the lease that memberships hang on; a new one if the last was lost."""
        with self._membership_guard:
            if self._membership is None or self._membership.is_lost:
                lease = self.client.lease(self._membership_ttl)
                self._membership = self._held.enter_context(lease)
            return self._membership.id

    def _submit(self, call: Callable[[], T]) -> coordination.CoordinatorResult[T]:
        return coordination.CoordinatorResult(self._executor.submit(call), translated)

    # -- groups

    def create_group(self, group_id: bytes) -> coordination.CoordinatorResult[None]:
        """Create a group, without members."""

        def create() -> None:
            try:
                self.client.put(GROUPS + encode(group_id), b"", if_absent=True)
            except onecopy.PreconditionFailedError:
                raise coordination.GroupAlreadyExist(group_id) from None

        return self._submit(create)

    def delete_group(self, group_id: bytes) -> coordination.CoordinatorResult[None]:
        """Remove a group that has no members."""
        key, prefix = GROUPS + encode(group_id), f"{MEMBERS}{encode(group_id)}/"

        def delete() -> None:
            while True:
                reads = self.client.txn().get(key).list(prefix, limit=1, keys_only=True)
                group, members = reads.commit().results
                if not isinstance(group, onecopy.GetResult):
                    raise coordination.GroupNotCreated(group_id)
                if isinstance(members, onecopy.Page) and members.items:
                    raise coordination.GroupNotEmpty(group_id)
                with suppress(onecopy.PreconditionFailedError):  # somebody has joined: look again
                    self.client.delete(key, if_revision=group.revision)
                    return

        return self._submit(delete)

    def get_groups(self) -> coordination.CoordinatorResult[list[bytes]]:
        """Return the names of all groups."""

        def groups() -> list[bytes]:
            items = self.client.list(GROUPS, keys_only=True)
            return [unquote_to_bytes(item.key.removeprefix(GROUPS)) for item in items]

        return self._submit(groups)

    # -- members

    def _member(self, group_id: bytes, member_id: bytes) -> str:
        return f"{MEMBERS}{encode(group_id)}/{encode(member_id)}"

    def join_group(
        self, group_id: bytes, capabilities: dict[str, Any] | None = None
    ) -> coordination.CoordinatorResult[None]:
        """Be a member until this coordinator leaves, stops, or is gone."""
        group, member = GROUPS + encode(group_id), self._member(group_id, self.member_id)

        def join() -> None:
            joins = self.client.txn().if_(group, exists=True).if_(member, exists=False)
            joins.put(group, b"").put(member, utils.dumps(capabilities), lease=self._lease())
            joined = joins.else_().get(group).commit()
            if not joined.succeeded:
                if joined.results[0] is None:
                    raise coordination.GroupNotCreated(group_id)
                raise coordination.MemberAlreadyExist(group_id, self.member_id)
            self._joined_groups.add(group_id)

        return self._submit(join)

    def leave_group(self, group_id: bytes) -> coordination.CoordinatorResult[None]:
        """Be no member any more."""

        def leave() -> None:
            if not self.client.delete(self._member(group_id, self.member_id)).deleted:
                raise coordination.MemberNotJoined(group_id, self.member_id)
            self._joined_groups.discard(group_id)

        return self._submit(leave)

    def update_capabilities(
        self, group_id: bytes, capabilities: dict[str, Any]
    ) -> coordination.CoordinatorResult[None]:
        """Change what this member says of itself."""
        member = self._member(group_id, self.member_id)

        def update() -> None:
            updates = self.client.txn().if_(member, exists=True)
            updates.put(member, utils.dumps(capabilities), lease=self._lease())
            if not updates.commit().succeeded:
                raise coordination.MemberNotJoined(group_id, self.member_id)

        return self._submit(update)

    def get_members_with_capabilities(
        self, group_id: bytes
    ) -> coordination.CoordinatorResult[dict[bytes, Any]]:
        """Return all members of a group, and what they say of themselves."""
        return self._submit(lambda: self._members(group_id))

    def get_members(self, group_id: bytes) -> coordination.CoordinatorResult[set[bytes]]:
        """Return the members of a group."""
        return self._submit(lambda: set(self._members(group_id)))

    def _members(self, group_id: bytes) -> dict[bytes, Any]:
        if self.client.get(GROUPS + encode(group_id)) is None:
            raise coordination.GroupNotCreated(group_id)
        prefix = f"{MEMBERS}{encode(group_id)}/"
        return {
            unquote_to_bytes(item.key.removeprefix(prefix)): utils.loads(item.value)
            for item in self.client.list(prefix)
        }

    def get_member_capabilities(
        self, group_id: bytes, member_id: bytes
    ) -> coordination.CoordinatorResult[Any]:
        """Return what a member says of itself."""
        return self._submit(lambda: self._capabilities(group_id, member_id))

    def get_member_info(
        self, group_id: bytes, member_id: bytes
    ) -> coordination.CoordinatorResult[dict[str, Any]]:
        """Return what is known of a member."""
        return self._submit(lambda: {"capabilities": self._capabilities(group_id, member_id)})

    def _capabilities(self, group_id: bytes, member_id: bytes) -> Any:
        found = self.client.get(self._member(group_id, member_id))
        if found is None:
            raise coordination.MemberNotJoined(group_id, member_id)
        return utils.loads(found.value)

    # -- locks and leaders

    def get_lock(self, name: bytes) -> OnecopyLock:
        """Return a lock; nothing is taken yet."""
        return OnecopyLock(self, name, self._lock_ttl)

    def run_watchers(self, timeout: float | None = None) -> list[Any]:
        """Call back for whoever joined or left since the last call, and lead where nobody does."""
        results: list[Any] = super().run_watchers(timeout)
        self.run_elect_coordinator()
        return results

    def run_elect_coordinator(self) -> None:
        """Become the leader of each group that is watched for it and has none."""
        for group_id, hooks in list(self._hooks_elected_leader.items()):
            if self._is_elected(group_id):
                hooks.run(coordination.LeaderElected(group_id, self.member_id))

    def _is_elected(self, group_id: bytes) -> bool:
        """Whether this coordinator has become the leader now."""
        leading = self._leading.get(group_id)
        if leading is not None and not leading.is_lost:
            return False
        name = LEADERS + encode(group_id)
        with translated():
            if self.client.leader(name) is not None:
                return False
            value = encode(self.member_id)
            election = self.client.elect(name, ttl=self._leader_ttl, value=value, wait=0)
            try:
                election.acquire()
            except onecopy.LockHeldError:
                return False
        self._leading[group_id] = election
        return True

    def stand_down_group_leader(self, group_id: bytes) -> bool:
        """Lead no more; return whether this coordinator did."""
        leading = self._leading.pop(group_id, None)
        if leading is None:
            return False
        with translated():
            leading.release()
        return True

    def get_leader(self, group_id: bytes) -> coordination.CoordinatorResult[bytes | None]:
        """Return the leader of a group, or None."""

        def leader() -> bytes | None:
            found = self.client.leader(LEADERS + encode(group_id))
            return None if found is None else unquote_to_bytes(found.value)

        return self._submit(leader)
