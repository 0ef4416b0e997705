"""The data directory: whose it is, and that one process alone uses it.

    lock            flocked by the process that uses the directory; holds its pid
    identity.json   node, data id, cluster, peers' data ids, the members and their addresses as last
                    agreed; checksummed, replaced atomically
    raft.mark       how far this node is in consensus, see `election.pysyncobj_adapter`
    raft.peers      what it remembers of the other nodes, see there
    accepted        the accepted (epoch, primary), see `datapath.storage.accepted`
    log/            see `datapath.storage.log`
    store/          see `datapath.storage.environment`
    unfinished      a restore or a recovery has not come to its end, see `datapath.storage.founding`

Directories are 0700 and files 0600: what is stored is for the node's user alone.

The *data id* is drawn once, when the directory is made. Peers pin it: a node that comes back under
its old name with another data id has lost its disk, and all that it had acknowledged.

Here too are the primitives with which the storage half makes a file durable.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import msgspec

from datapath.errors import (
    DataDirectoryError,
    DiskFailedError,
    DiskFullError,
    StorageError,
    is_out_of_space,
)
from election.identity import Addresses
from election.registry import KnownMember
from election.release import FIRST_LEVEL, own_release, unsupported

logger = logging.getLogger(__name__)

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700
UNFINISHED = "unfinished"
"""The file that marks a directory in which a restore or a recovery has not come to its end."""
_FIRST_FORMAT, _FORMAT = 2, 3
"""Of `identity.json`, below level 2 and from there on."""


def storage_error(error: OSError, doing: str) -> StorageError:
    """Translate what the operating system said: no room, or a disk not to be trusted (D9)."""
    kind = DiskFullError if is_out_of_space(error.errno) else DiskFailedError
    return kind(f"{doing}: {error.strerror or error}")


def sync_directory(path: Path) -> None:
    """Make names created, renamed or removed in `path` durable. Raises OSError."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY, os.fsync)


def sync_file(path: Path) -> None:
    """Make a file's data durable, whoever wrote it. Raises OSError."""
    _sync(path, os.O_RDWR | os.O_CLOEXEC, os.fdatasync)


def _sync(path: Path, flags: int, sync: Callable[[int], None]) -> None:
    descriptor = os.open(path, flags)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def trust_the_disk(descriptor: int) -> None:
    """Let what is read next come from the disk, not from the page cache. Raises OSError.

    D9: after a failed fsync the cache holds, as clean, what the disk may lack; a later fsync then
    succeeds and writes nothing. Call it before a file is read that was written in place.
    """
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def open_private(path: str, flags: int) -> int:
    """Open for `open(…, opener=private)`: a new file is its user's alone."""
    return os.open(path, flags | os.O_CLOEXEC, FILE_MODE)


def replace_file(path: Path, content: bytes) -> None:
    """Put `content` under `path`: after a crash the old content is there or the new, whole.

    Durable when it returns. Raises OSError; the old content is then still in place.
    """
    fresh = path.with_name(path.name + ".new")
    try:
        with open(fresh, "wb", opener=open_private) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


class Identity(msgspec.Struct, frozen=True):
    """The content of identity.json; `DataDirectory` says what the fields mean."""

    format: int
    node: str
    data: str
    cluster: str = ""
    joined: bool = False
    removed: bool = False
    peers: dict[str, str] = {}
    members: dict[str, KnownMember] = {}
    version: int = 0
    addresses: Addresses | None = None
    first_epoch: int = 0
    level: int = FIRST_LEVEL
    group: str = ""


