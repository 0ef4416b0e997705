"""Where an archive is kept: a directory, or an object store by the package obstore.

An object is whole or not there. Names have `/` between their parts. All calls block.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit

from cluster.archive.errors import ArchiveUnavailableError
from datapath.errors import is_out_of_space
from datapath.storage.data_directory import open_private, sync_directory

if TYPE_CHECKING:
    from obstore.store import ObjectStore as CloudObjects

SCHEMES = ("file", "s3", "gs", "az")
CONNECT_TIMEOUT = timedelta(seconds=5)
REQUEST_TIMEOUT = timedelta(seconds=30)
"""For one request of a store, which carries `PART_SIZE_BYTES` at the most."""
RETRIES = 3
RETRY_TIMEOUT = timedelta(seconds=30)
PART_SIZE_BYTES = 8 * 1024 * 1024
PARTS_AT_ONCE = 2
_READ_SIZE_BYTES = 1024 * 1024
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_UNFINISHED = ".unfinished-"


class UnusableUrlError(ValueError):
    """The URL names no store that can be used here; the text says what to write or install."""


class ObjectStore(Protocol):
    """Objects under names. What fails raises ArchiveUnavailableError."""

    url: str

    def put(self, name: str, parts: Iterable[bytes]) -> bool:
        """Store an object; durable when it returns. False: one of that name is there, and stays.

        What `parts` raises is passed on, and nothing is stored.
        """

    def read(self, name: str) -> Iterator[bytes]:
        """Yield an object's content, in parts."""

    def names(self) -> Iterator[str]:
        """Yield the names of all objects, in any order."""


def open_store(url: str) -> ObjectStore:
    """Return the store that a URL names; nothing is asked of it yet. Raises UnusableUrlError."""
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise UnusableUrlError(f"{url!r} must begin with one of {known}")
    if parts.username or parts.password or parts.query:
        raise UnusableUrlError(
            "must hold neither credentials nor parameters: set them in the environment of the "
            "node (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …)"
        )
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise UnusableUrlError(f"{url!r} must name an absolute path: file:///var/archive")
        return DirectoryStore(Path(unquote(parts.path)), url)
    if not parts.netloc:
        raise UnusableUrlError(f"{url!r} must name a bucket: {parts.scheme}://BUCKET/PREFIX")
    return CloudStore(url)


class DirectoryStore:
    """Objects as files of a directory, synced with their names."""

    def __init__(self, root: Path, url: str) -> None:
        self.url = url
        self._root = root

    def put(self, name: str, parts: Iterable[bytes]) -> bool:
        """As in ObjectStore."""
        path = self._root / name
        fresh = path.with_name(_UNFINISHED + secrets.token_hex(8))
        self._check_root()
        with self._failures(f"writing {path}"):
            if path.exists():
                return False
            self._make(path.parent)
            try:
                with open(fresh, "wb", opener=open_private) as file:
                    file.writelines(parts)
                    file.flush()
                    os.fsync(file.fileno())
                try:
                    os.link(fresh, path)  # fails where the name is taken; a rename would replace
                except FileExistsError:
                    return False
            finally:
                fresh.unlink(missing_ok=True)
            sync_directory(path.parent)
        return True

    def _check_root(self) -> None:
        # Not made: on a disk that is not mounted, an archive would only seem to be one.
        if not self._root.is_dir():
            raise ArchiveUnavailableError(
                f"the archive's directory {self._root} does not exist: create it, or mount the "
                "disk that holds it"
            )

    def _make(self, folder: Path) -> None:
        if folder.is_dir():
            return
        self._make(folder.parent)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        sync_directory(folder.parent)

    def read(self, name: str) -> Iterator[bytes]:
        """As in ObjectStore."""
        path = self._root / name
        with self._failures(f"reading {path}"), path.open("rb") as file:
            while part := file.read(_READ_SIZE_BYTES):
                yield part

    def names(self) -> Iterator[str]:
        """As in ObjectStore."""
        self._check_root()
        with self._failures(f"listing {self._root}"):
            for folder, _, files in os.walk(self._root, onerror=_raise):
                for name in files:
                    if not name.startswith(_UNFINISHED):
                        yield Path(folder, name).relative_to(self._root).as_posix()

    def _failures(self, doing: str) -> contextlib.AbstractContextManager[None]:
        return _unavailable(doing, (OSError,))


