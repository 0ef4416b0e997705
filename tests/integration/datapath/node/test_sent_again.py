"""What a node that forwards a write does when the answer is lost: it may have been carried out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.services.kv import KeyValue
from datapath.errors import OperationUnknownError
from datapath.transport.calls import Envelope, ExecuteReturn
from datapath.transport.link import Link
from tests.support.replicas import LocalReplica, running

pytestmark = pytest.mark.slow


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> list[Envelope]:
    """The first answer to a forwarded operation, which got lost: its link breaks instead."""
    answers: list[Envelope] = []
    send = Link.send

    def lose_the_first(link: Link, message: Any) -> None:
        is_answer = isinstance(message, Envelope) and isinstance(message.body, ExecuteReturn)
        if is_answer and not answers:
            answers.append(message)
            link.close("the answer gets lost")
        else:
            send(link, message)

    monkeypatch.setattr(Link, "send", lose_the_first)
    return answers


def executed(primary: LocalReplica) -> float:
    return primary.engine.counters()["operations_total"]


async def test_a_write_without_a_key_is_sent_once_and_its_outcome_unknown(
    tmp_path: Path, lost: list[Envelope]
) -> None:
    async with running(tmp_path, KeyValue) as cluster:
        before = executed(cluster["n1"])
        with pytest.raises(OperationUnknownError):
            await cluster["n2"].execute("put", b"k", b"v")
        assert len(lost) == 1
        assert executed(cluster["n1"]) == before + 1


async def test_a_write_under_a_key_is_sent_again_and_applied_once(
    tmp_path: Path, lost: list[Envelope]
) -> None:
    """D8."""
    async with running(tmp_path, KeyValue) as cluster:
        created = await cluster["n2"].execute("put", b"k", b"v", None, True, idempotency_key="K")
        assert len(lost) == 1
        repeated = await cluster["n1"].execute("put", b"k", b"v", None, True, idempotency_key="K")
        assert repeated.index == created.index
