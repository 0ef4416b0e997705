"""What the data directories hold that are left of a cluster, and what a new one is made of."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from datapath.errors import StorageError
from datapath.node import survivors
from datapath.node.survivors import Choice, KnownView, NodeMemory, Survivor
from datapath.protocol.log_index import LogIndex
from datapath.storage.inspection import InspectedDirectory
from election.agreement import AgreementFailedError
from election.pysyncobj_adapter.offline import StoredViews, read_views


class RecoveryError(Exception):
    """The directories cannot be recovered as they are. The text says why, and what to do."""


class Examined(NamedTuple):
    """One directory: what it holds, and what it knew of the view (or why that cannot be read)."""

    directory: InspectedDirectory
    survivor: Survivor | None  # None: a witness
    views: StoredViews
    views_problem: str


class Examination(NamedTuple):
    """All directories, and what is chosen of them."""

    examined: tuple[Examined, ...]
    choice: Choice
    memories: tuple[NodeMemory, ...]

    @property
    def best(self) -> InspectedDirectory:
        """The directory that the new cluster is made of."""
        return next(item.directory for item in self.examined if item.survivor is self.choice.best)


@contextlib.contextmanager
def examine(paths: Sequence[Path]) -> Iterator[Examination]:
    """Lock and read these directories, and choose; they stay locked within the block.

    Raises RecoveryError.
    """
    with contextlib.ExitStack() as stack:
        examined, problems = [], []
        for path in dict.fromkeys(path.resolve() for path in paths):
            try:
                directory = stack.enter_context(InspectedDirectory(path))
            except StorageError as error:
                problems.append(str(error))
            else:
                examined.append(_examine(directory))
        if problems:
            raise RecoveryError(
                "; ".join(problems) + ". Leave such a directory out of the command to go on "
                "without what it holds"
            )
        _check_one_cluster(examined)
        held = [item.survivor for item in examined if item.survivor is not None]
        if not held:
            raise RecoveryError(
                "none of these directories holds data: witnesses only vote. Name the data "
                "directory of a replica; without one there is only a backup to restore"
            )
        memories = tuple(_memory(item) for item in examined)
        try:
            choice = survivors.choose(held, memories, partial(_first_difference, examined))
        except survivors.DisagreementError as error:
            raise RecoveryError(
                f"{error} (one of them is an older copy, was changed, or went on as a copy). Find "
                "out which is right, and leave the other out of the command"
            ) from None
        yield Examination(tuple(examined), choice, memories)


def _examine(directory: InspectedDirectory) -> Examined:
    views, problem = StoredViews(), ""
    try:
        views = read_views(directory.path / "raft")
    except (AgreementFailedError, OSError) as error:
        problem = str(error)
    return Examined(directory, _survivor(directory), views, problem)


def _survivor(directory: InspectedDirectory) -> Survivor | None:
    log, marks = directory.log, directory.marks
    if log is None:
        return None
    return Survivor(
        name=directory.identity.node,
        node=directory.identity.node,
        data_id=directory.identity.data,
        log=LogIndex.from_runs(log.first_index - 1, log.base_epoch, log.last_index, log.epochs()),
        commit_index=max(directory.store_index, min(log.commit_hint, log.last_index)),
        incomplete=marks is not None and marks.incomplete,
        tail_cut=marks is None or marks.tail_cut,
        is_cut=log.torn is not None or bool(log.damage),
    )


def _first_difference(
    examined: Sequence[Examined], one: Survivor, other: Survivor, entries: range
) -> int | None:
    """Return the first of these entries that the logs of two survivors hold differently."""
    logs = [
        item.directory.log for item in examined if item.survivor is one or item.survivor is other
    ]
    begun = [log.records_after(entries.start - 1) for log in logs if log is not None]
    for record, against in zip(*begun, strict=False):
        if record.first_index >= entries.stop:
            break
        if record != against:
            first: int = record.first_index
            return max(first, entries.start)
    return None


def _memory(item: Examined) -> NodeMemory:
    return NodeMemory(
        name=item.directory.identity.node,
        node=item.directory.identity.node,
        views=tuple(KnownView(state.view, state.voters) for state in item.views.states),
        remembered=item.views.remembered,
    )


def _check_one_cluster(examined: Sequence[Examined]) -> None:
    """Raise RecoveryError unless all are of one cluster, and each is there once."""
    seen: dict[str, Path] = {}
    for item in examined:
        path, identity = item.directory.path, item.directory.identity
        if not identity.cluster:
            raise RecoveryError(
                f"{path} has never been part of a cluster: leave it out of the command"
            )
        first = examined[0].directory
        if identity.cluster != first.identity.cluster:
            raise RecoveryError(
                f"{first.path} belongs to cluster {first.identity.cluster}, but {path} to "
                f"{identity.cluster}: name the directories of one cluster"
            )
        if identity.data in seen:
            raise RecoveryError(
                f"{path} and {seen[identity.data]} are copies of the same data directory: name "
                "the newer one only"
            )
        seen[identity.data] = path
