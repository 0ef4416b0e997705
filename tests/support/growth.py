"""How the cost of a function grows with its input: judged by ratios, not by the clock's figures.

A linear function takes about 8 times as long for 8 times as much, a quadratic one 64 times.
"""

from __future__ import annotations

import time
from collections.abc import Callable

SMALL, LARGE = 1000, 8000
MAX_GROWTH = 3.0 * LARGE / SMALL
NEGLIGIBLE_S = 0.002
"""Below this the large input is no danger, and noise would be judged."""
ROUNDS = 4


def grows_too_fast(call: Callable[[int], object]) -> bool:
    """Whether `call(n)` costs far more than in proportion to n, from SMALL to LARGE."""
    if _cost_s(call, LARGE, 1) < NEGLIGIBLE_S:
        return False
    large_s = _cost_s(call, LARGE, ROUNDS)
    return large_s >= NEGLIGIBLE_S and large_s > MAX_GROWTH * _cost_s(call, SMALL, ROUNDS)


def _cost_s(call: Callable[[int], object], size: int, rounds: int) -> float:
    best_s = float("inf")
    for _ in range(rounds):
        started = time.thread_time()
        call(size)
        best_s = min(best_s, time.thread_time() - started)
    return best_s
