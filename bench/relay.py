"""A network between two nodes, in a process of its own: bytes are forwarded late, in order.

`delay_ms` for every chunk, up to `jitter_ms` more at random, and with probability `loss` the time
that TCP takes to send a lost segment again (RETRANSMIT_MS: Linux's shortest). Killed, it takes what
is under way with it, as the network of a machine that dies does.
`python -m bench.relay` reads its plan as JSON from standard input.
"""

from __future__ import annotations

import asyncio
import random
import sys

import msgspec
import uvloop

from bench.child import start_child

RETRANSMIT_MS = 200.0
CHUNK_BYTES = 65536


class Way(msgspec.Struct, frozen=True):
    """One direction of dialling: who connects to `listen` gets to `target`, and back."""

    listen: str
    target: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a relay does."""

    ways: list[Way]
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    seed: int = 1


class Relay:
    """The process. It listens when the constructor returns."""

    def __init__(self, plan: Plan) -> None:
        self._popen = start_child("bench.relay", plan, b"listening")

    def signal(self, number: int) -> None:
        """Stop it (SIGSTOP: what is sent is silently held back) or continue it (SIGCONT)."""
        self._popen.send_signal(number)

    def kill(self) -> None:
        """Kill it, without waiting for its end."""
        self._popen.kill()

    def end(self) -> None:
        """Kill it, and wait until it is gone."""
        self.kill()
        self._popen.communicate()


class _Network:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._draw = random.Random(plan.seed)
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self) -> None:
        for way in self._plan.ways:
            host, _, port = way.listen.rpartition(":")

            async def accept(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter, to: str = way.target
            ) -> None:
                host, _, port = to.rpartition(":")
                try:
                    onward = await asyncio.open_connection(host, int(port))
                except OSError:
                    writer.close()
                    return
                self._pump(reader, onward[1])
                self._pump(onward[0], writer)

            await asyncio.start_server(accept, host, int(port))

    def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._forward(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        plan, due = self._plan, 0.0
        try:
            while data := await reader.read(CHUNK_BYTES):
                late = plan.delay_ms + self._draw.uniform(0, plan.jitter_ms)
                if self._draw.random() < plan.loss:
                    late += RETRANSMIT_MS
                due = max(due, loop.time() + late / 1000)  # a stream keeps its order
                loop.call_at(due, _write, writer, data)
        except OSError:
            pass
        loop.call_at(max(due, loop.time()), writer.close)


def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    if not writer.is_closing():
        writer.write(data)


async def _main() -> None:
    plan = msgspec.json.decode(sys.stdin.buffer.readline(), type=Plan)
    await _Network(plan).listen()
    sys.stdout.buffer.write(b"listening\n")
    sys.stdout.buffer.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)


if __name__ == "__main__":
    uvloop.run(_main())
