"""Whoever does not hold the secret, or holds it and is no member, changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import secrets
import socket
import struct
from pathlib import Path

import msgspec
import pytest

from election.pysyncobj_adapter.link import PROTOCOL, Greeting, RaftLink
from election.pysyncobj_adapter.poller import Poller
from election.pysyncobj_adapter.transport import MAX_STRANGERS
from election.shared_secret import SharedSecret
from election.view import Confirm
from tests.integration.election.election_groups import DEADLINE_S, SECRET, Group, group, until

pytestmark = pytest.mark.slow


class Stranger:
    """A raw connection to a member's raft port."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def of(cls, made: Group, node_id: str) -> Stranger:
        host, port = made.addresses[node_id].rsplit(":", 1)
        return cls(*await asyncio.open_connection(host, int(port)))

    def send_frame(self, data: bytes) -> None:
        self.writer.write(struct.pack(">I", len(data)) + data)

    async def is_closed(self) -> bool:
        """Read whatever comes until the member closes."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while await self.reader.read(65536):
                    pass
        except TimeoutError:
            return False
        except ConnectionError:
            return True
        return True

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


EXPLOITED: list[str] = []


def exploit() -> None:
    EXPLOITED.append("unpickled")


class Exploit:
    """What a pickle from a stranger would run: the members are in this process."""

    def __reduce__(self) -> tuple[object, ...]:
        return (exploit, ())


def greeting(target: str, sender: str = "n3") -> bytes:
    return msgspec.msgpack.encode(
        Greeting(PROTOCOL, secrets.token_bytes(32), sender, target, secrets.token_bytes(16))
    )


def as_pysyncobj_frames_it(message: object) -> bytes:
    data = pickle.dumps(message, 2)
    return struct.pack("i", len(data)) + data


def as_framed_here(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


BYTES = {
    "garbage": secrets.token_bytes(4096),
    "a huge length": struct.pack(">I", 2**32 - 1) + b"x" * 1000,
    "a length beyond a greeting": struct.pack(">I", 1025),
    "PySyncObj's readonly peer": as_pysyncobj_frames_it("readonly"),
    "PySyncObj's status request": as_pysyncobj_frames_it(["status"]),
    "a pickled exploit as a greeting": as_framed_here(pickle.dumps(Exploit(), 2)),
    "a greeting that is not UTF-8": as_framed_here(b"\x95\xa2\xff\xfe\xc4\x00\xa0\xa0\xc4\x00"),
    "an HTTP request": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "nothing at all": b"",
}


@pytest.mark.parametrize("name", BYTES)
async def test_bytes_from_a_stranger_end_the_connection_and_nothing_else(
    tmp_path: Path, name: str
) -> None:
    async with group(tmp_path) as made:
        view = await made.bootstrap()
        term = made.status("n1").term
        stranger = await Stranger.of(made, "n1")
        stranger.writer.write(BYTES[name])
        assert await stranger.is_closed()
        await stranger.close()
        assert (await made.commit("n1", Confirm())).version == view.version + 1
        assert made.status("n1").term == term
        assert EXPLOITED == []
        assert made.failures == []


async def test_a_stranger_who_greets_without_the_secret_replaces_no_link(tmp_path: Path) -> None:
    async with group(tmp_path) as made:
        await made.bootstrap()
        stranger = await Stranger.of(made, "n1")
        stranger.send_frame(greeting("n1"))
        async with asyncio.timeout(DEADLINE_S):
            assert await stranger.reader.readexactly(4)  # The member's own greeting.
        stranger.send_frame(secrets.token_bytes(40))  # Meant for the sealed proof.
        assert await stranger.is_closed()
        await stranger.close()
        assert sorted(made.status("n1").connected) == ["n2", "n3"]


async def test_many_idle_strangers_keep_no_member_out(tmp_path: Path) -> None:
    async with group(tmp_path) as made:
        await made.bootstrap()
        strangers = [await Stranger.of(made, "n1") for _ in range(100)]
        core = made["n1"]._runner._core
        assert core is not None
        assert len(core._links._strangers) <= MAX_STRANGERS
        await made.stop("n2")
        await made.start("n2")
        await made.connected()
        for stranger in strangers:
            assert await stranger.is_closed()
            await stranger.close()


async def test_another_secret_is_no_secret(tmp_path: Path) -> None:
    made = Group(tmp_path)
    try:
        await made.start("n1", "n2")
        await made.start("n3", secret=SharedSecret(SECRET.current[::-1]))
        await made.leader("n1", "n2")
        await made.bootstrap()
        await asyncio.sleep(0.5)
        assert made.status("n3").connected == ()
        assert made.status("n3").leader is None
        assert made["n3"].view is None
    finally:
        await made.stop()


async def test_a_member_on_another_disk_is_refused_by_those_who_knew_it(tmp_path: Path) -> None:
    """A lost disk has forgotten its votes and acknowledgements: it must not come back as if not."""
    async with group(tmp_path) as made:
        view = await made.bootstrap()
        await made.stop("n3")
        await made.start("n3", directory=tmp_path / "a new disk")
        await asyncio.sleep(0.5)
        assert made.status("n3").connected == ()
        assert made["n3"].view is None
        assert (await made.commit("n1", Confirm())).version == view.version + 1
        await made.stop("n3")
        await made.start("n3")
        await made.connected()


async def test_a_holder_of_the_secret_who_is_no_member_deposes_nobody(tmp_path: Path) -> None:
    async with group(tmp_path) as made:
        await made.bootstrap()
        leader = await made.leader()
        term = made.status(leader).term
        made.addresses["n4"] = made.addresses["n1"].rsplit(":", 1)[0] + ":0"
        await made.start("n4")
        await asyncio.sleep(1)
        assert made.status("n4").connected == ()
        await until(lambda: made.leader_of("n1", "n2", "n3") == leader, "the same leader")
        assert made.status(leader).term == term
        await made.commit("n1", Confirm())
        assert made.failures == []


async def test_a_second_link_of_a_member_replaces_the_first_with_all_it_held(
    tmp_path: Path,
) -> None:
    """What a link had received but not delivered must not come after its successor's frames."""
    async with group(tmp_path) as made:
        n1, n3 = made["n1"]._runner._core, made["n3"]._runner._core
        assert n1 is not None
        assert n3 is not None
        older = n1._links._open["n3"]
        owner, poller = Owner(), Poller()
        host, port = made.addresses["n1"].rsplit(":", 1)
        sock = socket.create_connection((host, int(port)))
        sock.setblocking(False)
        second = RaftLink(
            owner,
            poller,
            sock,
            secret=SECRET,
            me="n3",
            directory_id=n3._journal.directory_id,
            peer="n1",
            now=0,
        )

        def opens() -> bool:
            poller.poll(0)
            return second.is_open

        await until(opens, "the second link opens")
        await until(lambda: older.closed, "the first one is closed")
        second.close()
        await made.connected()
        assert made.failures == []


class Owner:
    """A link's owner who lets everything pass."""

    def judge(self, greeting: Greeting) -> str:
        return ""

    def on_open(self, link: RaftLink) -> None:
        pass

    def on_frame(self, link: RaftLink, data: bytes) -> None:
        pass

    def on_closed(self, link: RaftLink) -> None:
        pass
