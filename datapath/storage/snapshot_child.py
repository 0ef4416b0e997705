"""The process that reads a snapshot: `datapath.storage.snapshot_process` starts it, and asks.

    python -m datapath.storage.snapshot_child ENVIRONMENT MAP_SIZE_BYTES CHUNK_SIZE_BYTES COMPRESS

COMPRESS "1": chunks come compressed, for a backup, and this process gives way to others.

Standard input is a socket, for both ways. First comes `Opened`, or `Broken`; from then on each
chunk number (8 bytes, little-endian) is answered. An answer is a kind (1 byte), a length (8 bytes,
little-endian), and so many bytes: a chunk (kind 0), or a MessagePack `ChildReply` (kind 1). It ends
when the other side has gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from datapath.errors import StorageError
from datapath.storage.backup_format import make_compressor
from datapath.storage.environment import Environment
from datapath.storage.snapshot import SnapshotReader

NUMBER = struct.Struct("<Q")
HEADER = struct.Struct("<BQ")
CHUNK, ANSWER = 0, 1
NICENESS = 10
"""Of a process that compresses: that takes longer than reading."""


class Opened(msgspec.Struct, frozen=True, tag=1):
    """The state is read as of (`index`, `epoch`)."""

    index: int
    epoch: int


class Complete(msgspec.Struct, frozen=True, tag=2):
    """There is no such chunk, for all have been read."""

    count: int
    checksum: str


class Broken(msgspec.Struct, frozen=True, tag=3):
    """It cannot be read: the name of the error's class, and its text."""

    error: str
    detail: str


ChildReply = Opened | Complete | Broken


def receive(connection: socket.socket, n_bytes: int) -> bytes:
    """Return the next `n_bytes`; fewer where the other side has gone. Raises OSError."""
    data = connection.recv(n_bytes, socket.MSG_WAITALL)
    while data and len(data) < n_bytes:  # a signal came in between
        more = connection.recv(n_bytes - len(data), socket.MSG_WAITALL)
        if not more:
            break
        data += more
    return data


def serve_chunks(
    path: str, map_size_bytes: int, chunk_size_bytes: int, *, compresses: bool
) -> None:
    """Serve until the other side goes."""
    compress: Callable[[bytes], bytes] = bytes
    if compresses:
        os.nice(NICENESS)
        compress = make_compressor().compress
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the node's to act on
    with socket.socket(fileno=0) as connection, contextlib.suppress(ConnectionError):
        try:
            environment = Environment(Path(path), map_size_bytes, readonly=True)
            reader = SnapshotReader(environment, chunk_size_bytes=chunk_size_bytes)
        except (StorageError, OSError) as error:
            _answer(connection, Broken(type(error).__name__, str(error)))
            return
        _answer(connection, Opened(reader.index, reader.epoch))
        while len(number := receive(connection, NUMBER.size)) == NUMBER.size:
            _serve(connection, reader, int.from_bytes(number, "little"), compress)
        reader.close()


def _serve(
    connection: socket.socket,
    reader: SnapshotReader,
    number: int,
    compress: Callable[[bytes], bytes],
) -> None:
    try:
        chunk = reader.read_chunk(number)
    except StorageError as error:
        _answer(connection, Broken(type(error).__name__, str(error)))
        return
    if chunk is None:
        _answer(connection, Complete(reader.count, reader.checksum))
    else:
        chunk = compress(chunk)
        connection.sendall(HEADER.pack(CHUNK, len(chunk)))
        connection.sendall(chunk)


def _answer(connection: socket.socket, answer: ChildReply) -> None:
    data = msgspec.msgpack.encode(answer)
    connection.sendall(HEADER.pack(ANSWER, len(data)) + data)


if __name__ == "__main__":
    serve_chunks(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), compresses=sys.argv[4] == "1")