class CloudStore:
    """Objects of an S3-compatible store, of Google's or Azure's: settings from the environment."""

    def __init__(self, url: str) -> None:
        try:
            import obstore  # noqa: PLC0415 -- only where it is used: an extra of the package
            from obstore import exceptions, store  # noqa: PLC0415
        except ImportError:
            raise UnusableUrlError(
                f"{url.partition(':')[0]}:// needs the package obstore: install it with "
                "pip install 'onecopy[archive]'"
            ) from None
        self.url = url
        self._obstore = obstore
        self._exists = exceptions.AlreadyExistsError
        self._not_supported = exceptions.NotSupportedError
        self._errors = (exceptions.BaseError, OSError)
        try:
            self._objects: CloudObjects = store.from_url(
                url,
                client_options={
                    "connect_timeout": CONNECT_TIMEOUT,
                    "timeout": REQUEST_TIMEOUT,
                    "allow_http": _may_be_plain(os.environ),
                },
                retry_config={"max_retries": RETRIES, "retry_timeout": RETRY_TIMEOUT},
            )
        except (exceptions.BaseError, ValueError) as error:
            raise UnusableUrlError(f"{url!r} cannot be used: {_first_line(error)}") from error

    def put(self, name: str, parts: Iterable[bytes]) -> bool:
        """As in ObjectStore.

        One part is put on the condition that the name is free, where the store knows conditions.
        Several are not: who writes several under one name writes the same.
        """
        with _unavailable(f"writing {self.url}/{name}", self._errors):
            if not isinstance(parts, list | tuple) or len(parts) != 1:
                self._obstore.put(
                    self._objects,
                    name,
                    iter(parts),
                    use_multipart=True,
                    chunk_size=PART_SIZE_BYTES,
                    max_concurrency=PARTS_AT_ONCE,
                )
                return True
            try:
                self._obstore.put(self._objects, name, parts[0], mode="create", use_multipart=False)
            except self._exists:
                return False
            except self._not_supported:
                self._obstore.put(self._objects, name, parts[0], use_multipart=False)
        return True

    def read(self, name: str) -> Iterator[bytes]:
        """As in ObjectStore."""
        with _unavailable(f"reading {self.url}/{name}", self._errors):
            stream = self._obstore.get(self._objects, name).stream(min_chunk_size=_READ_SIZE_BYTES)
            for part in stream:
                yield bytes(part)

    def names(self) -> Iterator[str]:
        """As in ObjectStore."""
        with _unavailable(f"listing {self.url}", self._errors):
            for page in self._obstore.list(self._objects, chunk_size=1000):
                for item in page:
                    yield item["path"]


def _may_be_plain(environment: Mapping[str, str]) -> bool:
    """Whether the endpoint is used without TLS. Raises UnusableUrlError if it would have to be."""
    endpoint = environment.get("AWS_ENDPOINT_URL", "")
    if urlsplit(endpoint).scheme != "http":
        return False
    allowed = environment.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true")
    if not allowed and (urlsplit(endpoint).hostname or "") not in _LOOPBACK:
        raise UnusableUrlError(
            f"AWS_ENDPOINT_URL is {endpoint}: all data would be sent unencrypted. Use https://, or "
            "set AWS_ALLOW_HTTP=true if nobody can listen"
        )
    return True


@contextlib.contextmanager
def _unavailable(doing: str, errors: tuple[type[BaseException], ...]) -> Iterator[None]:
    try:
        yield
    except errors as error:
        raise ArchiveUnavailableError(f"{doing}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, OSError) and is_out_of_space(error.errno):
        text += ": free space on that disk"
    return text.strip().partition("\n")[0][:500]


def _raise(error: OSError) -> None:
    raise error
