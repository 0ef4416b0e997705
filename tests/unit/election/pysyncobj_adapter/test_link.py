"""The sealed link: over real sockets, with an attacker between them who sees every frame."""

from __future__ import annotations

import hashlib
import itertools
import socket
import struct
from collections.abc import Callable, Iterator

import msgspec
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from election.identity import Claim
from election.pysyncobj_adapter.link import (
    _AGREED_KEYS,
    _PLAIN_KEYS,
    KEYS_AGREED_LEVEL,
    MAX_GREETING_BYTES,
    MAX_RAFT_FRAME_BYTES,
    PROTOCOL,
    Greeting,
    RaftLink,
)
from election.pysyncobj_adapter.poller import Poller
from election.release import Release
from election.shared_secret import SharedSecret

SECRET = b"the secret of the cluster"


class Side:
    """One member's end: notes what its link tells it."""

    def __init__(self, refuse: str = "") -> None:
        self.frames: list[bytes] = []
        self.opened = self.closed = 0
        self.refuse = refuse
        self.judged: list[Greeting] = []

    def judge(self, greeting: Greeting) -> str:
        self.judged.append(greeting)
        return self.refuse

    def on_open(self, link: RaftLink) -> None:
        self.opened += 1

    def on_frame(self, link: RaftLink, data: bytes) -> None:
        self.frames.append(data)

    def on_closed(self, link: RaftLink) -> None:
        self.closed += 1


OLD, NEW = Release(), Release("2.0", KEYS_AGREED_LEVEL)


class Wire:
    """n2 dials n1; the test carries the bytes between them, whole frames at a time."""

    def __init__(
        self,
        *,
        acceptor: Side | None = None,
        dialer_secret: bytes = SECRET,
        acceptor_takes: tuple[bytes, ...] = (SECRET,),
        dialer_means: str = "n1",
        acceptor_is: str = "n1",
        dialer_runs: Release = NEW,
        acceptor_runs: Release = NEW,
    ) -> None:
        self.poller = Poller()
        self.dialer_side, self.acceptor_side = Side(), acceptor or Side()
        dialer, self.at_dialer = socket.socketpair()
        accepted, self.at_acceptor = socket.socketpair()
        for sock in (dialer, accepted, self.at_dialer, self.at_acceptor):
            sock.setblocking(False)
        self.dialer = RaftLink(
            self.dialer_side,
            self.poller,
            dialer,
            secret=SharedSecret(dialer_secret),
            me="n2",
            directory_id=b"disk of n2",
            peer=dialer_means,
            now=0,
            release=dialer_runs,
        )
        self.acceptor = RaftLink(
            self.acceptor_side,
            self.poller,
            accepted,
            secret=SharedSecret(*acceptor_takes),
            me=acceptor_is,
            directory_id=b"disk of n1",
            peer=None,
            now=0,
            release=acceptor_runs,
        )

    def poll(self) -> None:
        for _ in range(4):
            self.poller.poll(0)

    def read(self, sock: socket.socket) -> list[bytes]:
        """Return the frames that one end has sent."""
        data = b""
        while True:
            self.poll()
            try:
                received = sock.recv(1 << 20)
            except OSError:
                break
            if not received:
                break
            data += received
        frames = []
        while data:
            (length,) = struct.unpack_from(">I", data)
            frames.append(data[: 4 + length])
            data = data[4 + length :]
        return frames

    def push(self, sock: socket.socket, data: bytes) -> None:
        """Hand bytes to one end, as far as it still takes any."""
        while data:
            try:
                data = data[sock.send(data) :]
            except BlockingIOError:
                pass
            except ConnectionError:
                return
            self.poll()

    def carry(self) -> None:
        """Carry frames to and fro until all is quiet."""
        while True:
            forth, back = self.read(self.at_dialer), self.read(self.at_acceptor)
            self.push(self.at_acceptor, b"".join(forth))
            self.push(self.at_dialer, b"".join(back))
            if not forth and not back:
                return

    def close(self) -> None:
        self.dialer.close()
        self.acceptor.close()
        self.at_dialer.close()
        self.at_acceptor.close()


@pytest.fixture
def make() -> Iterator[Callable[..., Wire]]:
    made: list[Wire] = []

    def one(**options: object) -> Wire:
        made.append(Wire(**options))  # type: ignore[arg-type]
        return made[-1]

    yield one
    for wire in made:
        wire.close()


@pytest.fixture
def wire(make: Callable[..., Wire]) -> Wire:
    wire = make()
    wire.carry()
    assert wire.dialer.is_open
    assert wire.acceptor.is_open
    return wire


def test_frames_arrive_whole_and_in_order(wire: Wire) -> None:
    for number in range(3):
        wire.dialer.send(b"to n1: %d" % number, 0)
        wire.acceptor.send(b"to n2: %d" % number, 0)
    wire.dialer.send(b"x" * (MAX_RAFT_FRAME_BYTES - 16), 0)
    wire.carry()
    assert wire.acceptor_side.frames[:3] == [b"to n1: 0", b"to n1: 1", b"to n1: 2"]
    assert len(wire.acceptor_side.frames[3]) == MAX_RAFT_FRAME_BYTES - 16
    assert wire.dialer_side.frames == [b"to n2: 0", b"to n2: 1", b"to n2: 2"]


