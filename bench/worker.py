"""One process of the load generator: `python -m bench.worker`, told and asked by `bench.loads`.

Lines of JSON on standard input and output: a Load in, "ready" out, then either "fill" or the times
[measure_ns, end_ns] in, and an Outcome (or "filled") out.
"""

from __future__ import annotations

import asyncio
import gc
import sys

import msgspec
import uvloop

from bench.generator import Generator
from bench.spec import Load


def _say(answer: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    sys.stdout.buffer.flush()


async def _main() -> None:
    loop = asyncio.get_running_loop()
    load = msgspec.json.decode(sys.stdin.buffer.readline(), type=Load)
    generator = Generator(load, loop)
    await generator.connect()
    gc.freeze()  # the rendered requests need no looking through
    _say("ready")
    order = msgspec.json.decode(await loop.run_in_executor(None, sys.stdin.buffer.readline))
    if order == "fill":
        await generator.fill()
        _say("filled")
    else:
        measure_ns, end_ns = order
        _say(await generator.run(measure_ns, end_ns))


if __name__ == "__main__":
    uvloop.run(_main())
