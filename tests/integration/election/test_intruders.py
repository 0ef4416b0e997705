"""Whoever does not hold the secret, or holds it and is no member, changes nothing."""

from __future__ import annotations

import asyncio
import pickle
import secrets
import struct
from pathlib import Path

import msgspec
import pytest
from election_groups import SECRET, Group, group, until

from election.pysyncobj_adapter.link import PROTOCOL, Greeting
from election.view import Confirm

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

    async def is_closed_within(self, timeout_s: float) -> bool:
        """Read whatever comes until the member closes."""
        try:
            async with asyncio.timeout(timeout_s):
                while await self.reader.read(65536):
                    pass
        except TimeoutError:
            return False
        except ConnectionError:
            return True
        return True

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass


class Exploit:
    """What a pickle from a stranger would run."""

    def __reduce__(self) -> tuple[object, ...]:
        return (eval, ("__import__('pathlib').Path('/tmp/never-made-by-onecopy').touch()",))


def greeting(target: str, sender: str = "n3") -> bytes:
    return msgspec.msgpack.encode(
        Greeting(PROTOCOL, secrets.token_bytes(32), sender, target, secrets.token_bytes(16))
    )


BYTES = {
    "garbage": secrets.token_bytes(4096),
    "a huge length": struct.pack(">I", 2**32 - 1) + b"x" * 1000,
    "a length beyond a greeting": struct.pack(">I", 1025),
    "PySyncObj's readonly peer": (
        lambda data: struct.pack("i", len(data)) + data
    )(pickle.dumps("readonly", 2)),
    "PySyncObj's status request": (
        lambda data: struct.pack("i", len(data)) + data
    )(pickle.dumps(["status"], 2)),
    "a pickled exploit as a greeting": (
        lambda data: struct.pack(">I", len(data)) + data
    )(pickle.dumps(Exploit(), 2)),
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
        assert await stranger.is_closed_within(2)
        await stranger.close()
        assert (await made.commit("n1", Confirm())).version == view.version + 1
        assert made.status("n1").term == term
        assert not Path("/tmp/never-made-by-onecopy").exists()
        assert made.failures == []


async def test_a_stranger_who_greets_without_the_secret_replaces_no_link(tmp_path: Path) -> None:
    async with group(tmp_path) as made:
        await made.bootstrap()
        stranger = await Stranger.of(made, "n1")
        stranger.send_frame(greeting("n1"))
        async with asyncio.timeout(2):
            assert await stranger.reader.readexactly(4)  # The member's own greeting.
        stranger.send_frame(secrets.token_bytes(40))  # Meant for the sealed proof.
        assert await stranger.is_closed_within(2)
        await stranger.close()
        assert sorted(made.status("n1").connected) == ["n2", "n3"]


async def test_many_idle_strangers_keep_no_member_out(tmp_path: Path) -> None:
    async with group(tmp_path) as made:
        await made.bootstrap()
        strangers = [await Stranger.of(made, "n1") for _ in range(100)]
        await made.stop("n2")
        await made.start("n2")
        await made.connected()
        for stranger in strangers:
            assert await stranger.is_closed_within(2)
            await stranger.close()


async def test_another_secret_is_no_secret(tmp_path: Path) -> None:
    made = Group(tmp_path)
    try:
        await made.start("n1", "n2")
        await made.start("n3", secret=SECRET[::-1])
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
        await until(lambda: made.leader_of("n1", "n2", "n3") == leader, 1, "the same leader")
        assert made.status(leader).term == term
