"""Whose code a sample of the profiler counts for."""

from __future__ import annotations

from bench.cores import shares_of

MAIN = 'thread (0x7F12): "MainThread";<module> (cluster/cli/main.py:3);run (asyncio/base.py:9)'
SAMPLES = [
    f"{MAIN};data_received (/x/cluster/api/fast_path.py:1);put (/x/datapath/node/gateway.py:4) 3",
    f"{MAIN};data_received (/x/cluster/api/fast_path.py:1);loads (json/decoder.py:2) 4",
    f"{MAIN} 3",
    'thread (0x7F13): "disk";write (/x/datapath/storage/log.py:7) 90',
]


def test_a_sample_counts_for_the_innermost_frame_of_a_room_in_the_main_thread() -> None:
    assert shares_of(SAMPLES) == {"HTTP": 0.4, "interpreter and router": 0.3, "event loop": 0.3}
