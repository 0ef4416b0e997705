"""The histories of simulated clients, checked by Porcupine in batches."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.sim.faults import Schedule
from tests.support.history import History, check_many

DIRECTORY = Path(tempfile.gettempdir()) / "onecopy-sim-histories"
BATCH = 100
TIMEOUT_S = 60.0


class Histories:
    """Takes schedules that have run; `failed` holds what the checker said, by seed.

    `every`: only of every n-th schedule (0: of none). What fails leaves its history and a picture
    in `directory`.
    """

    def __init__(self, every: int = 1, directory: Path = DIRECTORY, batch: int = BATCH) -> None:
        self._every = every
        self._directory = directory
        self._batch = batch
        self._waiting: list[tuple[int, History]] = []
        self.checked = 0
        self.operations = 0
        self.unknown = 0
        self.seconds = 0.0
        self.failed: dict[int, str] = {}

    def __len__(self) -> int:
        """How many wait or have been checked."""
        return self.checked + len(self._waiting)

    def add(self, schedule: Schedule) -> None:
        """Take one; check when a batch is full."""
        if schedule.clients is None or not self._every or schedule.seed % self._every:
            return
        self._waiting.append((schedule.seed, schedule.clients.history))
        if len(self._waiting) >= self._batch:
            self.check()

    def check(self) -> dict[int, str]:
        """Check what waits; return all that has failed."""
        waiting, self._waiting = self._waiting, []
        histories = [history for _, history in waiting]
        verdicts = check_many(histories, self._directory, TIMEOUT_S)
        for (seed, _), verdict in zip(waiting, verdicts, strict=True):
            self.checked += 1
            self.operations += verdict.operations
            self.unknown += verdict.unknown
            self.seconds += verdict.seconds
            if not verdict.ok:
                self.failed[seed] = f"{verdict}\n  replay: python -m tests.sim --seed {seed}"
        return self.failed

    def __str__(self) -> str:
        return (
            f"{self.checked} histories of {self.operations} operations, {self.unknown} of them "
            f"unknown: {len(self.failed)} not linearizable; checked in {self.seconds:.1f} s"
        )
