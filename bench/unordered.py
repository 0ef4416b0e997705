"""Every request to every replica, with no order agreed: why all this exists, in one picture.

The naive way, over real UDP on loopback: a client sends each write to three replicas, which apply
what arrives as it arrives. The sender injects loss and reordering. Two variants: each datagram sent
once, and sent again until each replica has acknowledged it (loss is mended; order is not). Beside
it onecopy, with the same loss and jitter between its nodes as TCP shows them: segments late by a
retransmission. Then the keys whose values differ between replicas are counted.
"""

from __future__ import annotations

import asyncio
import base64
import random
from typing import Any, cast

import msgspec

from bench.context import Context
from bench.peers.onecopy import Onecopy
from bench.peers.process import BenchError, fetch, fetch_json, wait_until
from bench.peers.relayed import RelayedOnecopy

REPLICAS = 3
KEYS = 100
WRITES = 2000
WRITERS = 16
LOSSES = (0.0, 0.01, 0.05, 0.2)
JITTER_MS = 5.0
RESEND_MS = 20.0
RESENDS_MAX = 200
SETTLE_S = 60.0


class Datagram(msgspec.Struct, array_like=True, frozen=True):
    """A write on its way, or (`value` empty) its acknowledgement by one replica."""

    number: int
    key: str
    value: str = ""


class _Replica(asyncio.DatagramProtocol):
    """Applies what arrives; a number that it has seen is acknowledged, not applied again."""

    def __init__(self) -> None:
        self.store: dict[str, str] = {}
        self._seen: set[int] = set()
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        message = msgspec.msgpack.decode(data, type=Datagram)
        if message.number not in self._seen:
            self._seen.add(message.number)
            self.store[message.key] = message.value
        assert self._transport is not None
        answer = Datagram(message.number, message.key)
        self._transport.sendto(msgspec.msgpack.encode(answer), addr)


class _Link(asyncio.DatagramProtocol):
    """The client's end towards one replica: loses and delays what it sends."""

    def __init__(self, loss: float, draw: random.Random) -> None:
        self._loss = loss
        self._draw = draw
        self._waiting: dict[int, asyncio.Event] = {}
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        del addr
        number = msgspec.msgpack.decode(data, type=Datagram).number
        if number in self._waiting:
            self._waiting[number].set()

    def send(self, message: Datagram) -> None:
        """Send once: perhaps not at all, perhaps later than what is sent after it."""
        if self._draw.random() >= self._loss:
            late_s = self._draw.uniform(0, JITTER_MS) / 1000
            data = msgspec.msgpack.encode(message)
            assert self._transport is not None
            asyncio.get_running_loop().call_later(late_s, self._transport.sendto, data)

    async def deliver(self, message: Datagram) -> None:
        """Send until it is acknowledged. Raises BenchError if it never is."""
        arrived = self._waiting[message.number] = asyncio.Event()
        for _ in range(RESENDS_MAX):
            self.send(message)
            try:
                await asyncio.wait_for(arrived.wait(), RESEND_MS / 1000)
            except TimeoutError:
                continue
            del self._waiting[message.number]
            return
        raise BenchError("a datagram was never acknowledged")


async def _naive(loss: float, *, resend: bool, seed: int) -> int:
    """Return how many keys differ between the replicas after all writes."""
    loop = asyncio.get_running_loop()
    draw = random.Random(seed)
    replicas, links, ends = [], [], []
    for _ in range(REPLICAS):
        end, replica = await loop.create_datagram_endpoint(_Replica, local_addr=("127.0.0.1", 0))
        where = end.get_extra_info("sockname")
        other, link = await loop.create_datagram_endpoint(
            lambda: _Link(loss, draw), remote_addr=where
        )
        replicas.append(replica)
        links.append(link)
        ends += [end, other]

    async def writer(first: int) -> None:
        for number in range(first, WRITES, WRITERS):
            message = Datagram(number, f"k{draw.randrange(KEYS):03}", f"v{number}")
            if resend:
                await asyncio.gather(*(link.deliver(message) for link in links))
            else:
                for link in links:
                    link.send(message)
                await asyncio.sleep(JITTER_MS / 2000)

    await asyncio.gather(*(writer(first) for first in range(WRITERS)))
    await asyncio.sleep(4 * JITTER_MS / 1000)  # the last datagrams land
    for end in ends:
        end.close()
    return diverged([replica.store for replica in replicas])


def diverged(stores: list[dict[str, str]]) -> int:
    """Return how many keys do not have one value on all replicas."""
    names = {name for store in stores for name in store}
    return sum(len({store.get(name) for store in stores}) > 1 for name in names)


async def _write_all(addresses: list[str], seed: int) -> dict[str, int]:
    """Do the same writes through onecopy's HTTP API; return how they ended."""
    draw = random.Random(seed)
    ended: dict[str, int] = {}

    async def writer(first: int) -> None:
        for number in range(first, WRITES, WRITERS):
            path = f"/v1/kv/k{draw.randrange(KEYS):03}"
            address = addresses[number % len(addresses)]
            reply = await asyncio.to_thread(
                fetch, address, "PUT", path, f"v{number}".encode(), None, 30.0
            )
            kind = "no answer" if reply is None else str(reply[0])
            ended[kind] = ended.get(kind, 0) + 1

    await asyncio.gather(*(writer(first) for first in range(WRITERS)))
    return ended


def _contents(cluster: Onecopy, node: str) -> dict[str, str]:
    path = "/v1/kv?prefix=k&limit=1000&consistency=stale"
    page = fetch_json(cluster.address(node), "GET", path)
    if page is None:
        raise BenchError(f"{node} does not list its keys")
    return {item["key"]: base64.b64decode(item["value"]).decode() for item in page["items"]}


def _ours(context: Context, loss: float, seed: int) -> dict[str, Any]:
    make = RelayedOnecopy.network(delay_ms=0.0, jitter_ms=JITTER_MS, loss=loss)
    with context.peer(make) as cluster:
        addresses = [cluster.address(node) for node in cluster.nodes]
        ended = asyncio.run(_write_all(addresses, seed))

        def same_index() -> bool:
            found = cluster.digests()
            return len(found) == REPLICAS and len({index for index, _ in found.values()}) == 1

        wait_until(same_index, "all replicas are at one index", SETTLE_S)
        status = cluster.status(cluster.primary())
        return {
            "diverged": diverged([_contents(cluster, node) for node in cluster.nodes]),
            "answers": ended,
            "epoch": status["epoch"],
        }


def run(context: Context) -> dict[str, Any]:
    """Count diverged keys of KEYS for each loss."""
    rows = []
    for number, loss in enumerate(LOSSES):
        once = asyncio.run(_naive(loss, resend=False, seed=number))
        resent = asyncio.run(_naive(loss, resend=True, seed=number))
        ours = _ours(context, loss, number)
        rows.append({"loss": loss, "sent_once": once, "sent_again": resent, "onecopy": ours})
        context.say(
            f"  loss {loss:.0%}: of {KEYS} keys, diverged: sent once {once}, sent again until "
            f"acknowledged {resent}, onecopy {ours}"
        )
    return {"keys": KEYS, "writes": WRITES, "jitter_ms": JITTER_MS, "rows": rows}
