"""How far a load has come, kept beside its file so that it can go on where it was cut off."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

import msgspec

SUFFIX = ".onecopy-load"
VERSION = 3
DEFAULT_BATCH_RECORDS = 256
MAX_BATCH_RECORDS = 1024
"""What one transaction takes."""


class CheckpointError(Exception):
    """The checkpoint cannot be used. `str(error)` says what to do."""


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The state of a load. Everything before `position` (bytes) and `line` is acknowledged.

    `position` is where a batch begins. Some records after it may be acknowledged too, none behind
    the line `reach`: they are sent again in the same batches under the same idempotency keys, which
    are made of `load_id` and a batch's first line, and as first sent after `revision`
    (Idempotency-After), which was known before the first of them had left.
    """

    version: int = VERSION
    load_id: str
    cluster: str
    size_bytes: int
    fingerprint: str
    format: str
    position: int = 0
    line: int = 0
    records: int = 0
    reach: int = 0
    batch_records: int = DEFAULT_BATCH_RECORDS
    revision: int = 0


class _Version(msgspec.Struct):
    version: int


def checkpoint_path(file: Path) -> Path:
    """Return where the checkpoint of loading `file` is kept."""
    return file.with_name(file.name + SUFFIX)


def new_load_id() -> str:
    """Draw a load id."""
    return secrets.token_hex(12)


def file_digest(file: Path) -> str:
    """Return a checksum of the whole file."""
    with file.open("rb") as source:
        return hashlib.file_digest(source, "blake2b").hexdigest()[:32]


def read_checkpoint(file: Path) -> Checkpoint | None:
    """Return what a load of `file` has left, or None. Raises CheckpointError if it is damaged."""
    path = checkpoint_path(file)
    try:
        data = path.read_bytes()
        version = msgspec.json.decode(data, type=_Version).version
        if version != VERSION:
            raise CheckpointError(
                f"{path} is from another version of onecopy (format {version}, not {VERSION}): "
                "continue with that version, or load the whole file again with --restart"
            )
        return msgspec.json.decode(data, type=Checkpoint)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}); use --restart to load the whole file again"
        ) from None


def check_unchanged(file: Path, found: Checkpoint, size_bytes: int, checksum: str) -> None:
    """Raise CheckpointError if the file is not the one whose load was interrupted."""
    if (found.size_bytes, found.fingerprint) != (size_bytes, checksum):
        raise CheckpointError(
            f"{file} has changed since its load was interrupted at line {found.line + 1}; use "
            "--restart to load the whole file as it is now"
        )


def write_checkpoint(file: Path, state: Checkpoint) -> None:
    """Replace the checkpoint atomically; it is on disk when this returns."""
    path = checkpoint_path(file)
    temporary = path.with_name(path.name + ".new")
    with open(temporary, "wb", opener=open_checkpoint) as target:
        target.write(msgspec.json.encode(state) + b"\n")
        target.flush()
        os.fsync(target.fileno())
    temporary.replace(path)
    sync_checkpoint_directory(path.parent)


def open_checkpoint(path: str, flags: int) -> int:
    """Open for `open(…, opener=private)`: a new file is its user's alone; never by a link."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def remove_checkpoint(file: Path) -> None:
    """The load is complete."""
    checkpoint_path(file).unlink(missing_ok=True)
    sync_checkpoint_directory(file.parent)


def sync_checkpoint_directory(directory: Path) -> None:
    """Make a rename or removal in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
