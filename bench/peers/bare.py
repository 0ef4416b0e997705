"""A bare aiohttp server: its low-level handler on uvloop, a constant answer, nothing stored.

What no aiohttp service can beat, and what shows how much of a figure is the load generator's own.
`python -m bench.peers.bare PORT` runs it.
"""

from __future__ import annotations

import asyncio
import sys
from importlib.metadata import version

import uvloop
from aiohttp import web

from bench.peers.process import Peer, Process, fetch, free_address, wait_until

ANSWER = b'{"revision": 42, "epoch": 3, "copies": 3}'


async def _answer(request: web.BaseRequest) -> web.StreamResponse:
    await request.read()
    return web.Response(body=ANSWER, content_type="application/json")


async def _serve(port: int) -> None:
    server = web.Server(_answer, access_log=None)
    listener = await asyncio.get_running_loop().create_server(
        server, "127.0.0.1", port, backlog=1024
    )
    await listener.serve_forever()


class Bare(Peer):
    """The server as a peer."""

    name = "bare aiohttp"
    api = "bare"
    durability = "none: stores nothing, answers a constant"

    def start(self) -> None:
        self._address = free_address()
        port = self._address.rpartition(":")[2]
        command = [sys.executable, "-m", "bench.peers.bare", port]
        process = Process("bare", command, self.directory / "bare.log")
        self.processes["bare"] = process
        process.start()

        def answers() -> bool:
            process.check()
            return fetch(self._address, "GET", "/") is not None

        wait_until(answers, "the bare server answers")

    def primary(self) -> str:
        return "bare"

    def address(self, node: str) -> str:
        del node
        return self._address

    def version(self) -> str:
        return f"aiohttp {version('aiohttp')}, uvloop {version('uvloop')}"


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
