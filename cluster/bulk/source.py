"""Lines of a file or of standard input, read beside the event loop."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator

CHUNK_SIZE_BYTES = 256 * 1024
CHUNKS_AHEAD = 2
LINE_SIZE_MAX_BYTES = 512 * 1024 * 1024

InputChunk = bytes | OSError


async def read_chunks(descriptor: int) -> AsyncIterator[bytes]:
    """Yield what comes, as it comes, until the end.

    A daemon thread reads, so that a pipe on which nothing comes holds up neither the event loop
    nor the end of the process.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[InputChunk] = asyncio.Queue()
    room = threading.Semaphore(CHUNKS_AHEAD)
    ended = threading.Event()

    def read() -> None:
        chunk: InputChunk = b"first"
        while chunk and not isinstance(chunk, OSError):
            room.acquire()
            if ended.is_set():
                return
            try:
                chunk = os.read(descriptor, CHUNK_SIZE_BYTES)
            except OSError as error:
                chunk = error
            try:
                loop.call_soon_threadsafe(queue.put_nowait, chunk)
            except RuntimeError:
                return  # the loop has been closed meanwhile

    threading.Thread(target=read, name="onecopy-reader", daemon=True).start()
    try:
        while chunk := await queue.get():
            if isinstance(chunk, OSError):
                raise chunk
            room.release()
            yield chunk
    finally:
        ended.set()
        room.release()


async def read_lines(descriptor: int) -> AsyncIterator[tuple[list[bytes], int]]:
    """Yield (complete lines without their line breaks, sizes with them) as they come.

    The last line needs no line break. Raises ValueError for a line of absurd length.
    """
    rest = b""
    async for chunk in read_chunks(descriptor):
        lines = (rest + chunk).split(b"\n") if b"\n" in chunk else []
        if not lines:
            rest += chunk
            if len(rest) > LINE_SIZE_MAX_BYTES:
                raise ValueError(f"a line is longer than {LINE_SIZE_MAX_BYTES} bytes")
            continue
        rest = lines.pop()
        yield lines, 1
    if rest:
        yield [rest], 0