class DataDirectory:
    """A locked data directory. Use `DataDirectory.open`; `close` releases it."""

    def __init__(self, path: Path, identity: Identity, lock: int) -> None:
        self.path = path
        self._identity = identity
        self._lock = lock

    @classmethod
    def open(cls, path: str | Path, *, node_id: str, create: bool = True) -> DataDirectory:
        """Lock the directory and read its identity; make it first if it is new.

        Raises:
            DataDirectoryError: in use, another node's, damaged, not writable, or missing while
                `create` is false. The text says what to do.
            DiskFullError, DiskFailedError: it could not be made durable.

        """
        path = Path(path).absolute()
        _make(path, create)
        lock = _lock(path)
        try:
            identity = _load(path, node_id, create)
        except BaseException:
            os.close(lock)
            raise
        return cls(path, identity, lock)

    @classmethod
    def reserve(cls, path: Path, node_id: str) -> DataDirectory:
        """Lock a directory that a state is to be put into, made if missing; `found` finishes it.

        Raises as `open`. No identity is written before `found`.
        """
        _make(path, create=True)
        return cls(path, Identity(_FORMAT, node_id, secrets.token_hex(16)), _lock(path))

    def found(self, cluster_id: str, epoch: int, group: str = "") -> None:
        """Write the identity: this node begins the cluster, with `epoch`, on the data that is here.

        Durable when it returns. Raises DiskFullError or DiskFailedError.
        """
        begun = {"cluster": cluster_id, "first_epoch": epoch, "group": group}
        self._save(msgspec.structs.replace(self._identity, **begun))

    def close(self) -> None:
        """Release the lock. Closing twice is harmless."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @property
    def is_open(self) -> bool:
        """Whether the lock is held."""
        return self._lock >= 0

    @property
    def first_epoch(self) -> int:
        """The epoch with which this node begins a cluster on data that it has; 0: it does not."""
        return self._identity.first_epoch

    @property
    def node_id(self) -> str:
        """The node that the directory belongs to."""
        return self._identity.node

    @property
    def data_id(self) -> str:
        """Names this disk's content: 32 hex digits, drawn when the directory was made."""
        return self._identity.data

    @property
    def cluster_id(self) -> str:
        """The cluster that the data belongs to, or "" before `bind_cluster`."""
        return self._identity.cluster

    @property
    def joined(self) -> bool:
        """Whether this node has taken part in consensus with this directory."""
        return self._identity.joined

    @property
    def removed(self) -> bool:
        """Whether this node has learned that it was removed from the cluster."""
        return self._identity.removed

    @property
    def pins(self) -> dict[str, str]:
        """Peers' data ids as pinned: node -> data id."""
        return dict(self._identity.peers)

    @property
    def members(self) -> dict[str, KnownMember]:
        """The members as `note_members` was last told; empty before the first view."""
        return dict(self._identity.members)

    @property
    def members_version(self) -> int:
        """The version of the view that `members` came with; 0 before the first."""
        return self._identity.version

    @property
    def addresses(self) -> Addresses | None:
        """This node's addresses when its configuration and the view last said the same."""
        return self._identity.addresses

    def bind_cluster(self, cluster_id: str) -> None:
        """Tie the data to a cluster, for ever; durable when it returns.

        Raises:
            DataDirectoryError: it belongs to another cluster.

        """
        known = self._identity.cluster
        if not cluster_id:
            raise DataDirectoryError("an empty cluster id cannot be bound")
        if known not in ("", cluster_id):
            raise DataDirectoryError(
                f"data directory {self.path} belongs to cluster {known}, not {cluster_id}: "
                f"point this node at the data directory it used in {cluster_id}, or at an empty "
                "one to join as a new node"
            )
        if not known:
            self._save(msgspec.structs.replace(self._identity, cluster=cluster_id))

    def bind_group(self, group: str) -> None:
        """Tie the data to a group ("": all keys), or raise DataDirectoryError: it has one (G1)."""
        known = self._identity.group
        if known != group and (self.joined or self.first_epoch or _may_have_voted(self.path)):
            raise DataDirectoryError(
                f"data directory {self.path} belongs to group {known or '(none)'}, and [groups] of "
                f"the configuration says {group or '(none)'}: a group keeps its id and its slots"
            )
        if known != group:
            self._save(msgspec.structs.replace(self._identity, group=group))

    @property
    def level(self) -> int:
        """The level of the cluster (`election.release`), as `note_level` was last told."""
        return self._identity.level

    def note_level(self, level: int) -> None:
        """Remember the cluster's level, durably: a release that does not support it won't start."""
        if level > self._identity.level:
            self._save(
                msgspec.structs.replace(self._identity, format=_format_at(level), level=level)
            )

    def note_members(self, version: int, members: dict[str, KnownMember]) -> None:
        """Remember the members of the view of that version, durably, if it is a newer one."""
        if version > self._identity.version and members != self._identity.members:
            self._save(
                msgspec.structs.replace(self._identity, version=version, members=dict(members))
            )

    def note_addresses(self, addresses: Addresses) -> None:
        """Remember that configuration and view agree on these, durably."""
        if addresses != self._identity.addresses:
            self._save(msgspec.structs.replace(self._identity, addresses=addresses))

    def mark_joined(self) -> None:
        """Remember that this node has taken part in consensus; durable when it returns."""
        if not self._identity.joined:
            self._save(msgspec.structs.replace(self._identity, joined=True))

    def mark_removed(self) -> None:
        """Remember that this node was removed from the cluster, for ever; durable on return."""
        if not self._identity.removed:
            self._save(msgspec.structs.replace(self._identity, removed=True))

    def discard(self) -> None:
        """Empty the directory again: the cluster has not let this node in. Closes it.

        Raises:
            ValueError: the node has taken part with it, or founds a cluster with it: it may hold
                what was acknowledged.
            DiskFailedError: it cannot be emptied.

        """
        if self.joined or self.first_epoch or _may_have_voted(self.path):
            raise ValueError(f"{self.path} holds the data of a node that is, or was, a member")
        try:
            _empty(self.path)
            (self.path / "lock").unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(error, f"emptying {self.path}") from error
        finally:
            self.close()

    def pin_peer(self, node: str, data_id: str) -> bool:
        """Remember a peer's data id, durably; False if the peer is known with another one."""
        known = self._identity.peers.get(node)
        if known is None:
            peers = {**self._identity.peers, node: data_id}
            self._save(msgspec.structs.replace(self._identity, peers=peers))
        return known in (None, data_id)

    def _save(self, identity: Identity) -> None:
        if self._lock < 0:
            raise DataDirectoryError(f"data directory {self.path} is closed")
        _write(self.path, identity)
        self._identity = identity


