"""Mangled frames in links that are open, from a genuine node: under TLS, with its certificate.

What is mangled is every layer that lies under the handshake of TLS: the handshake of the nodes, the
frames of the websocket, the parcels in them, and the messages in those. A message that is still one
after it was changed is not sent on the links of replication: there a node's word is believed, by
design (`tests/nodes/test_forwarded_callers.py` says which is not).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from random import Random

import msgspec
import pytest

from datapath.operations import ANONYMOUS, Operation, Query
from datapath.protocol import messages
from datapath.transport import calls
from datapath.transport.snapshot_transfer import Chunk, End, Offer, TransferMessage
from tests.nodes.conftest import MakeCluster
from tests.nodes.control import open_files
from tests.nodes.test_fuzz import SAID_OF_A_FAULT
from tests.support.cluster import UNSUSPECTING, Cluster, wait_until
from tests.support.genuine_peer import TEXT, UPGRADE, GenuinePeer, parcel, websocket_frame
from tests.support.mutator import mutated

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

SEED = 15
AT_ONCE = 4
ANSWER_S = 0.3
"""How long a link that is mangled may stay open after it: it may wait for the rest of a frame."""
GROWTH_MAX_BYTES = 64 * 1024 * 1024
GROWTH_MAX_FILES = 8
MAX_LOG_LINES = 3
"""Of a link that is mangled, at most."""
NEVER_SENT = (
    calls.HandoverCall, calls.JoinCall, calls.ViewNote, calls.NoticeNote, calls.ArchivedNote,
    calls.RemoveCall, calls.FinishUpgradeCall, calls.HelloCall,
)  # fmt: skip
ASKED: tuple[calls.Call, ...] = (
    calls.PingCall(),
    calls.StatusCall(),
    calls.ReadIndexCall(),
    calls.QueryCall(Query("get", (b"k",), caller=ANONYMOUS), 1000),
    calls.ExecuteCall(Operation("put", (b"k", b"v" * 40), caller=ANONYMOUS), 1000),
)
SAMPLES: dict[str, list[bytes]] = {
    "request": [
        calls.encode_call(calls.Envelope(number, body)) for number, body in enumerate(ASKED, 1)
    ],
    "replicate": [
        msgspec.msgpack.encode(message)
        for message in (
            messages.Probe(7, 3, "n3", 9),
            messages.Append(7, 3, 9, 3, 9, [b"record" * 20]),
            messages.Heartbeat(7, 3, 4, 9),
        )
    ],
    "snapshot": [
        msgspec.msgpack.encode(message)
        for message in (Offer("id", 9, 3, 3), Chunk(0, 5, b"c" * 90), End(1, "sum", 3))
    ],
}


def is_message(kind: str, data: bytes) -> bool:
    """Whether a changed message would be believed."""
    try:
        match kind:
            case "request":
                return isinstance(calls.decode_call(data).body, NEVER_SENT)
            case "replicate":
                messages.decode_message(data)
            case _:
                msgspec.msgpack.decode(data, type=TransferMessage)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


def holds_a_message(kind: str, data: bytes) -> bool:
    """Whether a changed parcel has something that would be believed."""
    with contextlib.suppress(msgspec.MsgspecError):
        return any(
            is_message(kind, each) for each in msgspec.msgpack.decode(data, type=list[bytes])
        )
    return False


def mangled(kind: str, random: Random) -> bytes:
    """Return frames of a websocket that no node would send."""
    layer = random.choice(("message", "parcel", "announcement", "frame"))
    while True:
        sample = random.choice(SAMPLES[kind])
        match layer:
            case "message":
                changed = mutated(sample, random)
                if not is_message(kind, changed) and len(changed) < 30_000:
                    return websocket_frame(parcel([changed]))
            case "parcel":
                changed = mutated(parcel([sample]), random)
                if not holds_a_message(kind, changed) and len(changed) < 30_000:
                    return websocket_frame(changed)
            case "announcement":
                changed = mutated(random.choice((b"40000", b"73400320")), random)[:100]
                return websocket_frame(changed, TEXT) + websocket_frame(random.randbytes(90))
            case _:  # the frame itself, round a message that harms nobody
                sound = websocket_frame(parcel(SAMPLES["request"][:3]))
                if kind == "request":
                    return mutated(sound, random)
                return mutated(websocket_frame(random.randbytes(60)), random)


async def until_closed(reader: asyncio.StreamReader) -> None:
    """Read what still comes, for a while."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(ANSWER_S):
            while await reader.read(65536):
                pass