def test_both_sides_learn_who_the_other_is_and_which_disk_it_has(wire: Wire) -> None:
    assert wire.acceptor.peer == "n2"
    assert [item.directory_id for item in wire.acceptor_side.judged] == [b"disk of n2"]
    assert [item.directory_id for item in wire.dialer_side.judged] == [b"disk of n1"]


def test_what_is_sent_cannot_be_read(wire: Wire) -> None:
    wire.dialer.send(b"the view of the cluster", 0)
    (frame,) = wire.read(wire.at_dialer)
    assert b"view" not in frame


@pytest.mark.parametrize(("dialer", "acceptor"), [("old", "new"), ("new", "old"), ("old", "old")])
def test_members_of_neighbouring_releases_have_links(
    make: Callable[..., Wire], dialer: str, acceptor: str
) -> None:
    """The real one of the release before is run in `tests/nodes/test_upgrade.py`."""
    runs = {"old": OLD, "new": NEW}
    wire = make(dialer_runs=runs[dialer], acceptor_runs=runs[acceptor])
    wire.carry()
    wire.dialer.send(b"the view", 0)
    wire.carry()
    assert wire.acceptor_side.frames == [b"the view"]


def test_who_has_recorded_it_and_learns_the_secret_cannot_read_it(
    make: Callable[..., Wire],
) -> None:
    wire = make()
    recorded: list[bytes] = []
    for step in range(4):
        if step == 3:
            wire.dialer.send(b"the view of the cluster", 0)
        forth, back = wire.read(wire.at_dialer), wire.read(wire.at_acceptor)
        recorded += [frame[4:] for frame in (*forth, *back)]
        wire.push(wire.at_acceptor, b"".join(forth))
        wire.push(wire.at_dialer, b"".join(back))
    assert wire.acceptor_side.frames == [b"the view of the cluster"]
    dialers, acceptors, *sealed = recorded
    public = [msgspec.msgpack.decode(data, type=Greeting).key for data in (dialers, acceptors)]
    assert public[0] != public[1]
    for link in (wire.dialer, wire.acceptor):
        assert link._key is None
    transcript = b"".join(struct.pack(">I", len(data)) + data for data in (dialers, acceptors))
    salt = hashlib.sha256(transcript).digest()
    guesses = (SECRET, *(key + SECRET for key in public), bytes(32) + SECRET)
    for guess, info in itertools.product(guesses, (_PLAIN_KEYS, _AGREED_KEYS)):
        keys = HKDF(SHA256(), 64, salt, info).derive(guess)
        for key, frame in itertools.product((keys[:32], keys[32:]), sealed):
            for counter in range(len(sealed)):
                with pytest.raises(InvalidTag):
                    AESGCM(key).decrypt(struct.pack(">4xQ", counter), frame, None)


class TestEndsTheLink:
    def deliver(self, wire: Wire, *frames: bytes) -> None:
        for frame in frames:
            wire.push(wire.at_acceptor, frame)

    def two_frames(self, wire: Wire) -> tuple[bytes, bytes]:
        wire.dialer.send(b"one", 0)
        wire.dialer.send(b"two", 0)
        one, two = wire.read(wire.at_dialer)
        return one, two

    def test_a_repeated_frame(self, wire: Wire) -> None:
        one, two = self.two_frames(wire)
        self.deliver(wire, one, one, two)
        assert wire.acceptor_side.frames == [b"one"]
        assert wire.acceptor.closed
        assert wire.acceptor_side.closed == 1

    def test_a_missing_frame(self, wire: Wire) -> None:
        _, two = self.two_frames(wire)
        self.deliver(wire, two)
        assert wire.acceptor_side.frames == []
        assert wire.acceptor.closed

    def test_a_changed_frame(self, wire: Wire) -> None:
        one, _ = self.two_frames(wire)
        self.deliver(wire, one[:-1] + bytes([one[-1] ^ 1]))
        assert wire.acceptor_side.frames == []
        assert wire.acceptor.closed

    def test_a_frame_reflected_to_its_sender(self, wire: Wire) -> None:
        wire.acceptor.send(b"mine", 0)
        (frame,) = wire.read(wire.at_acceptor)
        self.deliver(wire, frame)
        assert wire.acceptor_side.frames == []
        assert wire.acceptor.closed

    def test_a_whole_recorded_connection(self, make: Callable[..., Wire]) -> None:
        recorded = make()
        frames = []
        while not recorded.acceptor.is_open:
            forth, back = recorded.read(recorded.at_dialer), recorded.read(recorded.at_acceptor)
            frames += forth
            recorded.push(recorded.at_acceptor, b"".join(forth))
            recorded.push(recorded.at_dialer, b"".join(back))
        replay = make()
        self.deliver(replay, *frames)
        assert not replay.acceptor.is_open
        assert replay.acceptor.closed

    def test_a_length_beyond_the_bound(self, wire: Wire) -> None:
        self.deliver(wire, struct.pack(">I", MAX_RAFT_FRAME_BYTES + 1))
        assert wire.acceptor.closed

    def test_a_peer_that_does_not_read(self, wire: Wire) -> None:
        for _ in range(50):
            wire.dialer.send(bytes(200_000), 0)
        assert wire.dialer.closed

    def test_frames_behind_a_close_are_dropped(self, wire: Wire) -> None:
        one, two = self.two_frames(wire)
        side, link = wire.acceptor_side, wire.acceptor

        def close_at_the_first(_link: RaftLink, data: bytes) -> None:
            side.frames.append(data)
            link.close()

        side.on_frame = close_at_the_first  # type: ignore[assignment,method-assign]
        wire.push(wire.at_acceptor, one + two)
        assert side.frames == [b"one"]


