"""What members remember of each other, on real cores, links and files (decision 18)."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pysyncobj.node import Node

from election.identity import Addresses
from election.pysyncobj_adapter import transport, wire
from election.pysyncobj_adapter.adapter import PySyncObjAgreement
from election.pysyncobj_adapter.errors import RolledBackError
from election.pysyncobj_adapter.link import RaftLink
from election.pysyncobj_adapter.peer_marks import MAX_REMEMBERED, PeerMark, PeerMarks
from election.pysyncobj_adapter.raft_core import RaftCore
from election.pysyncobj_adapter.settings import AgreementSettings
from election.pysyncobj_adapter.storage import RaftStorage
from election.pysyncobj_adapter.view_machine import ViewReply
from election.registry import PeerRegistry
from election.shared_secret import SharedSecret
from tests.support.ports import free_address

DEADLINE_S = 10.0


# The memory


def test_what_was_told_is_there_after_a_restart(tmp_path: Path) -> None:
    marks = PeerMarks(tmp_path / "raft")
    marks.note("of n2", PeerMark(3, 9, 2, 7))
    marks.save()
    again = PeerMarks(tmp_path / "raft")
    assert again.of("of n2") == PeerMark(3, 9, 2, 7)
    assert again.of("of n3") == PeerMark()
    assert (tmp_path / "raft.peers").stat().st_mode & 0o777 == 0o600


def test_who_tells_less_is_remembered_as_further() -> None:
    """It has restarted: what it applied or knew to be committed it may not know again at once."""
    mark = PeerMark(3, 9, 2, 7)
    for less in (PeerMark(), PeerMark(3, 1, 2, 5), PeerMark(2, 9, 1, 900)):
        assert mark.joined(less) == less.joined(mark) == mark
    assert mark.joined(PeerMark(4, 1, 3, 5)) == PeerMark(4, 9, 3, 5)


def test_whoever_names_no_data_directory_is_not_remembered(tmp_path: Path) -> None:
    marks = PeerMarks(tmp_path / "raft")
    marks.note("", PeerMark(3, 9, 2, 7))
    assert marks.of("") == PeerMark()


def test_it_is_bounded_and_forgets_who_was_silent_for_longest(tmp_path: Path) -> None:
    marks = PeerMarks(tmp_path / "raft")
    for number in range(MAX_REMEMBERED):
        marks.note(f"d{number}", PeerMark(1))
    marks.note("d0", PeerMark(2))
    marks.note("one more", PeerMark(1))
    assert marks.of("d0") == PeerMark(2)
    assert marks.of("d1") == PeerMark()
    assert marks.of("d2") == marks.of("one more") == PeerMark(1)


@pytest.mark.parametrize("damage", ["flipped", "empty", "another format"])
def test_a_damaged_memory_is_dropped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    marks = PeerMarks(tmp_path / "raft")
    marks.note("of n2", PeerMark(3, 9, 2, 7))
    marks.save()
    content = marks.path.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    marks.path.write_bytes(
        {"flipped": flipped, "empty": b"", "another format": b"OCPEERM0" + content[8:]}[damage]
    )
    with caplog.at_level(logging.WARNING):
        again = PeerMarks(tmp_path / "raft")
    assert again.of("of n2") == PeerMark()
    assert str(marks.path) in caplog.text
    again.note("of n2", PeerMark(1))
    again.save()
    assert PeerMarks(tmp_path / "raft").of("of n2") == PeerMark(1)


def test_a_memory_that_cannot_be_written_is_only_weaker(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    marks = PeerMarks(tmp_path / "raft")
    marks.note("of n2", PeerMark(1))
    beside = tmp_path / "raft.peers.new"
    beside.mkdir()
    with caplog.at_level(logging.WARNING):
        marks.save()
        marks.save()
    assert caplog.text.count("could not be saved") == 1
    assert marks.of("of n2") == PeerMark(1)
    beside.rmdir()
    marks.save()
    assert PeerMarks(tmp_path / "raft").of("of n2") == PeerMark(1)


# On the links


class NotingCore(RaftCore):
    """A production core that notes what messages come."""

    def on_message(self, node: Node, message: wire.RaftMessage) -> None:
        assert isinstance(self._listener, Member)
        self._listener.events.append(message)
        super().on_message(node, message)


class Member:
    """One member, ticked by the test; notes what it is told, in order."""

    def __init__(self, node_id: str, addresses: dict[str, str], directory: Path) -> None:
        self.data_id = f"data of {node_id}"
        self.events: list[object] = []
        registry = PeerRegistry(
            node_id,
            self.data_id,
            f"process of {node_id}",
            {name: Addresses(raft=address) for name, address in addresses.items()},
        )
        self.settings = AgreementSettings(
            node_id=node_id,
            bind_address=addresses[node_id],
            members=addresses,
            directory=directory / node_id / "raft",
            secret=SharedSecret(bytes(32)),
            registry=registry,
        )
        self.open()

    def open(self) -> None:
        self.storage = RaftStorage(self.settings)
        self.core = NotingCore(self.settings, self.storage, self)

    def close(self) -> None:
        self.core.close()
        self.storage.close()

    def on_applied(self, answer: ViewReply) -> None: ...

    def on_restored(self) -> None: ...

    def on_remembered(self, epoch: int, index: int) -> None:
        self.events.append((epoch, index))


class Pair:
    """n1 and n2, which dials it."""

    def __init__(self, directory: Path) -> None:
        addresses = {"n1": free_address(), "n2": free_address()}
        self.n1, self.n2 = (Member(name, addresses, directory) for name in addresses)

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline
            self.n1.core.tick()
            self.n2.core.tick()

    def is_linked(self) -> bool:
        return self.n1.core.connected_ids() == ["n2"] and self.n2.core.connected_ids() == ["n1"]

    def remembers(self, mark: PeerMark) -> Callable[[], bool]:
        return lambda: (
            self.n1.storage.marks.of(self.n2.data_id).joined(mark)
            == (self.n1.storage.marks.of(self.n2.data_id))
        )


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.n1.close()
    made.n2.close()


def test_each_tells_how_far_it_is_and_tells_it_again_when_it_has_got_on(pair: Pair) -> None:
    pair.until(lambda: pair.n1.core.leader_in_term and pair.n2.core.leader_in_term)
    pair.n2.core.position = (2, 7)
    pair.until(pair.remembers(PeerMark(pair.n2.core.raftCurrentTerm, 1, 2, 7)))
    pair.n2.core.position = (2, 9)
    pair.until(pair.remembers(PeerMark(pair.n2.core.raftCurrentTerm, 1, 2, 9)))


def test_it_is_told_at_most_so_often(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "TELL_INTERVAL_S", 3600.0)
    pair.n2.core.position = (2, 7)
    pair.until(pair.remembers(PeerMark(epoch=2, index=7)))
    pair.n2.core.position = (2, 9)
    heard = len(pair.n1.events)
    pair.until(lambda: pair.n1.core.leader_in_term and len(pair.n1.events) > heard + 5)
    assert pair.n1.storage.marks.of(pair.n2.data_id).index == 7


def test_what_is_remembered_comes_before_everything_else_on_each_link(pair: Pair) -> None:
    """So no vote or entry of that member is taken by one that has gone back."""
    pair.n1.storage.marks.note(pair.n2.data_id, PeerMark(epoch=2, index=7))
    for _ in range(3):
        pair.until(lambda: pair.is_linked() and len(pair.n2.events) > 2)
        assert pair.n2.events[0] == (2, 7)
        assert (2, 7) not in pair.n2.events[1:]
        pair.n1.core._links._open["n2"].close()
        pair.until(lambda: not pair.n2.core.connected_ids())
        pair.n2.events.clear()


@pytest.mark.parametrize(
    "known", [PeerMark(term=900), PeerMark(applied_index=900)], ids=["vote", "entry"]
)
def test_who_lacks_a_vote_or_an_entry_that_is_remembered_ends_before_it_votes(
    pair: Pair, known: PeerMark
) -> None:
    """It has noted it, too: the next time it ends although nobody is there who remembers it."""
    pair.n1.storage.marks.note(pair.n2.data_id, known)
    with pytest.raises(RolledBackError, match="n1 remembers that this node had reached"):
        pair.until(lambda: False)
    assert not pair.n2.events
    assert pair.n2.core._journal.getVotedForNodeId() in (None, "n2")
    pair.n2.close()
    with pytest.raises(RolledBackError, match="is an old copy"):
        pair.n2.open()


def test_who_does_not_say_first_what_it_remembers_is_not_listened_to(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    encode = wire.encode_raft_message

    def silent(message: wire.RaftMessage) -> bytes:
        return encode(wire.Ping() if isinstance(message, wire.Remembered) else message)

    with monkeypatch.context() as patched:
        patched.setattr(wire, "encode_raft_message", silent)
        pair.until(lambda: caplog.text.count("out of order") > 3)
    assert not pair.n1.events
    assert not pair.n2.events


def test_nothing_is_told_on_a_link_before_the_peer_has_said_what_it_remembers(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an old copy tells would hide what is remembered of its newer self."""
    send = RaftLink.send

    def lose(link: RaftLink, data: bytes, now: float) -> None:
        if not (link.is_open and link.peer == "n2"):  # n1's end
            send(link, data, now)

    monkeypatch.setattr(RaftLink, "send", lose)
    pair.n2.core.position = (2, 7)
    pair.until(lambda: any(link._read_frames > 4 for link in pair.n1.core._links._open.values()))
    assert pair.n1.storage.marks.of(pair.n2.data_id) == PeerMark()


