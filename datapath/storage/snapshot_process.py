"""A snapshot that is read in a process of its own, so that live requests do not share its lock.

LMDB's binding gives the interpreter's lock back with each item and takes it again, and a busy
event loop wins that race: in a thread of the node, reading waits far longer than it works, and
each turn of the loop waits for it a little. Here it is one wait for a whole chunk.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import msgspec

from datapath.errors import DataDirectoryError, DiskFailedError, DiskFullError, TransferError
from datapath.storage.environment import Environment
from datapath.storage.snapshot import DEFAULT_CHUNK_SIZE_BYTES
from datapath.storage.snapshot_child import (
    CHUNK,
    HEADER,
    NUMBER,
    Broken,
    ChildReply,
    Complete,
    Opened,
    receive,
)

CHUNK_TIMEOUT_S = 60
"""How long a chunk may take to be read."""
_EXIT_TIMEOUT_S = 2.0
_ERRORS = {error.__name__: error for error in (DataDirectoryError, DiskFailedError, DiskFullError)}
_decoder: msgspec.msgpack.Decoder[ChildReply] = msgspec.msgpack.Decoder(ChildReply)


class SnapshotProcess:
    """A `SnapshotSource` (see `datapath.transport.snapshot_transfer`) on an environment, which
    `close` releases.

    One thread at a time; all methods block. `start` comes first. A process that dies or hangs is a
    TransferError: begin anew. The process ends with this one, however that ends. `compresses`: the
    chunks come as a backup has them.
    """

    def __init__(
        self,
        environment: Environment,
        *,
        chunk_size_bytes: int = DEFAULT_CHUNK_SIZE_BYTES,
        compresses: bool = False,
    ) -> None:
        self.index = 0
        self.epoch = 0
        self.count = 0
        self.checksum = ""
        self._environment = environment
        self._chunk_size_bytes = chunk_size_bytes
        self._compresses = compresses
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._closed = False

    @property
    def store_file(self) -> Path:
        """The file that holds what is read, until `close`."""
        return self._environment.path / "data.mdb"

    @property
    def pid(self) -> int:
        """The process id. Raises TransferError before `start`."""
        if self._process is None:
            raise TransferError("the process that reads the snapshot has not been started")
        return self._process.pid

    def start(self) -> None:
        """Start the process: it reads what the environment holds now.

        Raises TransferError: it could not be started, or could not open the environment.
        """
        try:
            self._launch()
        except OSError as error:
            raise TransferError(f"a process to read it could not be started: {error}") from None
        answer = self._receive()
        if not isinstance(answer, Opened):
            detail = answer.detail if isinstance(answer, Broken) else "it gave an invalid answer"
            raise TransferError(f"the process that reads it could not open the store: {detail}")
        self.index, self.epoch = answer.index, answer.epoch

    def _launch(self) -> None:
        environment = self._environment
        command = [
            sys.executable,
            "-P",
            "-m",
            "datapath.storage.snapshot_child",
            str(environment.path),
        ]
        command += [str(environment.map_size_bytes), str(self._chunk_size_bytes)]
        command.append(str(int(self._compresses)))
        self._connection, far = socket.socketpair()
        with far:
            timeout = struct.pack("ll", CHUNK_TIMEOUT_S, 0)
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
            self._process = subprocess.Popen(  # noqa: S603 -- our own command
                command,
                stdin=far.fileno(),
                stdout=subprocess.DEVNULL,
                # It imports what this process imports, wherever that was found.
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )

    def read_chunk(self, number: int) -> bytes | None:
        """Return a chunk, or None after the last one; as `SnapshotReader.read_chunk`.

        Raises:
            StorageError: the store cannot be read.
            TransferError: the process has died, or hangs.

        """
        if self._connection is None:
            raise TransferError("the process that reads it has gone")
        with contextlib.suppress(ConnectionError):  # told by `_receive`
            self._connection.sendall(NUMBER.pack(number))
        answer = self._receive()
        match answer:
            case bytes():
                return answer
            case Complete(count, checksum):
                self.count, self.checksum = count, checksum
                return None
            case Broken(error, detail) if error in _ERRORS:
                raise _ERRORS[error](detail)
        raise TransferError(f"the process that reads it has failed: {answer}")

    def _receive(self) -> bytes | ChildReply:
        assert self._connection is not None
        try:
            header = receive(self._connection, HEADER.size)
            if len(header) == HEADER.size:
                kind, length = HEADER.unpack(header)
                data = receive(self._connection, length)
                if len(data) == length:
                    return data if kind == CHUNK else _decoder.decode(data)
            problem = "has ended"
        except ConnectionError:
            problem = "has ended"
        except OSError as error:
            problem = f"does not answer: {error.strerror or error}"
        self._disconnect()
        raise TransferError(f"the process that reads it {problem}")

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def close(self) -> None:
        """End the process, and let go of the store's pages. Closing twice is harmless."""
        self._disconnect()
        if self._process is not None and self._process.returncode is None:
            try:
                self._process.wait(_EXIT_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                with contextlib.suppress(subprocess.TimeoutExpired):  # it hangs in a disk
                    self._process.wait(_EXIT_TIMEOUT_S)
        if not self._closed:
            self._closed = True
            self._environment.lmdb.reader_check()  # a killed reader would hold its pages for ever
            self._environment.release()
