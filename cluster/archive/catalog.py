"""What an archive holds, by the names of its objects, and how a point of it is reached. Pure.

Below the archive's URL, for each cluster id:

    CLUSTER/bases/REVISION-EPOCH-TIME.backup    the whole state, as `onecopy backup` writes
    CLUSTER/pieces/FIRST-LAST-EPOCH.piece    entries FIRST to LAST (`cluster.archive.piece`)

Numbers are decimal, of 20 digits where names are sorted by them; EPOCH is that of the last entry,
TIME is in ms since 1970. Pieces may overlap, where two nodes took themselves for the one that
archives: what they hold of an entry is the same. A name is given once, so nothing that is there is
ever replaced by something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cluster.archive.errors import MissingPieceError

_BASE = re.compile(r"([0-9]{20})-([0-9]+)-([0-9]+)\.backup")
_PIECE = re.compile(r"([0-9]{20})-([0-9]{20})-([0-9]+)\.piece")


class ArchivePosition(NamedTuple):
    """An entry: its place in the log, and its epoch."""

    entry: int
    epoch: int


class Base(NamedTuple):
    """A base state: everything up to (`revision`, `epoch`), written at `time_ms`."""

    revision: int
    epoch: int
    time_ms: int

    @property
    def name(self) -> str:
        """The object's name, below the cluster id."""
        return f"bases/{self.revision:020}-{self.epoch}-{self.time_ms}.backup"


class PieceName(NamedTuple):
    """A piece: entries `first` to `last`, which is of `epoch`."""

    first: int
    last: int
    epoch: int

    @property
    def name(self) -> str:
        """The object's name, below the cluster id."""
        return f"pieces/{self.first:020}-{self.last:020}-{self.epoch}.piece"


class RestorableSpan(NamedTuple):
    """Revisions that can be restored one by one: from `first` to `last`.

    They begin with the state `bases[0]`; `pieces` follow it without a gap.
    """

    first: int
    last: int
    bases: list[Base]
    pieces: list[PieceName]

    @property
    def end(self) -> ArchivePosition:
        """The last entry."""
        return ArchivePosition(self.last, (self.pieces or self.bases)[-1].epoch)


class RestorePlan(NamedTuple):
    """Begin with `base`, then replay `pieces` in order, up to entry `until`."""

    base: Base
    pieces: list[PieceName]
    until: int


class Catalog:
    """The bases and pieces of one cluster. Names that are neither are passed over."""

    def __init__(self, names: Iterable[str]) -> None:
        self.bases: list[Base] = []
        self.pieces: list[PieceName] = []
        for name in names:
            folder, _, rest = name.partition("/")
            if folder == "bases" and (found := _BASE.fullmatch(rest)):
                self.bases.append(Base(*map(int, found.groups())))
            elif folder == "pieces" and (found := _PIECE.fullmatch(rest)):
                self.pieces.append(PieceName(*map(int, found.groups())))
        self.bases.sort()
        self.pieces.sort()

    def chain(self, after: int, until: int | None = None) -> list[PieceName]:
        """Return pieces that follow entry `after` without a gap, up to `until` or the last."""
        chain: list[PieceName] = []
        reached, at = after, 0
        while until is None or reached < until:
            best: PieceName | None = None
            while at < len(self.pieces) and self.pieces[at].first <= reached + 1:
                piece = self.pieces[at]
                if piece.last > (best.last if best is not None else reached):
                    best = piece
                at += 1
            if best is None:
                break
            chain.append(best)
            reached = best.last
        return chain

    def spans(self) -> list[RestorableSpan]:
        """Return what can be restored, oldest first; between two spans there is a gap."""
        found: list[RestorableSpan] = []
        for base in self.bases:
            if found and base.revision <= found[-1].last:
                found[-1].bases.append(base)
                continue
            pieces = self.chain(base.revision)
            last = pieces[-1].last if pieces else base.revision
            found.append(RestorableSpan(base.revision, last, [base], pieces))
        return found

    def plan(self, revision: int | None) -> RestorePlan:
        """Return how to reach a revision; None: the newest one. Raises MissingPieceError."""
        if not self.bases:
            raise MissingPieceError(
                "the archive holds no base state: nothing can be restored", None
            )
        if revision is None:
            return self._plan_newest()
        usable = [base for base in self.bases if base.revision <= revision]
        if not usable:
            raise MissingPieceError(
                f"revision {revision} cannot be restored: the archive begins with revision "
                f"{self.bases[0].revision}",
                None,
            )
        reaches = 0
        for base in reversed(usable):
            pieces = self.chain(base.revision, revision)
            end = pieces[-1].last if pieces else base.revision
            if end >= revision:
                return RestorePlan(base, pieces, revision)
            reaches = max(reaches, end)
        raise self._missing(revision, reaches)

    def _plan_newest(self) -> RestorePlan:
        base = self.bases[-1]
        pieces = self.chain(base.revision)
        return RestorePlan(base, pieces, pieces[-1].last if pieces else base.revision)

    def _missing(self, revision: int, reaches: int) -> MissingPieceError:
        text = (
            f"revision {revision} cannot be restored: the piece with revision {reaches + 1} is "
            f"missing. The archive can go up to revision {reaches}"
        )
        later = next((base.revision for base in self.bases if base.revision > revision), None)
        if later is not None:
            text += f", or from revision {later} on"
        return MissingPieceError(text, reaches)


def cluster_ids(names: Iterable[str]) -> Sequence[str]:
    """Return the clusters that the objects of an archive belong to."""
    return sorted({name.partition("/")[0] for name in names if name.count("/") == 2})
