"""The dump: the state machine at one log entry, in a file that is checked before it counts.

It replaces PySyncObj's serializer (hence the method names). The old dump stays until the new one
has been written, synced, read back and found whole; only then is the journal cut. Nothing forks.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from election.pysyncobj_adapter.codec import UNDECODABLE
from election.pysyncobj_adapter.errors import StorageCorruptError
from election.pysyncobj_adapter.files import REAL_DISK, Disk, decode_file, encode_file, new_path
from election.pysyncobj_adapter.journal import RaftEntry
from election.pysyncobj_adapter.view_machine import MachineState

RAFT_SNAPSHOT_MAGIC = b"OCRAFTD1"
CHUNK_BYTES = 64 * 1024
MAX_DUMP_BYTES = 16 * 1024 * 1024

DumpChunk = tuple[bytes, bool, bool]  # data, is the first, is the last


class Dump(msgspec.Struct, frozen=True, array_like=True):
    """The state after `last`; `previous` is the entry before it, which PySyncObj keeps too."""

    state: MachineState
    previous: RaftEntry
    last: RaftEntry


class DumpStore:
    """This node's dump, on disk and in memory, and its transfers to and from other nodes."""

    def __init__(self, path: Path, disk: Disk = REAL_DISK) -> None:
        """Load the dump, if there is one.

        Raises:
            StorageCorruptError: it is damaged.

        """
        self.path = path
        self._disk = disk
        self.current: Dump | None = None
        self._data = b""
        self._sent_bytes: dict[object, int] = {}
        self._incoming: bytearray | None = None
        disk.remove(new_path(path))
        if disk.exists(path):
            self._data = disk.read_from_disk(path)
            self.current = self._decode(self._data, path)

    def store(self, dump: Dump) -> None:
        """Make `dump` the current one; it is durable and verified on return.

        Raises:
            StorageFullError: there is no room; the old dump still stands.
            StorageCorruptError: the disk did not keep what was written.

        """
        self._store(encode_file(RAFT_SNAPSHOT_MAGIC, msgspec.msgpack.encode(dump)), dump)

    def receive(self, chunk: DumpChunk | None) -> Dump | None:
        """Collect a dump sent by the leader; return it when it is complete and whole."""
        if chunk is None:
            return None
        data, is_first, is_last = chunk
        if is_first:
            self._incoming = bytearray()
        if self._incoming is None:
            return None
        self._incoming += data
        if len(self._incoming) > MAX_DUMP_BYTES:
            self._incoming = None
            return None
        if not is_last:
            return None
        complete, self._incoming = bytes(self._incoming), None
        try:
            return self._decode(complete, self.path)
        except StorageCorruptError:
            return None  # Chunks of two dumps were mixed by a broken transfer; it starts anew.

    # What PySyncObj calls.

    def getTransmissionData(self, transmissionID: object) -> DumpChunk | None:  # noqa: N802, N803
        """Return the next chunk for that node; None if there is no dump to send."""
        if self.current is None:
            return None
        start = self._sent_bytes.pop(transmissionID, 0)
        data = self._data[start : start + CHUNK_BYTES]
        end = start + len(data)
        is_last = end >= len(self._data)
        if not is_last:
            self._sent_bytes[transmissionID] = end
        return data, start == 0, is_last

    def cancelTransmisstion(self, id: object) -> None:  # noqa: A002, N802
        """Forget how far the transfer to that node had come (the name is PySyncObj's)."""
        self._sent_bytes.pop(id, None)

    def _store(self, data: bytes, dump: Dump) -> None:
        beside = self._disk.new_file_beside(self.path, data)
        if self._decode(self._disk.read_from_disk(beside), beside) != dump:
            raise StorageCorruptError(beside, 0, "what was written reads back differently")
        self._disk.rename_durably(beside, self.path)
        self.current, self._data = dump, data
        self._sent_bytes.clear()

    @staticmethod
    def _decode(data: bytes, path: Path) -> Dump:
        payload = decode_file(RAFT_SNAPSHOT_MAGIC, data, path)
        try:
            return msgspec.msgpack.decode(payload, type=Dump)
        except UNDECODABLE as error:
            raise StorageCorruptError(path, 0, f"the content is not a dump ({error})") from error
