r"""The format of a backup: one state at one revision, in blocks that are each checked.

    "onecopy backup\r\n"         16 bytes; a copy in a text mode would change them
    block 0                      kind 1: `BackupHeader`, JSON
    blocks 1 to n                kind 2: a chunk of a snapshot (`datapath.storage.snapshot`),
                                 compressed with zstandard
    block n + 1                  kind 3: `BackupEnd`, JSON; nothing follows
                                 or kind 4: why there is no end (text)

A block is a head of 21 bytes, little-endian, and its payload:

    offset  size  field
    0       1     kind
    1       8     number of the block, from 0
    9       4     length of the payload, bytes
    13      4     CRC-32C of the payload
    17      4     CRC-32C of the 17 bytes before
    21      …     the payload

So a file that was cut at any byte has no end, and a bit that was flipped is named by its block. The
end holds the digest of the state (`Store.digest`), which is checked against the chunks' items.

`BlockWriter` and `BlockReader` know nothing of the payloads: other files may consist of blocks too.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import google_crc32c
import msgspec
import zstandard

from datapath.errors import BackupDamagedError, BackupRefusedError
from datapath.storage.environment import STORE_FORMAT

BACKUP_MAGIC = b"onecopy backup\r\n"
BACKUP_FORMAT = 1
_HEADER, _CHUNK, _END, _FAILURE = 1, 2, 3, 4
MAX_PAYLOAD_SIZE_BYTES = 256 * 1024 * 1024
"""Far above a chunk: one value may be larger than what a chunk is meant to have."""
COMPRESSION_LEVEL = 3

_HEAD = struct.Struct("<BQII")
_CRC = struct.Struct("<I")
BLOCK_HEAD_SIZE_BYTES = _HEAD.size + _CRC.size


class BackupHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup is of: the state at (`revision`, `epoch`) of a cluster's log.

    `cluster` is its name, `node` the replica that wrote it, `created_s` when, in seconds since 1970
    by that node's clock. `store_bytes`: how large the store was, about. The store's format is that
    of the items. `group`: whose keys they are, with its slots; "": the cluster had no groups.
    """

    format: int = BACKUP_FORMAT
    store_format: int = STORE_FORMAT
    revision: int
    epoch: int
    cluster: str
    cluster_id: str
    node: str
    created_s: int
    store_bytes: int = 0
    written_by: str = ""
    group: str = ""

    @property
    def source(self) -> str:
        """The cluster by name, with its group, for people."""
        return f"cluster {self.cluster}" + f", group {self.group}" * bool(self.group)


class BackupEnd(msgspec.Struct, frozen=True, kw_only=True):
    """That the backup is whole: its items, and the digest over all of them."""

    items: int
    digest: str


class Block(NamedTuple):
    """A block that was read, and the byte at which it begins."""

    kind: int
    payload: bytes
    at: int


def make_compressor() -> zstandard.ZstdCompressor:
    """Return what compresses chunks; one thread at a time."""
    return zstandard.ZstdCompressor(level=COMPRESSION_LEVEL)


class BlockWriter:
    """Encodes blocks, numbered from 0."""

    def __init__(self) -> None:
        self._number = 0

    def encode(self, kind: int, payload: bytes) -> bytes:
        """Return the next block."""
        head = _HEAD.pack(kind, self._number, len(payload), google_crc32c.value(payload))
        self._number += 1
        return b"".join((head, _CRC.pack(google_crc32c.value(head)), payload))


class ReadableFile(Protocol):
    """What blocks are read from."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes; none at the end."""


class BlockReader:
    """Reads blocks from a file, and checks them. `name` names it in errors."""

    def __init__(self, file: ReadableFile, name: str, *, at: int = 0) -> None:
        self.position = at
        """How many bytes of the file have been read."""
        self._file = file
        self._name = name
        self._number = 0

    def read(self) -> Block | None:
        """Return the next block; None at the end of the file.

        Raises:
            BackupDamagedError: it is cut off, or not as it was written; names the place.
            OSError: it cannot be read.

        """
        at = self.position
        head = self._take(BLOCK_HEAD_SIZE_BYTES)
        if not head:
            return None
        if len(head) < BLOCK_HEAD_SIZE_BYTES:
            raise self._cut_off(at)
        fields, checksum = head[: _HEAD.size], head[_HEAD.size :]
        kind, number, length, payload_checksum = _HEAD.unpack(fields)
        if _CRC.unpack(checksum)[0] != google_crc32c.value(fields):
            raise self.damaged(at, "the checksum of its head is wrong")
        if number != self._number:
            raise self.damaged(at, f"it is block {number} of a file, or of another one")
        if length > MAX_PAYLOAD_SIZE_BYTES:
            raise self.damaged(at, f"it is said to have {length} bytes")
        payload = self._take(length)
        if len(payload) < length:
            raise self._cut_off(at)
        if payload_checksum != google_crc32c.value(payload):
            raise self.damaged(at, "its checksum is wrong")
        self._number += 1
        return Block(kind, payload, at)

    def is_at_end(self) -> bool:
        """Whether the file has no more bytes."""
        return not self._take(1)

    def damaged(self, at: int, why: str) -> BackupDamagedError:
        """Return the error that names the block being read, which begins at byte `at`."""
        return BackupDamagedError(
            f"{self._name} is damaged in block {self._number}, bytes {at} to {self.position}: {why}"
        )

    def _cut_off(self, at: int) -> BackupDamagedError:
        return BackupDamagedError(
            f"{self._name} is cut off at byte {self.position}, in block {self._number}, which "
            f"begins at byte {at}: it is not a whole backup"
        )

    def _take(self, n_bytes: int) -> bytes:
        """Return the next bytes: fewer only where the file ends (a pipe gives what it has)."""
        pieces = []
        missing = n_bytes
        while missing and (piece := self._file.read(missing)):
            pieces.append(piece)
            missing -= len(piece)
        self.position += n_bytes - missing
        return b"".join(pieces)