class TestHandshake:
    def test_another_secret_fails(self, make: Callable[..., Wire]) -> None:
        wire = make(dialer_secret=b"a guess")
        wire.carry()
        assert wire.acceptor.closed
        assert wire.acceptor_side.opened == wire.dialer_side.opened == 0
        assert wire.acceptor_side.judged == []

    @pytest.mark.parametrize("used", [SECRET, b"the next secret"])
    def test_of_two_secrets_the_dialer_may_use_either(
        self, make: Callable[..., Wire], used: bytes
    ) -> None:
        wire = make(dialer_secret=used, acceptor_takes=(b"the next secret", SECRET))
        wire.carry()
        assert wire.dialer.is_open
        assert wire.acceptor.is_open
        wire.acceptor.send(b"hello", now=0)
        wire.carry()
        assert wire.dialer_side.frames == [b"hello"]

    def test_neither_of_two_secrets_fails(self, make: Callable[..., Wire]) -> None:
        wire = make(dialer_secret=b"a guess", acceptor_takes=(b"the next secret", SECRET))
        wire.carry()
        assert wire.acceptor.closed
        assert wire.acceptor_side.judged == []

    def test_a_dial_that_reaches_another_node_fails(self, make: Callable[..., Wire]) -> None:
        wire = make(dialer_means="n1", acceptor_is="n7")
        wire.carry()
        assert wire.acceptor.closed
        assert not wire.dialer.is_open

    @pytest.mark.parametrize("key", [bytes(32), b"\1" + bytes(31), b"x" * 31, b""])
    def test_a_key_that_agrees_with_all_on_the_same_fails(
        self, make: Callable[..., Wire], key: bytes
    ) -> None:
        wire = make()
        greeting = msgspec.msgpack.encode(
            Greeting(PROTOCOL, key, "n2", "n1", b"disk of n2", Claim(), NEW)
        )
        wire.push(wire.at_acceptor, struct.pack(">I", len(greeting)) + greeting)
        assert wire.acceptor.closed
        assert wire.read(wire.at_acceptor) == []

    @pytest.mark.parametrize("of", ["dialer", "acceptor"])
    def test_a_release_that_was_taken_out_on_the_way_fails(
        self, make: Callable[..., Wire], of: str
    ) -> None:
        """Else who is between them could bring about keys without forward secrecy."""
        wire = make()
        for at, to, forged in (
            (wire.at_dialer, wire.at_acceptor, of == "dialer"),
            (wire.at_acceptor, wire.at_dialer, of == "acceptor"),
        ):
            (frame,) = wire.read(at)
            if forged:
                greeting = msgspec.msgpack.decode(frame[4:], type=Greeting)
                older = msgspec.structs.replace(greeting, release=OLD)
                data = msgspec.msgpack.encode(older)
                frame = struct.pack(">I", len(data)) + data
            wire.push(to, frame)
        wire.carry()
        assert not wire.acceptor.is_open
        assert not wire.dialer.is_open
        assert wire.acceptor_side.judged == []

    def test_a_key_that_was_put_in_the_place_of_another_fails(
        self, make: Callable[..., Wire]
    ) -> None:
        wire, other = make(), make()
        (own,), (foreign,) = wire.read(wire.at_dialer), other.read(other.at_dialer)
        mine, theirs = (
            msgspec.msgpack.decode(frame[4:], type=Greeting) for frame in (own, foreign)
        )
        forged = msgspec.msgpack.encode(msgspec.structs.replace(mine, key=theirs.key))
        wire.push(wire.at_acceptor, struct.pack(">I", len(forged)) + forged)
        wire.carry()
        assert not wire.acceptor.is_open
        assert not wire.dialer.is_open
        assert wire.acceptor_side.judged == []

    def test_before_it_only_a_small_frame_is_waited_for(self, make: Callable[..., Wire]) -> None:
        wire = make()
        wire.push(wire.at_acceptor, struct.pack(">I", MAX_GREETING_BYTES + 1))
        assert wire.acceptor.closed

    def test_a_refused_member_is_told_why(self, make: Callable[..., Wire]) -> None:
        wire = make(acceptor=Side(refuse="not a member"))
        wire.carry()
        assert wire.dialer.refusal == "not a member"
        assert wire.dialer.closed
        assert wire.dialer_side.opened == wire.acceptor_side.opened == 0
