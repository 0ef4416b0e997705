"""A node of a test's cluster, played by the test: it has the secret, a certificate and an identity.

The node itself must be stopped: its identity is read from its data directory. Whatever the real
dialler would not send can be sent here, at every step of a link: see `docs/peer-protocol.md`.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence

import msgspec

from cluster.certificates.node_tls import NodeTls
from cluster.config.file import load_config
from cluster.node.settings import shared_secret
from datapath.storage.data_directory import read_identity
from datapath.transport.caller import Caller
from datapath.transport.dialer import Dialer
from datapath.transport.handshake import NONCE_SIZE_BYTES, DialerHandshake
from election.identity import ACCEPTED, Addresses, Claim
from election.registry import PeerRegistry
from election.release import own_release
from tests.support.cluster import Cluster, wait_until
from tests.support.raw_http import Connection

ANSWER_S = 5.0
SMALL_FRAME_BYTES = 126
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
BINARY, TEXT = 0x82, 0x81


def parcel(messages: Sequence[bytes]) -> bytes:
    """Return what small messages travel in."""
    return msgspec.msgpack.encode(list(messages))


def websocket_frame(data: bytes, first: int = BINARY) -> bytes:
    """Return a client's frame, masked with zeros: its content is seen as it is."""
    size = len(data)
    if size < SMALL_FRAME_BYTES:
        return bytes((first, 0x80 | size)) + bytes(4) + data
    return bytes((first, 0x80 | SMALL_FRAME_BYTES)) + size.to_bytes(2) + bytes(4) + data


class GenuinePeer:
    """Plays `node`, which does not run, toward the others."""

    def __init__(self, cluster: Cluster, node: str) -> None:
        self._cluster = cluster
        self.node = node
        config = load_config(cluster.config_path)
        self._secret = shared_secret(config)
        self.tls = NodeTls(config, node) if cluster.cacert else None
        identity, own = read_identity(cluster.data(node)), config.nodes[node]
        self._claim = Claim(
            identity.cluster,
            identity.data,
            secrets.token_hex(8),
            Addresses(own.client, own.peer, own.raft),
        )

    @contextlib.asynccontextmanager
    async def connected(self, peer: str) -> AsyncIterator[Connection]:
        """Connect to a peer port, under TLS where there is: nothing has been said yet."""
        host, port = self._cluster.specs[peer].peer.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(
            host,
            int(port),
            ssl=self.tls.dialing if self.tls is not None else None,
            server_hostname=peer if self.tls is not None else None,
        )
        try:
            yield Connection(reader, writer, f"{host}:{port}")
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def handshake(self, peer: str, kind: str) -> DialerHandshake:
        """Begin to prove who this is."""
        return DialerHandshake(
            cluster=self._cluster.name,
            secret=self._secret.current,
            dialer=self.node,
            listener=peer,
            kind=kind,
            nonce=secrets.token_bytes(NONCE_SIZE_BYTES),
            claim=self._claim,
            judge=lambda _peer, _claim: ACCEPTED,
        )

    @contextlib.asynccontextmanager
    async def link(self, peer: str, kind: str) -> AsyncIterator[Connection]:
        """Open a link of a kind, by hand: what is sent next are frames of a websocket."""
        path, handshake = f"/peer/v1/{kind}", self.handshake(peer, kind)
        async with self.connected(peer) as connection:
            message = handshake.start()
            while not handshake.done:
                connection.send_request("POST", path, message)
                message = handshake.receive((await connection.receive()).body)
            connection.send_request("GET", path, headers=UPGRADE)
            assert (await connection.receive()).status == 101
            yield connection

    @contextlib.asynccontextmanager
    async def asking(self, peer: str) -> AsyncIterator[Caller]:
        """Keep a link of questions up, by the node's own dialler."""
        releases = {peer: own_release("")}
        caller = Caller(lambda: None, lambda _note: None, lambda _link: None, lambda: releases)
        host, port = self._cluster.specs[peer].peer.rsplit(":", 1)
        dialer = Dialer(
            lambda: (host, int(port)),
            peer,
            "request",
            self.node,
            self._cluster.name,
            self._secret,
            caller,
            registry=PeerRegistry(
                self.node,
                self._claim.data_id,
                self._claim.instance,
                {self.node: self._claim.addresses},
                cluster_id=self._claim.cluster_id,
            ),
            tls=self.tls,
        )
        dialer.start()
        try:
            await wait_until(lambda: caller.reaches(peer), f"a link to {peer}")
            yield caller
        finally:
            await dialer.stop()
