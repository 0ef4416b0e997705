"""Serve the HTTP API over a `LocalNode`: `python -m tests.support.serve_local [PORT]`."""

from __future__ import annotations

import asyncio
import sys

import uvloop

from cluster.api.routes import HttpApi
from tests.support.local_node import local_node


async def serve(port: int) -> None:
    api = HttpApi(local_node())
    await api.listener.start("127.0.0.1", port)
    print(f"http://127.0.0.1:{api.listener.port}", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        await api.listener.stop()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
