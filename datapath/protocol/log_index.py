"""Which epochs a log holds where: what the protocol needs to know of a log, in memory. Pure.

Two logs that hold the same (index, epoch) hold the same entries up to there (Raft's log matching
property), because one primary alone writes each epoch and appends only after such a match.
"""

from __future__ import annotations

from bisect import bisect_right

from datapath.errors import SafetyError


class LogIndex:
    """Epoch runs of the retained entries, and of the one before them.

    `base_index` and `base_epoch` name the entry before the first retained one (0, 0: none).
    """

    def __init__(self, base_index: int, base_epoch: int, last_index: int) -> None:
        self.base_index = base_index
        self.base_epoch = base_epoch
        self.last_index = last_index
        self._starts: list[int] = []
        self._epochs: list[int] = []

    @classmethod
    def from_runs(
        cls, base_index: int, base_epoch: int, last_index: int, runs: list[tuple[int, int]]
    ) -> LogIndex:
        """Build one from [(epoch, first index), …] as `datapath.storage.log.Log.epochs` gives
        them.
        """
        index = cls(base_index, base_epoch, last_index)
        for epoch, first in runs:
            index._starts.append(first)
            index._epochs.append(epoch)
        return index

    @property
    def last_epoch(self) -> int:
        """The epoch of the last entry."""
        return self._epochs[-1] if self._epochs else self.base_epoch

    @property
    def last_position(self) -> tuple[int, int]:
        """(epoch, index) of the last entry: of two logs, the one with the higher goes further."""
        return (self.last_epoch, self.last_index)

    def epoch_at(self, index: int) -> int | None:
        """Return the epoch of the entry at `index`; None if it is not held."""
        if index == self.base_index:
            return self.base_epoch
        if not self.base_index < index <= self.last_index:
            return None
        return self._epochs[bisect_right(self._starts, index) - 1]

    def runs_from(self, index: int) -> list[tuple[int, int]]:
        """Return [(epoch, first index), …] that cover the entries from `index` on, in order."""
        runs = []
        for number, (epoch, first) in enumerate(zip(self._epochs, self._starts, strict=True)):
            end = (
                self._starts[number + 1] - 1 if number + 1 < len(self._starts) else self.last_index
            )
            if end >= index:
                runs.append((epoch, max(first, index)))
        return runs

    def append(self, first_index: int, last_index: int, epoch: int) -> None:
        """Note entries of one epoch after the last one."""
        if first_index != self.last_index + 1 or epoch < self.last_epoch:
            raise SafetyError(
                f"entries {first_index}-{last_index} of epoch {epoch} cannot follow entry "
                f"{self.last_index} of epoch {self.last_epoch}"
            )
        if not self._epochs or self._epochs[-1] != epoch:
            self._starts.append(first_index)
            self._epochs.append(epoch)
        self.last_index = last_index

    def truncate(self, from_index: int) -> None:
        """Forget the entries from `from_index` on."""
        if from_index <= self.base_index:
            raise SafetyError(f"cannot truncate at {from_index}, before entry {self.base_index}")
        while self._starts and self._starts[-1] >= from_index:
            self._starts.pop()
            self._epochs.pop()
        self.last_index = min(self.last_index, from_index - 1)

    def trim(self, first_index: int) -> None:
        """Forget the entries before `first_index`, which stays retained (or is the next one)."""
        epoch = self.epoch_at(first_index - 1)
        if epoch is None:
            return
        self.base_index, self.base_epoch = first_index - 1, epoch
        while len(self._starts) > 1 and self._starts[1] <= first_index:
            self._starts.pop(0)
            self._epochs.pop(0)
        if self.last_index == self.base_index:
            self._starts.clear()
            self._epochs.clear()
        elif self._starts[0] < first_index:
            self._starts[0] = first_index

    def match(self, last_index: int, runs: list[tuple[int, int]], known_index: int) -> int:
        """Return the highest index at which a peer's log is known to equal this one.

        `runs` covers the peer's entries from `known_index` + 1 to `last_index`. `known_index` is
        returned if nothing after it matches: the peer has it committed, so it equals ours.
        """
        for number in range(len(runs) - 1, -1, -1):
            epoch, first = runs[number]
            end = runs[number + 1][1] - 1 if number + 1 < len(runs) else last_index
            top = min(end, self.last_index)
            # Within one epoch's run the logs agree up to the shorter one's end (log matching).
            while top >= first:
                mine = self.epoch_at(top)
                if mine == epoch:
                    return top
                if mine is None or mine < epoch or top == self.base_index:
                    break
                top = self._run_start(top) - 1  # mine is of a later epoch: look before its run
        return known_index

    def _run_start(self, index: int) -> int:
        return self._starts[bisect_right(self._starts, index) - 1]
