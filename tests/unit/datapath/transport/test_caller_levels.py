"""A call is sent only to a node whose release understands it (rule U3)."""

from __future__ import annotations

from typing import cast

import pytest

from datapath.errors import OperationNotAppliedError
from datapath.transport.caller import Caller
from datapath.transport.calls import ArchivedNote, FinishUpgradeCall, NoAnswerError, PingCall
from datapath.transport.link import Link
from election.release import Release


class Sent:
    """A link that takes note."""

    peer = "n2"

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def send(self, frame: bytes) -> None:
        self.frames.append(frame)


@pytest.mark.parametrize("release", [None, Release()])
async def test_what_a_level_brought_is_not_asked_of_an_older_node(release: Release | None) -> None:
    known = {} if release is None else {"n2": release}
    caller = Caller(lambda: None, lambda _: None, lambda _: None, lambda: known)
    link = Sent()
    caller.on_open(cast("Link", link))
    with pytest.raises(OperationNotAppliedError, match="upgrade it first"):
        await caller.call("n2", FinishUpgradeCall(1, ""), 1)
    caller.note("n2", ArchivedNote(1))
    assert not link.frames
    with pytest.raises(NoAnswerError):
        await caller.call("n2", PingCall(), 1)
    known["n2"] = Release("2.0", 2, 1)
    with pytest.raises(NoAnswerError):
        await caller.call("n2", FinishUpgradeCall(1, ""), 1)
    assert len(link.frames) == 2
