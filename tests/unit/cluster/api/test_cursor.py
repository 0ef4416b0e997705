"""Bounds and cursors, for all keys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.api.cursor import KeyRange, decode_cursor, encode_cursor, make_bounds
from cluster.api.params import MAX_CURSOR_LENGTH
from cluster.api.problems import ProblemError

texts = st.text(max_size=4).map(lambda text: text.encode("utf-8"))


@given(prefix=texts, start=texts, end=texts, key=texts)
def test_bounds_hold_exactly_the_keys_that_meet_all_three(
    prefix: bytes, start: bytes, end: bytes, key: bytes
) -> None:
    bounds = make_bounds(prefix, start, end)
    inside = bounds.start <= key and (bounds.end is None or key < bounds.end)
    meets = key.startswith(prefix) and key >= start and (not end or key < end)
    assert inside == meets


@given(next_key=st.binary(max_size=480), start=texts, end=st.none() | texts)
def test_a_cursor_comes_back_as_it_went(next_key: bytes, start: bytes, end: bytes | None) -> None:
    bounds = KeyRange(start, end)
    text = encode_cursor(next_key, bounds)
    assert decode_cursor(text, None) == (next_key, bounds)
    assert decode_cursor(text, bounds) == (next_key, bounds)
    with pytest.raises(ProblemError):
        decode_cursor(text, KeyRange(start + b"x", end))


def test_the_longest_cursor_is_taken_back() -> None:
    key = b"k" * 480
    assert len(encode_cursor(key, KeyRange(key, key))) <= MAX_CURSOR_LENGTH


@given(text=st.text(max_size=60))
def test_no_text_breaks_the_decoder(text: str) -> None:
    with pytest.raises(ProblemError) as caught:
        decode_cursor(text, None)
    assert caught.value.code == "invalid_cursor"
