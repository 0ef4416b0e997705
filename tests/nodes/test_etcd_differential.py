"""etcd and onecopy are asked the same, and answer alike."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.nodes.conftest import MakeCluster
from tests.support.etcd_requests import Draws, Labels, alike, b64, learn
from tests.support.etcd_server import EtcdServer, Gateway

pytestmark = pytest.mark.slow

SEQUENCE_LENGTH = 100
_EVERYTHING = {"key": b64(b"\0"), "range_end": b64(b"\0")}
_LAST = b64(b"the last")


class Side:
    """One server under comparison: a connection, a watch, and what it has told of revisions."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.gateway = Gateway(address)
        self.labels = Labels()
        self.known: dict[str, Any] = {}
        self._watching: Gateway | None = None

    def close(self) -> None:
        """Close its connections; the next request opens another."""
        self.gateway.close()
        if self._watching is not None:
            self._watching.close()

    def begin(self) -> None:
        """Begin with no key, and watch all."""
        for lease in (101, 102, 103):
            self.gateway.ask("/v3/lease/revoke", {"ID": lease})
        self.gateway.ask("/v3/kv/deleterange", _EVERYTHING)
        self.labels = Labels()
        self.known = {}
        watching = self._watching = Gateway(self.address)
        self._watch = watching.stream("/v3/watch", {"create_request": _EVERYTHING})
        assert json.loads(self._watch.readline())["result"]["created"]

    def events(self) -> list[Any]:
        """Return what the watch has been told, up to the last write, which is made here."""
        self.gateway.ask("/v3/kv/put", {"key": _LAST})
        found: list[Any] = []
        while True:
            message = json.loads(self._watch.readline())["result"]
            for event in message.get("events", ()):
                if event["kv"]["key"] == _LAST:
                    return found
                found.append(event)


def compare(seed: int, etcd: Side, onecopy: Side) -> None:
    """Ask both the same requests."""
    draws = Draws(seed)
    for side in (etcd, onecopy):
        side.begin()
    asked: list[str] = []
    for number in range(SEQUENCE_LENGTH):
        request = draws.request()
        answers = []
        for side in (etcd, onecopy):
            body = request.make(side.known)
            answer = side.gateway.ask(request.path, body)
            learn(answer[1], side.known)
            answers.append((alike(*answer, side.labels), answer, body))
        text = f"seed {seed}, request {number}: {request.path} {json.dumps(answers[1][2])}"
        asked.append(text)
        assert answers[0][0] == answers[1][0], "\n".join(
            [*asked[-8:], f"etcd: {answers[0][1]}", f"onecopy: {answers[1][1]}"]
        )
        for side, (_, answer, _) in zip((etcd, onecopy), answers, strict=True):
            end_if_short(side, answer[1])
    events = [
        _by_revision([alike(200, event, side.labels)[1] for event in side.events()])
        for side in (etcd, onecopy)
    ]
    assert events[0] == events[1], "\n".join(
        [*asked, f"etcd: {events[0]}", f"onecopy: {events[1]}"]
    )


def end_if_short(side: Side, answer: Any) -> None:
    """Revoke a lease that was just granted for so short that it might end before the sequence does.

    A TTL of 0 or less becomes 2 s. Each server ends such a lease at a time of its own, and on a
    loaded machine a sequence takes longer than that.
    """
    if isinstance(answer, dict) and "ID" in answer and int(answer.get("TTL", 0)) in range(1, 60):
        side.gateway.ask("/v3/lease/revoke", {"ID": answer["ID"]})


def _by_revision(events: list[Any]) -> list[Any]:
    """Return events in an order that both have: within one revision they may stand in any.

    Of a key that a transaction has changed twice, etcd has two events, and onecopy the last one.
    """
    parts: list[tuple[str, dict[str, Any]]] = []
    for event in events:
        revision = event["kv"]["mod_revision"]
        if not parts or parts[-1][0] != revision:
            parts.append((revision, {}))
        parts[-1][1][event["kv"]["key"]] = event
    return [sorted(part.values(), key=str) for _, part in parts]


async def run(make_cluster: MakeCluster, tmp_path: Path, sequences: int) -> None:
    first = int(os.environ.get("ONECOPY_ETCD_SEED", "0"))
    cluster = make_cluster(etcd=True)
    await cluster.start()
    primary = await cluster.primary()
    address = {node: spec.etcd for node, spec in cluster.specs.items()}
    with EtcdServer(tmp_path) as server:
        etcd = Side(server.address)
        etcd.gateway.ask("/v3/kv/put", {"key": "YQ=="})
        etcd.gateway.ask("/v3/kv/put", {"key": "YQ=="})
        etcd.gateway.ask("/v3/kv/compaction", {"revision": 3})
        backup = next(node for node in address if node != primary)
        for number in range(sequences):
            asked = primary if number % 2 == 0 else backup
            onecopy = Side(address[asked])
            try:
                compare(first + number, etcd, onecopy)
            finally:
                onecopy.close()
                etcd.close()


@pytest.mark.long
async def test_five_thousand_requests(make_cluster: MakeCluster, tmp_path: Path) -> None:
    await run(make_cluster, tmp_path, 60)
