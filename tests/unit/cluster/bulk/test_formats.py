"""Records in files, and the checkpoint beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.bulk.checkpoint import (
    Checkpoint,
    CheckpointError,
    check_unchanged,
    checkpoint_path,
    file_digest,
    read_checkpoint,
    remove_checkpoint,
    write_checkpoint,
)
from cluster.bulk.formats import (
    DumpRecord,
    RecordError,
    detect_format,
    format_line,
    parse_ndjson,
    parse_tsv,
)

keys = st.text(st.characters(codec="utf-8"), min_size=1, max_size=100)


@given(keys, st.binary(max_size=100), st.integers(0, 2**60))
def test_what_is_dumped_is_read_back_on_one_line(key: str, value: bytes, revision: int) -> None:
    line = format_line(key, value, revision)
    assert line.count(b"\n") == 1
    assert parse_ndjson(line) == DumpRecord(key, value)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{", "truncated"),
        (b"[]", "object"),
        (b'{"key": "k"}', 'give "value"'),
        (b'{"value": "v"}', "key"),
        (b'{"key": "k", "value": 5}', "value"),
        (b'{"key": "k", "value": "v", "value_base64": "dg=="}', 'give "value"'),
        (b'{"key": "k", "value_base64": "?"}', "value_base64"),
        (b'{"key": "k", "value": "v", "ttl": 5}', "ttl"),
        (b'{"key": "", "value": "v"}', "1 to 480"),
        (json.dumps({"key": "\u00fc" * 241, "value": ""}).encode(), "1 to 480"),
        (b'{"key": "\xff", "value": ""}', "UTF-8|utf-8"),
    ],
)
def test_what_is_no_record(line: bytes, says: str) -> None:
    with pytest.raises(RecordError, match=says):
        parse_ndjson(line)


def test_tsv() -> None:
    assert parse_tsv(b"k\tv\tw ") == DumpRecord("k", b"v\tw ")
    assert parse_tsv(b"k\t") == DumpRecord("k", b"")
    for wrong in (b"k", b"\tv", b"\xff\tv", b"x" * 481 + b"\t"):
        with pytest.raises(RecordError):
            parse_tsv(wrong)


def test_formats_are_told_by_name_then_by_content() -> None:
    assert detect_format("x.tsv", b"{") == "tsv"
    assert detect_format("x.jsonl", b"a\tb") == "ndjson"
    assert detect_format("x", b' {"key"') == "ndjson"
    assert detect_format("x", b"a\tb") == "tsv"


def state_of(file: Path) -> Checkpoint:
    return Checkpoint(
        load_id="id",
        cluster="c",
        size_bytes=file.stat().st_size,
        fingerprint=file_digest(file),
        format="tsv",
        position=2,
        line=1,
    )


def test_a_checkpoint_is_read_back_and_removed(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("a\tb\n")
    assert read_checkpoint(file) is None
    write_checkpoint(file, state_of(file))
    found = read_checkpoint(file)
    assert found == state_of(file)
    check_unchanged(file, found, 4, file_digest(file))
    assert [path.name for path in tmp_path.iterdir() if path != file] == ["f.onecopy-load"]
    remove_checkpoint(file)
    remove_checkpoint(file)
    assert read_checkpoint(file) is None


def test_a_change_anywhere_in_the_file_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"x" * 3_000_000)
    state = state_of(file)
    content = bytearray(file.read_bytes())
    content[1_500_000] = ord("y")
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="--restart"):
        check_unchanged(file, state, file.stat().st_size, file_digest(file))


def test_a_damaged_checkpoint_is_told(tmp_path: Path) -> None:
    file = tmp_path / "f"
    checkpoint_path(file).write_bytes(b'{"load_id": "x"}')
    with pytest.raises(CheckpointError, match="--restart"):
        read_checkpoint(file)
