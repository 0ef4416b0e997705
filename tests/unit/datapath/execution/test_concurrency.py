"""What is executed beside an `async` operation, and what becomes of one that is given up (X2)."""

from __future__ import annotations

import asyncio

from datapath.errors import RejectedError
from datapath.execution.lock_guard import TOKEN_SIZE_BYTES
from datapath.keyspaces import LOCKS, SERVICES
from datapath.service import Service, Transaction, operation
from datapath.settings import Bounds
from tests.unit.datapath.execution.test_pipeline_guards import Desk, Told

TURNS = 10
"""Of the event loop, after which what can go on has gone on."""


class Slow(Service):
    """Ends when it is let go on; keeps its keys below a prefix."""

    def __init__(self, prefix: bytes) -> None:
        super().__init__()
        self.prefix = prefix
        self.go_on = asyncio.Event()
        self.begun: list[bytes] = []
        self.seen: list[bytes | None] = []
        self.goes_on = False

    @operation
    async def slow(self, tx: Transaction, key: bytes) -> str:
        self.begun.append(key)
        tx.put(self.prefix + key, b"slow")
        while not self.go_on.is_set():
            try:
                await self.go_on.wait()
            except asyncio.CancelledError:
                if not self.goes_on:
                    raise
        self.seen.append(tx.get(self.prefix + key))
        return "slow"

    @operation
    def fast(self, tx: Transaction, key: bytes) -> str:
        self.begun.append(key)
        tx.put(self.prefix + key, b"fast")
        return "fast"

    @operation
    def lock(self, tx: Transaction, name: bytes, token: int) -> None:
        tx.keyspace(LOCKS).put(name, token.to_bytes(TOKEN_SIZE_BYTES))

    @operation
    async def refuse(self, tx: Transaction, key: bytes) -> None:
        tx.put(self.prefix + key, b"")
        await self.go_on.wait()
        raise RejectedError("no", "no")


def make(bounds: Bounds | None = None) -> tuple[Desk, Slow, Slow]:
    one, other = Slow(b"one/"), Slow(b"other/")
    return Desk(bounds=bounds, others={"one": one, "other": other}), one, other


def kept(desk: Desk, key: bytes) -> bytes | None:
    return desk.store.get(SERVICES, key)


async def begin(desk: Desk, service: str, key: bytes = b"k", **options: object) -> Told:
    told = desk.ask("slow", key, service=service, **options)  # type: ignore[arg-type]
    desk.turn()
    await asyncio.sleep(0)
    return told


async def end(desk: Desk, *services: Slow) -> None:
    for service in services:
        service.go_on.set()
    for _ in range(TURNS):
        await asyncio.sleep(0)
    for task in desk.tasks:
        if task.done() and not task.cancelled():
            task.result()  # a failure here would end the node
    desk.commit()


async def test_other_services_go_on_and_its_own_waits() -> None:
    desk, one, _ = make()
    slow = await begin(desk, "one")
    own, also_own = (desk.ask("fast", key, service="one") for key in (b"k", b"l"))
    elsewhere, stored = desk.ask("fast", b"k", service="other"), desk.put("k")
    desk.commit()
    assert (elsewhere.said, stored.said) == ("done", "done")
    assert (slow.said, own.said) == ("", "")
    assert desk.pipeline.waiting_operations() == 2
    await end(desk, one)
    assert (slow.said, own.said, also_own.said) == ("done", "done", "done")
    assert one.begun == [b"k", b"k", b"l"]
    assert one.seen == [b"slow"]
    assert kept(desk, b"one/k") == b"fast"
    assert slow.result is not None
    assert stored.result is not None
    assert slow.result.index > stored.result.index  # it was recorded when it ended


async def test_two_services_may_both_be_under_way() -> None:
    desk, one, other = make()
    first, second = await begin(desk, "one"), await begin(desk, "other")
    assert (one.begun, other.begun) == ([b"k"], [b"k"])
    await end(desk, other)
    assert (first.said, second.said) == ("", "done")
    await end(desk, one)
    assert first.said == "done"


async def test_what_waits_for_its_service_counts_as_waiting() -> None:
    desk, one, _ = make(Bounds(max_waiting_operations=2))
    await begin(desk, "one")
    for _ in range(2):
        desk.ask("fast", b"k", service="one")
        desk.turn()
    assert desk.ask("fast", b"k", service="one").said == "not_applied overloaded"
    assert desk.put("k").said == "not_applied overloaded"
    await end(desk, one)


async def test_a_key_that_another_service_has_used_meanwhile_is_refused_and_nothing_kept() -> None:
    """D8: the later one under a key is told, and what it did is dropped."""
    desk, one, _ = make()
    slow = await begin(desk, "one", idempotency_key="K")
    stored = desk.put("k", "K")
    desk.commit()
    assert stored.said == "done"
    await end(desk, one)
    assert slow.said == "not_applied idempotency_key_reused"
    assert kept(desk, b"one/k") is None
    again = desk.put("k", "K")
    desk.commit()
    assert again.said == "repeated"


