"""A directory as an object store, and URLs that name none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.archive.errors import ArchiveUnavailableError
from cluster.archive.object_store import UnusableUrlError, open_store
from tests.support.small_disk import mount_small_disk, unmount


def test_an_object_is_whole_and_never_replaced(tmp_path: Path) -> None:
    store = open_store(tmp_path.as_uri())
    assert store.put("c/pieces/1", [b"ab", b"c"])
    assert not store.put("c/pieces/1", [b"other"])
    assert b"".join(store.read("c/pieces/1")) == b"abc"
    assert list(store.names()) == ["c/pieces/1"]
    assert (tmp_path / "c/pieces/1").stat().st_mode & 0o777 == 0o600


def test_what_fails_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path.as_uri())

    def parts() -> Iterator[bytes]:
        yield b"a"
        raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        store.put("c/bases/1", parts())
    assert list(store.names()) == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_full_disk_is_named_and_keeps_nothing_half_written(tmp_path: Path) -> None:
    try:
        mount_small_disk(tmp_path, 1 << 20)
    except OSError as error:
        pytest.skip(f"a small disk cannot be mounted: {error}")
    try:
        store = open_store(tmp_path.as_uri())
        text = rf"writing {tmp_path}/c/bases/1: No space left on device: free space on that disk"
        with pytest.raises(ArchiveUnavailableError, match=text):
            store.put("c/bases/1", (bytes(100_000) for _ in range(20)))
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
        assert store.put("c/bases/1", [b"small"])
    finally:
        unmount(tmp_path)


def test_a_directory_that_is_not_mounted_is_not_made(tmp_path: Path) -> None:
    store = open_store((tmp_path / "missing").as_uri())
    with pytest.raises(
        ArchiveUnavailableError, match=r"missing does not exist: create it, or mount"
    ):
        store.put("c/pieces/1", [b"a"])
    with pytest.raises(ArchiveUnavailableError, match="does not exist"):
        list(store.names())
    with pytest.raises(ArchiveUnavailableError, match=r"reading .*: No such file"):
        list(store.read("c/pieces/1"))
    assert not (tmp_path / "missing").exists()


def test_data_is_not_sent_unencrypted_unless_that_is_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://10.0.0.1:9000")
    with pytest.raises(UnusableUrlError, match="would be sent unencrypted"):
        open_store("s3://bucket/prefix")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    open_store("s3://bucket/prefix")


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("/var/archive", "must begin with one of file://"),
        ("ftp://host/a", "must begin with one of file://"),
        ("file://host/a", "must name an absolute path"),
        ("s3:///prefix", "must name a bucket"),
        ("s3://key:secret@bucket", "must hold neither credentials"),
        ("s3://bucket?endpoint=x", "must hold neither credentials"),
    ],
)
def test_a_url_that_names_no_store_is_refused(url: str, problem: str) -> None:
    with pytest.raises(UnusableUrlError, match=problem) as refused:
        open_store(url)
    assert "key:secret" not in str(refused.value)
