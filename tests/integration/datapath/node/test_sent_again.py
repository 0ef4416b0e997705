"""What a node that forwards a write does when the answer is lost: it may have been carried out."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.services.kv import KeyValue
from datapath.errors import OperationUnknownError
from datapath.transport.calls import ExecuteReturn, decode_call
from datapath.transport.link import Link
from datapath.transport.mesh import REQUEST
from tests.support.replicas import LocalReplica, running

pytestmark = pytest.mark.slow


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The first answer to a forwarded operation, which got lost: its link breaks instead."""
    answers: list[bytes] = []
    send = Link.send

    def lose_the_first(link: Link, data: bytes) -> None:
        is_answer = not link.outgoing and link.kind == REQUEST
        if is_answer and not answers and isinstance(decode_call(data).body, ExecuteReturn):
            answers.append(data)
            link.close("the answer gets lost")
        else:
            send(link, data)

    monkeypatch.setattr(Link, "send", lose_the_first)
    return answers


def executed(primary: LocalReplica) -> float:
    return primary.engine.counters()["operations_total"]


async def test_a_write_without_a_key_is_sent_once_and_its_outcome_unknown(
    tmp_path: Path, lost: list[bytes]
) -> None:
    async with running(tmp_path, KeyValue) as cluster:
        before = executed(cluster["n1"])
        with pytest.raises(OperationUnknownError):
            await cluster["n2"].execute("put", b"k", b"v")
        assert len(lost) == 1
        assert executed(cluster["n1"]) == before + 1


async def test_a_write_under_a_key_is_sent_again_and_applied_once(
    tmp_path: Path, lost: list[bytes]
) -> None:
    """D8."""
    async with running(tmp_path, KeyValue) as cluster:
        created = await cluster["n2"].execute("put", b"k", b"v", None, True, idempotency_key="K")
        assert len(lost) == 1
        repeated = await cluster["n1"].execute("put", b"k", b"v", None, True, idempotency_key="K")
        assert repeated.index == created.index