def test_what_is_remembered_is_said_once_on_a_link(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    pair.until(pair.is_linked)
    link: RaftLink = pair.n1.core._links._open["n2"]
    pair.until(lambda: link.is_introduced)
    link.send(wire.encode_raft_message(wire.Remembered(PeerMark())), time.monotonic())
    pair.until(lambda: "sent Remembered out of order" in caplog.text)
    pair.until(lambda: link.closed)


@pytest.mark.parametrize("known", [(0, 0), (1, 1), (2, 1), (1, 2)])
def test_who_holds_what_is_remembered_is_not_refused(pair: Pair, known: tuple[int, int]) -> None:
    """Also where it was told more than it has applied again after a restart."""
    pair.until(lambda: pair.n2.core.raftLastApplied >= 2 and pair.n2.core.raftCurrentTerm >= 1)
    pair.n2.core.on_remembered(
        Node("n1"), PeerMark(min(known[0], pair.n2.core.raftCurrentTerm), known[1])
    )


# On the loop


async def test_a_reminder_comes_before_the_answers_that_come_after_it(tmp_path: Path) -> None:
    """An answer that lets a replica propose itself must find it marked."""
    address = free_address()
    agreement = PySyncObjAgreement(
        AgreementSettings(
            node_id="n1",
            bind_address=address,
            members={"n1": address},
            directory=tmp_path / "raft",
            secret=SharedSecret(bytes(32)),
        )
    )
    order: list[object] = []
    agreement._loop = asyncio.get_running_loop()
    waiting: asyncio.Future[ViewReply] = agreement._loop.create_future()
    agreement._inbox.expect(b"r", waiting)
    agreement.on_reminder(lambda epoch, index: order.append((epoch, index)))

    def raft_thread() -> None:
        agreement.on_remembered(2, 7)
        agreement.on_news(None, [ViewReply(b"r", None)])

    async def proposer() -> None:
        order.append(await waiting)

    proposing = asyncio.create_task(proposer())
    thread = threading.Thread(target=raft_thread)
    thread.start()
    await proposing
    thread.join()
    assert order == [(2, 7), ViewReply(b"r", None)]
