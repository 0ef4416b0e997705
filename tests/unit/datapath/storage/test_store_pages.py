"""Pages of a store: everything once and in order, and bounded work for each."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datapath.storage import store as store_module
from datapath.storage.store import MAX_PAGE_STEPS, Store

VALUE = bytes(1000)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def write(store: Store, changes: dict[bytes, bytes | None]) -> None:
    entries = [[(0, key, value)] for key, value in changes.items()]
    store.apply(entries, store.applied_index + len(entries), 1)


def keys_of_pages(store: Store, limit: int, max_size_bytes: int) -> list[list[bytes]]:
    pages, following = [], b""
    while True:
        items, then = store.page(0, following, None, limit, max_size_bytes)
        pages.append([key for key, _ in items])
        if then is None:
            return pages
        assert then > following
        following = then


KEYS = st.dictionaries(st.binary(min_size=1, max_size=2), st.sampled_from([b"v", None]))


@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    layers=st.lists(KEYS, min_size=1, max_size=3), limit=st.integers(1, 5), steps=st.integers(1, 5)
)
def test_pages_give_everything_once_whatever_was_deleted(
    store: Store, layers: list[dict[bytes, bytes | None]], limit: int, steps: int
) -> None:
    write(store, {key: None for key, _ in store.range(0, b"", None, 10_000)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "MAX_PAGE_STEPS", steps)
        expected: dict[bytes, bytes | None] = {}
        for number, layer in enumerate(layers):
            write(store, layer)
            expected |= layer
            if number == 0:
                store.flush()
            elif number == 1:
                store.freeze()
        pages = keys_of_pages(store, limit, 1000)
    found = [key for page in pages for key in page]
    assert found == sorted(key for key, value in expected.items() if value is not None)
    assert all(len(page) <= limit for page in pages)


def test_a_page_ends_with_the_item_that_reaches_its_size(store: Store) -> None:
    write(store, {b"%02d" % number: VALUE for number in range(10)})
    store.flush()
    assert [len(page) for page in keys_of_pages(store, 100, 3000)] == [3, 3, 3, 1]


def test_keys_that_were_just_deleted_are_passed_over_in_several_pages(store: Store) -> None:
    keys = [b"%05d" % number for number in range(3 * MAX_PAGE_STEPS)]
    write(store, dict.fromkeys([*keys, b"z"], b""))
    store.flush()
    write(store, dict.fromkeys(keys))
    pages = keys_of_pages(store, 10, 1 << 20)
    assert len(pages) >= 3
    assert [key for page in pages for key in page] == [b"z"]


def test_large_values_that_were_just_deleted_are_not_all_read_for_one_page(store: Store) -> None:
    keys = [b"%02d" % number for number in range(50)]
    write(store, dict.fromkeys(keys, bytes(100_000)))
    store.flush()
    write(store, dict.fromkeys(keys))
    pages = keys_of_pages(store, 10, 1_000_000)
    assert len(pages) >= 5
    assert not [key for page in pages for key in page]
