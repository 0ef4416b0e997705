"""The benchmarks by name, in the order of the tour, with what the tour asks of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from bench import headline
from bench.context import Context, Options


class Benchmark(msgspec.Struct, frozen=True):
    """`default` are the options when it is run by name, `tour` within the 15 minutes."""

    name: str
    summary: str
    run: Callable[[Context], dict[str, Any]]
    default: Options
    tour: Options


ALL = (
    Benchmark(
        "headline",
        "100 B writes and reads beside etcd, Redis, PySyncObj and a bare server; the aims",
        headline.run,
        Options(seconds=3, rounds=5),
        Options(seconds=2, rounds=3),
    ),
)
BY_NAME = {benchmark.name: benchmark for benchmark in ALL}
