"""The agreement in memory: the same answers as production, under faults that the test sets."""

from __future__ import annotations

import asyncio

import pytest

from election.agreement import (
    Agreement,
    AgreementFailedError,
    AgreementUnavailableError,
    Committed,
    Refused,
    Unknown,
)
from election.static import Fault, StaticAgreement, StaticGroup
from election.view import Bootstrap, Confirm, Member, View, apply_change

MEMBERS = tuple(
    Member(id=node, role="replica", client=node, peer="p" + node, raft="r" + node)
    for node in ("a", "b")
)
FIRST = apply_change(None, Bootstrap("cluster", "a", MEMBERS), 0)


async def pair(**options: object) -> tuple[StaticGroup, StaticAgreement, StaticAgreement]:
    assert isinstance(FIRST, View)
    made = StaticGroup(FIRST, **options)  # type: ignore[arg-type]
    a, b = made.agreement("a"), made.agreement("b")
    await a.start()
    await b.start()
    return made, a, b


def test_it_is_an_agreement() -> None:
    agreement: Agreement = StaticGroup().agreement("a")
    assert agreement.view is None


async def test_a_committed_change_reaches_every_subscriber_in_order() -> None:
    _, a, b = await pair()
    seen: list[int] = []
    b.subscribe(lambda view: seen.append(view.version))
    for version in (1, 2):
        outcome = await a.propose(Confirm(), version, 1000)
        assert isinstance(outcome, Committed)
        assert a.view == outcome.view
    assert isinstance(await b.propose(Confirm(), 1, 1000), Refused)
    await asyncio.sleep(0)
    assert seen == [2, 3]


async def test_a_node_that_is_cut_off_changes_and_sees_nothing_until_it_heals() -> None:
    made, a, b = await pair()
    made.set_fault("b", Fault.CUT_OFF)
    assert isinstance(await b.propose(Confirm(), 1, 1000), Unknown)
    await a.propose(Confirm(), 1, 1000)
    assert b.view == FIRST
    with pytest.raises(AgreementUnavailableError):
        await b.read_view(1000)
    made.set_fault("b", Fault.NONE)
    assert b.view == made.view


async def test_unknown_without_effect_with_effect_and_with_late_effect() -> None:
    made, a, _ = await pair()
    for fault, version in ((Fault.LOST, 1), (Fault.ANSWER_LOST, 2), (Fault.LATE, 2)):
        made.set_fault("a", fault)
        assert isinstance(await a.propose(Confirm(), made.view.version, 1000), Unknown)  # type: ignore[union-attr]
        assert made.view is not None
        assert made.view.version == version, fault
    (late,) = made.deliver_late()
    assert isinstance(late, View)
    assert a.view == late


async def test_time_passes_only_through_the_injected_sleep() -> None:
    slept: list[float] = []

    async def sleep(duration_s: float) -> None:
        slept.append(duration_s)

    made, a, _ = await pair(delay_ms=30, sleep=sleep)
    await a.propose(Confirm(), 1, 1000)
    assert await a.read_view(1000) == made.view
    assert slept == [0.03, 0.03]


async def test_a_failure_is_reported_and_a_stopped_node_knows_nothing() -> None:
    made, a, b = await pair()
    failures: list[AgreementFailedError] = []
    a.on_failure(failures.append)
    made.fail("a", "the disk is gone")
    await asyncio.sleep(0)
    assert [str(error) for error in failures] == ["the disk is gone"]
    assert isinstance(await a.propose(Confirm(), 1, 1000), Unknown)
    await b.stop()
    with pytest.raises(AgreementUnavailableError):
        await b.read_view(1000)
