"""PySyncObj alone: a dictionary replicated through its Raft log, behind aiohttp, three processes.

State-machine replication as one would write it with the library: every write is a replicated
command; reads come from the leader's own copy, without asking anyone, so they are not linearizable.
`python -m bench.peers.pysyncobj_dict CLIENT_PORT SELF_RAFT JOURNAL OTHER_RAFT…` runs one node.
"""

from __future__ import annotations

import asyncio
import sys
from importlib.metadata import version
from pathlib import Path

import uvloop
from aiohttp import web
from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf
from pysyncobj.batteries import ReplDict

from bench.peers.process import Peer, Process, fetch, free_address, wait_until

COMMIT_TIMEOUT_S = 5.0


class Node:
    """The HTTP side of one replica."""

    def __init__(self, own: str, others: list[str], journal: str) -> None:
        self._dictionary = ReplDict()
        conf = SyncObjConf(
            journalFile=journal, appendEntriesUseBatch=True, dynamicMembershipChange=False
        )
        self._raft = SyncObj(own, others, conf, consumers=[self._dictionary])

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """PUT and GET of a key; GET / says whether this node leads."""
        name = request.path.rpartition("/")[2]
        if not name:
            leads = self._raft._isReady() and self._raft._isLeader()
            return web.Response(status=200 if leads else 503)
        if request.method == "GET":
            found = self._dictionary.get(name)
            return web.Response(status=404) if found is None else web.Response(body=found)
        content = await request.read()
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[int] = loop.create_future()

        def settle(error: int) -> None:
            if not outcome.done():
                outcome.set_result(error)

        def committed(_result: object, error: int) -> None:
            loop.call_soon_threadsafe(settle, error)

        self._dictionary.set(name, content, callback=committed)
        async with asyncio.timeout(COMMIT_TIMEOUT_S):
            error = await outcome
        if error != FAIL_REASON.SUCCESS:
            return web.Response(status=503)
        return web.Response(body=b'{"ok": true}', content_type="application/json")


async def _serve(port: int, own: str, journal: str, others: list[str]) -> None:
    node = Node(own, others, journal)
    server = web.Server(node.answer, access_log=None)
    listener = await asyncio.get_running_loop().create_server(
        server, "127.0.0.1", port, backlog=1024
    )
    await listener.serve_forever()


class PySyncObjDict(Peer):
    """The three processes as a peer: p1, p2, p3."""

    name = "pysyncobj"
    api = "pysyncobj"
    durability = (
        "a majority has it in its journal file, but nothing calls fsync (the library has no such "
        "setting): a power cut loses acknowledged writes"
    )

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.nodes = ["p1", "p2", "p3"]
        self._addresses = {node: free_address() for node in self.nodes}
        rafts = {node: free_address() for node in self.nodes}
        for node in self.nodes:
            port = self._addresses[node].rpartition(":")[2]
            command = [sys.executable, "-m", "bench.peers.pysyncobj_dict", port, rafts[node]]
            command += [str(directory / f"{node}.journal")]
            command += [rafts[other] for other in self.nodes if other != node]
            self.processes[node] = Process(node, command, directory / f"{node}.log")

    def start(self) -> None:
        for process in self.processes.values():
            process.start()
        self.primary()

    def primary(self) -> str:
        def found() -> str | None:
            self.check()
            for node in self.nodes:
                reply = fetch(self._addresses[node], "GET", "/", timeout_s=1.0)
                if reply is not None and reply[0] == 200:
                    return node
            return None

        node: str = wait_until(found, "a PySyncObj leader")
        return node

    def address(self, node: str) -> str:
        return self._addresses[node]

    def version(self) -> str:
        return f"PySyncObj {version('pysyncobj')}, aiohttp {version('aiohttp')}"


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]))