class BackupWriter:
    """Encodes a backup, piece by piece, as it is to be written."""

    def __init__(self) -> None:
        self._blocks = BlockWriter()

    def begin(self, header: BackupHeader) -> bytes:
        """Return the first bytes."""
        return BACKUP_MAGIC + self._blocks.encode(_HEADER, msgspec.json.encode(header))

    def compressed(self, chunk: bytes) -> bytes:
        """Return the block of the next chunk, which was compressed (`make_compressor`)."""
        return self._blocks.encode(_CHUNK, chunk)

    def failure(self, reason: str) -> bytes:
        """Return the last bytes of what is no backup, for who reads them as they are written."""
        return self._blocks.encode(_FAILURE, reason.encode())

    def end(self, end: BackupEnd) -> bytes:
        """Return the last bytes."""
        return self._blocks.encode(_END, msgspec.json.encode(end))


class BackupReader:
    """Reads a backup from a file: `header` at once, `chunks` in order, then `end`.

    Raises:
        BackupDamagedError: it is not a whole backup; names the place.
        BackupRefusedError: another version of onecopy wrote it.
        OSError: it cannot be read.

    """

    def __init__(self, file: ReadableFile, name: str) -> None:
        self.name = name
        magic = file.read(len(BACKUP_MAGIC))
        if magic != BACKUP_MAGIC:
            what = "is empty" if not magic else "is not a backup: its first 16 bytes are others"
            raise BackupDamagedError(f"{name} {what}")
        self._blocks = BlockReader(file, name, at=len(BACKUP_MAGIC))
        self.header = self._read_header()
        self.end: BackupEnd | None = None
        """What the last block says; None before all chunks were read."""

    @property
    def position(self) -> int:
        """How many bytes of the file have been read."""
        return self._blocks.position

    def _read_header(self) -> BackupHeader:
        block = self._blocks.read()
        if block is None or block.kind != _HEADER:
            raise BackupDamagedError(f"{self.name} is cut off at byte {self.position}: no header")
        try:
            written = msgspec.json.decode(block.payload, type=_Formats)
            for field, found, known in (
                ("format", written.format, BACKUP_FORMAT),
                ("store_format", written.store_format, STORE_FORMAT),
            ):
                if found != known:
                    raise BackupRefusedError(
                        f"{self.name} has {field} {found}, this version reads {known}: use the "
                        f"version of onecopy that wrote it ({written.written_by or 'unknown'})"
                    )
            return msgspec.json.decode(block.payload, type=BackupHeader)
        except msgspec.MsgspecError as error:
            raise self._blocks.damaged(block.at, f"its header is invalid: {error}") from error

    def chunks(self) -> Iterator[bytes]:
        """Yield the chunks, then set `end`. Raises as the class says."""
        while (block := self._blocks.read()) is not None:
            if block.kind == _CHUNK:
                yield self._decompress(block)
            elif block.kind == _END:
                self.end = self._read_end(block)
                return
            elif block.kind == _FAILURE:
                raise BackupDamagedError(
                    f"{self.name} is not a whole backup: {block.payload.decode(errors='replace')}"
                )
            else:
                raise self._blocks.damaged(block.at, f"it has the unknown kind {block.kind}")
        raise BackupDamagedError(
            f"{self.name} is cut off at byte {self.position}, after whole blocks: it has no end, "
            "so it is not a whole backup"
        )

    def _decompress(self, block: Block) -> bytes:
        try:
            size = zstandard.get_frame_parameters(block.payload).content_size
            if size > MAX_PAYLOAD_SIZE_BYTES:
                raise self._blocks.damaged(block.at, f"it would have {size} bytes, decompressed")
            return zstandard.ZstdDecompressor().decompress(block.payload)
        except zstandard.ZstdError as error:
            raise self._blocks.damaged(block.at, f"it cannot be decompressed: {error}") from error

    def _read_end(self, block: Block) -> BackupEnd:
        try:
            end = msgspec.json.decode(block.payload, type=BackupEnd)
        except msgspec.MsgspecError as error:
            raise self._blocks.damaged(block.at, f"its end is invalid: {error}") from error
        whole = self.position
        if not self._blocks.is_at_end():
            raise BackupDamagedError(f"{self.name} goes on after its end, at byte {whole}")
        return end


class _Formats(msgspec.Struct, frozen=True):
    format: int
    store_format: int
    written_by: str = ""