async def mangle_link(peer: GenuinePeer, target: str, kind: str, random: Random) -> None:
    """Open a link, and send what is no message on it."""
    async with peer.link(target, kind) as connection:
        connection.send(mangled(kind, random))
        await until_closed(connection.reader)


async def mangle_handshake(peer: GenuinePeer, target: str, kind: str, random: Random) -> None:
    """Begin a handshake, and mangle one of its two messages, or what follows."""
    path, handshake, step = f"/peer/v1/{kind}", peer.handshake(target, kind), random.randrange(3)
    async with peer.connected(target) as connection:
        message = handshake.start()
        for number in range(2):
            if number == step:
                message = mutated(message, random)
            connection.send_request("POST", path, message)
            answer = await connection.receive()
            if number == step:
                assert answer.status in {200, 400, 403, 413}, answer
                return
            message = handshake.receive(answer.body)
        head = "".join(f"{name}: {value}\r\n" for name, value in UPGRADE.items())
        connection.send(mutated(f"GET {path} HTTP/1.1\r\n{head}\r\n".encode(), random))
        await until_closed(connection.reader)


async def mangle(peer: GenuinePeer, targets: list[str], count: int, random: Random) -> None:
    """Mangle so many links, and a fourth as many handshakes."""
    free = {(target, kind): asyncio.Lock() for target in targets for kind in SAMPLES}
    # a link of a kind replaces the one before it: one at a time

    async def one(number: int) -> None:
        target, kind = list(free)[number % len(free)]
        chance = Random(SEED + number + random.randrange(1 << 30))
        async with free[target, kind]:
            call = mangle_handshake if number % 5 == 0 else mangle_link
            await call(peer, target, kind, chance)

    await asyncio.gather(*map(one, range(count)))


@pytest.mark.parametrize(
    ("tls", "count"),
    [
        (True, 30),
        pytest.param(True, 3000, marks=pytest.mark.long),
        pytest.param(False, 600, marks=pytest.mark.long),
    ],
)
async def test_mangled_frames_of_a_genuine_node_harm_nobody(
    make_cluster: MakeCluster, tls: bool, count: int
) -> None:
    cluster = make_cluster(tls=tls, access={}, timing=UNSUSPECTING)
    await cluster.start()
    async with cluster.client() as client:
        await client.put("before", b"1")
    await cluster.stop("n3")
    others = cluster.others("n3")
    peer, random = GenuinePeer(cluster, "n3"), Random(SEED)
    await cluster.wait_in_sync(*others)
    await mangle(peer, others, 30, random)  # what a node allocates once is not growth
    before = {node: sizes(cluster, node) for node in others}
    lines = {node: cluster.nodes[node].log().count("\n") for node in others}
    view = await cluster.status(others[0])
    await mangle(peer, others, count, random)
    cluster.check_alive()
    for node, (rss_bytes, files) in before.items():
        assert sizes(cluster, node)[0] - rss_bytes < GROWTH_MAX_BYTES, node
        await wait_until(
            lambda: sizes(cluster, node)[1] <= files + GROWTH_MAX_FILES,  # noqa: B023
            f"{node} has closed what it opened",
        )
        log = cluster.nodes[node].log()
        assert not SAID_OF_A_FAULT.search(log), SAID_OF_A_FAULT.findall(log)
        for kind in SAMPLES:
            closed = rf"<Link {kind} from n3 closed>: n3 violated the protocol"
            assert re.search(closed, log), (node, kind)
        assert log.count("\n") - lines[node] <= MAX_LOG_LINES * count
    async with cluster.client(*others) as client:
        await client.put("after", b"2")
        assert await client.get("k") is None, "a stranger's write that was mangled"
    after = await cluster.status(others[0])
    assert view is not None
    assert after is not None
    assert (after.epoch, after.primary) == (view.epoch, view.primary)
    await cluster.start("n3")
    await cluster.wait_converged()


def sizes(cluster: Cluster, node: str) -> tuple[int, int]:
    """Return the memory and the descriptors of a node."""
    process = cluster.nodes[node]
    return process.rss_bytes(), open_files(process.pid)