async def test_a_repeat_waits_for_the_first_and_gets_its_answer() -> None:
    desk, one, _ = make()
    first = await begin(desk, "one", idempotency_key="K")
    again = desk.ask("slow", b"k", service="one", idempotency_key="K")
    desk.turn()
    await end(desk, one)
    assert (first.said, again.said) == ("done", "repeated")
    assert one.begun == [b"k"]


async def test_a_repeat_that_is_refused_while_the_first_is_executed_is_not_told_not_applied() -> (
    None
):
    """D8: the first may yet be recorded."""
    desk, one, _ = make()
    first = await begin(desk, "one", idempotency_key="K")
    again = desk.ask("slow", b"k", service="one", idempotency_key="K", timeout_ms=10)
    desk.turn()
    desk.lead.now_ms += 20
    desk.pipeline.expire(desk.lead.now_ms)
    assert again.said == "unknown unknown_outcome"
    await end(desk, one)
    assert first.said == "done"


async def test_what_takes_longer_than_its_client_waits_is_cancelled_and_has_no_effect() -> None:
    for goes_on in (False, True):
        desk, one, _ = make()
        one.goes_on = goes_on
        slow = await begin(desk, "one", timeout_ms=10)
        own = desk.ask("fast", b"l", service="one")
        desk.turn()
        desk.lead.now_ms += 20
        desk.pipeline.expire(desk.lead.now_ms)
        assert slow.said == "not_applied timeout"
        desk.commit()
        assert own.said == "done", "it goes on at once, though the other may not have ended"
        last_index = desk.lead.last_index
        await end(desk, one)
        assert desk.lead.last_index == last_index
        assert kept(desk, b"one/k") is None


async def test_one_that_was_given_up_does_not_end_the_next_one_of_its_service() -> None:
    desk, one, _ = make()
    one.goes_on = True
    first = await begin(desk, "one", timeout_ms=10)
    desk.lead.now_ms += 20
    desk.pipeline.expire(desk.lead.now_ms)
    second = await begin(desk, "one", key=b"l")
    assert one.begun == [b"k", b"l"]
    last_index = desk.lead.last_index
    await end(desk, one)
    assert (first.said, second.said) == ("not_applied timeout", "done")
    assert desk.lead.last_index == last_index + 1
    assert kept(desk, b"one/k") is None
    assert kept(desk, b"one/l") == b"slow"


async def test_one_whose_task_never_ran_is_answered_when_the_epoch_ends() -> None:
    desk, one, _ = make()
    slow = desk.ask("slow", b"k", service="one")
    desk.turn()  # its task is made, and has not begun
    own = desk.ask("fast", b"k", service="one")
    desk.depose()
    assert (slow.said, own.said) == ("not_applied no_primary", "not_applied no_primary")
    await asyncio.wait(desk.tasks)
    assert one.begun == []
    assert not any(desk.pipeline._concurrency)


async def test_a_lock_that_is_lost_meanwhile_leaves_nothing_behind() -> None:
    """K3: what counts is whether it is held at the operation's place in the log."""
    for token in (7, 8):
        desk, one, _ = make()
        desk.ask("lock", b"jobs", 7, service="other")
        desk.commit()
        slow = await begin(desk, "one", if_lock=(b"jobs", 7))
        desk.ask("lock", b"jobs", token, service="other")
        desk.commit()
        await end(desk, one)
        assert slow.said == ("done" if token == 7 else "not_applied lock_lost")
        assert kept(desk, b"one/k") == (b"slow" if token == 7 else None)


async def test_a_refusal_lets_the_next_one_go_on() -> None:
    desk, one, _ = make()
    told = desk.ask("refuse", b"k", service="one")
    own = desk.ask("fast", b"l", service="one")
    desk.turn()
    await asyncio.sleep(0)
    await end(desk, one)
    assert (told.said, own.said) == ("not_applied no", "done")
    assert kept(desk, b"one/k") is None


async def test_what_it_saw_uncommitted_is_told_only_once_it_has_committed() -> None:
    """D2: its answer waits for the entries that it has read."""
    desk, one, _ = make()
    before = desk.ask("fast", b"k", service="one")
    desk.turn()
    one.prefix = b""
    one.go_on.set()

    @operation
    async def read(tx: Transaction) -> bytes | None:
        return tx.get(b"one/k")

    one.operations["read"] = read
    desk.pipeline._async_operations = {"one": frozenset({"read"})}
    told = desk.ask("read", service="one")
    desk.turn()
    await asyncio.wait(desk.tasks)
    desk.turn()
    assert (before.said, told.said) == ("", "")
    desk.commit()
    assert (before.said, told.said) == ("done", "done")
    assert told.result is not None
    assert told.result.value == b"fast"
