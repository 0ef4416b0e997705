"""Timings and bounds of the data path, all in one place. Units are in the names."""

from __future__ import annotations

import msgspec

MAX_RANGE_SIZE_BYTES = 1024 * 1024
"""A range stops after the item with which it has read so many bytes; the rest is another page."""


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Periods. D4 needs `grace_period_ms` >= `lease_duration_ms` with a margin for clock rates."""

    heartbeat_interval_ms: int = 50
    suspect_after_ms: int = 150
    lease_duration_ms: int = 250
    grace_period_ms: int = 300
    takeover_stagger_ms: int = 50
    ack_timeout_ms: int = 1000
    view_change_timeout_ms: int = 1000
    stall_threshold_ms: int = 100


class ClientTableBounds(msgspec.Struct, frozen=True, kw_only=True):
    """What is forgotten: answers older than `retention_ms`, and the oldest beyond `max_bytes`."""

    retention_ms: int = 600_000
    max_bytes: int = 64 * 1024 * 1024


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes and counts. `max_inflight_bytes`: of records that have not committed.

    `confirm_reads`: linearizable reads rest on no clock (decision 17).
    """

    min_in_sync: int = 1
    confirm_reads: bool = False
    max_record_bytes: int = 4 * 1024 * 1024
    max_record_entries: int = 4096
    max_inflight_records: int = 4
    max_peer_inflight_bytes: int = 8 * 1024 * 1024
    recent_records_bytes: int = 16 * 1024 * 1024
    recent_changes_bytes: int = 8 * 1024 * 1024
    max_append_bytes: int = 4 * 1024 * 1024
    max_inflight_bytes: int = 64 * 1024 * 1024
    max_waiting_operations: int = 20_000
    max_waiting_bytes: int = 256 * 1024 * 1024
    client_table: ClientTableBounds = ClientTableBounds()
    log_retention_bytes: int = 256 * 1024 * 1024
    log_retention_ms: int = 0
    snapshot_log_bytes: int = 4 * 1024 * 1024 * 1024
    snapshot_rate_bytes_per_s: int = 0