def _make(path: Path, create: bool) -> None:
    if path.exists() and not path.is_dir():
        raise DataDirectoryError(f"{path} is not a directory: name another data directory")
    if path.is_dir():
        _tighten(path)
        return
    if not create:
        raise DataDirectoryError(f"data directory {path} does not exist: check the path")
    try:
        path.mkdir(mode=DIRECTORY_MODE, parents=True)
        sync_directory(path.parent)
    except OSError as error:
        raise DataDirectoryError(
            f"data directory {path} cannot be created ({error.strerror}): create it yourself, "
            "writable for this user, or name another"
        ) from error


def _tighten(path: Path) -> None:
    """Take the rights of other users away: what is stored here is for this one alone."""
    for folder, _, names in os.walk(path):
        for place in (Path(folder), *(Path(folder, name) for name in names)):
            try:
                mode = place.lstat().st_mode
                allowed = DIRECTORY_MODE if stat.S_ISDIR(mode) else FILE_MODE
                if stat.S_IMODE(mode) & ~allowed and not stat.S_ISLNK(mode):
                    place.chmod(stat.S_IMODE(mode) & allowed)
            except OSError as error:
                logger.warning("other users may read %s: %s", place, error.strerror)


def _lock(path: Path) -> int:
    try:
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    except OSError as error:
        raise DataDirectoryError(
            f"data directory {path} is not writable ({error.strerror}): make it writable for "
            "this user, or name another"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError as error:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise DataDirectoryError(
            f"data directory {path} is in use by process {holder}: stop that process first, or "
            "give this node its own directory"
        ) from error
    except OSError as error:
        # The pid is only for people: a full disk must not keep a node from starting.
        if not is_out_of_space(error.errno):
            os.close(lock)
            raise storage_error(error, f"locking data directory {path}") from error
    return lock


def _load(path: Path, node_id: str, create: bool) -> Identity:
    file = path / "identity.json"
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return _create(path, node_id, create)
    except OSError as error:
        raise storage_error(error, f"reading {file}") from error
    identity = _parse(file, content)
    was_let_in = identity.joined or identity.cluster or _may_have_voted(path)
    if identity.node != node_id and create and not was_let_in:
        # That node was never let in: nothing was voted or acknowledged with this directory.
        try:
            _empty(path)
        except OSError as error:
            raise storage_error(error, f"emptying {path}") from error
        return _create(path, node_id, create)
    if identity.node != node_id:
        raise DataDirectoryError(
            f"data directory {path} belongs to node {identity.node}, not {node_id}: start "
            f"{identity.node} with it, or name {node_id}'s own directory"
        )
    return identity


def read_identity(path: Path) -> Identity:
    """Return whose the data directory is. Raises DataDirectoryError or DiskFailedError."""
    file = path / "identity.json"
    try:
        return _parse(file, file.read_bytes())
    except OSError as error:
        raise storage_error(error, f"reading {file}") from error


def _may_have_voted(path: Path) -> bool:
    """Whether consensus began here, be it in a process that ended before it could note so."""
    raft = path / "raft"
    return raft.is_dir() and any(raft.iterdir())


def _create(path: Path, node_id: str, create: bool) -> Identity:
    if (path / UNFINISHED).exists():
        raise DataDirectoryError(
            f"data directory {path} is unfinished: a restore or a recovery into it was "
            "interrupted. Run that command again, or empty the directory"
        )
    held = sorted(name for name in ("accepted", "log", "store") if (path / name).exists())
    if held:
        raise DataDirectoryError(
            f"data directory {path} has lost its identity.json, but holds {', '.join(held)}: "
            "restore exactly that file (never an older copy), or move the data directory away "
            "and join as a new node"
        )
    if not create:
        raise DataDirectoryError(f"{path} is not a data directory: identity.json is missing")
    identity = Identity(_FIRST_FORMAT, node_id, secrets.token_hex(16))
    _write(path, identity)
    return identity


def _empty(path: Path) -> None:
    """Remove what a node keeps in its directory, but the lock. Raises OSError.

    The identity goes last: until then the directory is known for what it is.
    """
    for name in ("log", "store", "raft"):
        if (path / name).is_dir():
            shutil.rmtree(path / name)
    for name in ("raft.mark", "raft.peers", "accepted", "identity.json"):  # the identity goes last
        (path / f"{name}.new").unlink(missing_ok=True)
        (path / name).unlink(missing_ok=True)
    sync_directory(path)


def _write(path: Path, identity: Identity) -> None:
    body = msgspec.json.format(msgspec.json.encode(identity), indent=2)
    line = f"{google_crc32c.value(body):08x}\n".encode()
    try:
        replace_file(path / "identity.json", body + b"\n" + line)
    except OSError as error:
        raise storage_error(error, f"writing {path / 'identity.json'}") from error


def _format_at(level: int) -> int:
    """Return the identity's format: below level 2 the release before still reads it."""
    return _FIRST_FORMAT if level < 2 else _FORMAT


def _parse(file: Path, content: bytes) -> Identity:
    body, _, checksum = content.rstrip(b"\n").rpartition(b"\n")
    try:
        sound = int(checksum, 16) == google_crc32c.value(body)
        identity = msgspec.json.decode(body, type=Identity) if sound else None
    except (ValueError, msgspec.MsgspecError):
        identity = None
    if identity is None:
        raise DataDirectoryError(
            f"{file} is damaged (its last line is the checksum of the rest): never replace it by "
            "an older copy; move the data directory away and join as a new node"
        )
    if identity.format not in (_FIRST_FORMAT, _FORMAT):
        raise DataDirectoryError(
            f"{file} has format {identity.format}, this version reads {_FIRST_FORMAT} and "
            f"{_FORMAT}: use the version of onecopy that wrote it"
        )
    if problem := unsupported(identity.node, own_release(""), identity.level):
        raise DataDirectoryError(f"{file}: {problem}")
    return identity
