"""How much of the log is held for an archive, and what of it may be archived."""

from __future__ import annotations

from datapath.node.committed_log import committed
from datapath.node.retention import LogRetention
from datapath.records import make_record

SEGMENTS = [(10, 100, 0.0), (20, 100, 0.0), (30, 100, 0.0), (40, 100, 0.0)]
APPLIED = 40


def keeps_from(archived_index: int, archive_log_bytes: int, *, disk_full: bool = False) -> int:
    retention = LogRetention(0, 0, 0, archive_log_bytes)
    retention.archived_index = archived_index
    return retention.keep_from(SEGMENTS, APPLIED, oldest_needed=APPLIED + 1, disk_full=disk_full)


def test_what_is_not_archived_is_held_up_to_the_bound() -> None:
    assert keeps_from(archived_index=0, archive_log_bytes=1000) == 0
    assert keeps_from(archived_index=9, archive_log_bytes=1000) == 0
    assert keeps_from(archived_index=10, archive_log_bytes=1000) == 11
    assert keeps_from(archived_index=25, archive_log_bytes=1000) == 21
    assert keeps_from(archived_index=40, archive_log_bytes=1000) == 31


def test_above_the_bound_the_oldest_goes_unarchived() -> None:
    assert keeps_from(archived_index=0, archive_log_bytes=300) == 11
    assert keeps_from(archived_index=0, archive_log_bytes=200) == 21
    assert keeps_from(archived_index=0, archive_log_bytes=0) == 31
    assert keeps_from(archived_index=0, archive_log_bytes=1000, disk_full=True) == 31


def test_only_what_has_committed_is_archived() -> None:
    records = [make_record(1, 1, 0, [[], []]), make_record(3, 1, 0, [[]])]
    assert committed(records, 1) == []
    assert committed(records, 2) == records[:1]
    assert committed(records, 9) == records
