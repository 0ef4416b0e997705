"""Which of the data that is left begins a new cluster, and what may be missing from it. Pure.

A majority of the nodes is lost for good; of each that is left there is the data directory.

Rule R1: the new cluster is made of the log that goes furthest by (epoch, index), all of it.
Whatever was acknowledged up to its last epoch and is held by any of the directories is then in it:
the primary of an epoch begins with all that was acknowledged before, and within an epoch logs only
grow. What a later epoch acknowledged is on all that were in sync then, and these are all lost: it
may be left out even where a directory has it, as an entry of an earlier epoch that others replaced.
Such entries are told. If one of the directories holds something committed that the furthest one
lacks, or another entry where the furthest one has one of the same epoch, they are not of one
history, and none is chosen.

Rule R2: that nothing acknowledged is missing is only said if it is proved: the chosen replica is in
sync in the last view, and in every later one that may have been agreed; and the directories are
those of a majority of the voters, so that no later view was agreed without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from datapath.protocol.log_index import LogIndex
from election.view import View

Position = tuple[int, int]  # (epoch, index): of two, the higher goes further


class Survivor(msgspec.Struct, frozen=True, kw_only=True):
    """A replica's data. `name` is for people; `log` ends with the last entry that can be read.

    `incomplete` and `tail_cut` are the marks; `is_cut` says that the end of the log is torn, or
    damaged, as it lies now.
    """

    name: str
    node: str
    data_id: str
    log: LogIndex
    commit_index: int
    incomplete: bool = False
    tail_cut: bool = False
    is_cut: bool = False

    @property
    def position(self) -> Position:
        """(epoch, index) of its last entry."""
        return self.log.last_position


class KnownView(msgspec.Struct, frozen=True):
    """A view that was agreed, or may have been, and the voters then."""

    view: View
    voters: frozenset[str]


class NodeMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What a node, witnesses included, knew of the cluster.

    The first of `views` was agreed; each later one may have been. `remembered` maps data ids to the
    positions that their owners had committed.
    """

    name: str
    node: str
    views: tuple[KnownView, ...] = ()
    remembered: dict[str, Position] = {}


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What is chosen, and what is known of what it lacks.

    `is_complete`: nothing that was acknowledged is missing (R2). Else `doubts` says, in sentences,
    why it cannot be said; `losses`, what is known to be missing; `left_out`, which entries of other
    directories were replaced in the chosen log (R1).
    """

    best: Survivor
    losses: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether nothing that was acknowledged is missing."""
        return not self.losses and not self.doubts


class DisagreementError(Exception):
    """The data is not of one history: the text names who contradicts whom."""


def goes_further(one: Survivor, other: Survivor) -> bool:
    """R1: whether the log of `one` is to be taken rather than that of `other`.

    Those of equal position are the same; then the marks decide, which only say what to tell.
    """
    return one.position > other.position or (
        one.position == other.position and _marks(one) < _marks(other)
    )


def _marks(survivor: Survivor) -> tuple[bool, bool]:
    return survivor.incomplete, survivor.tail_cut or survivor.is_cut


def holds_committed_of(best: Survivor, other: Survivor) -> bool:
    """R1: whether `best` has all that `other` knows to be committed."""
    if other.commit_index <= best.log.base_index:
        return True  # its store holds only what is committed
    epoch = other.log.epoch_at(other.commit_index)
    return best.log.epoch_at(other.commit_index) == epoch


def must_be_alike(best: Survivor, other: Survivor) -> range:
    """R1: the entries that two logs of one history hold alike: to the last one of equal epoch.

    An epoch has one primary, and what it writes follows what it has (log matching).
    """
    same = _last_equal(best, other.log)
    return range(max(best.log.base_index, other.log.base_index) + 1, same + 1)


def _last_equal(best: Survivor, log: LogIndex) -> int:
    return best.log.match(log.last_index, log.runs_from(log.base_index + 1), log.base_index)


def choose(
    survivors: Sequence[Survivor],
    memories: Iterable[NodeMemory] = (),
    first_difference: Callable[[Survivor, Survivor, range], int | None] = lambda *_: None,
) -> Choice:
    """Choose what the new cluster is made of. There is at least one survivor.

    `first_difference` returns which of these entries two logs hold differently; None: none of them.
    Raises DisagreementError: they are not of one history.
    """
    best = survivors[0]
    for survivor in survivors[1:]:
        if goes_further(survivor, best):
            best = survivor
    for survivor in survivors:
        if not holds_committed_of(best, survivor):
            raise DisagreementError(
                f"{survivor.name} has committed entry {survivor.commit_index} of epoch "
                f"{survivor.log.epoch_at(survivor.commit_index)}, which {best.name} lacks, "
                f"although its log goes further (to entry {best.log.last_index} of epoch "
                f"{best.log.last_epoch}): they are not of one history"
            )
    for survivor in survivors:
        alike = must_be_alike(best, survivor)
        if survivor is best or not alike:
            continue
        if (index := first_difference(best, survivor, alike)) is not None:
            raise DisagreementError(
                f"{survivor.name} and {best.name} hold different entries {index}, both of epoch "
                f"{best.log.epoch_at(index)}, which had one primary: they are not of one history"
            )
    known = list(memories)
    losses, doubts = tuple(_losses(best, known)), tuple(_doubts(best, known))
    choice = Choice(best=best, losses=losses, doubts=doubts)
    if choice.is_complete:
        return choice  # it is proved that nothing of what follows was acknowledged
    left_out = tuple(text for other in survivors if (text := _left_out(best, other)))
    return msgspec.structs.replace(choice, left_out=left_out)


def _left_out(best: Survivor, other: Survivor) -> str:
    """Return what another log has instead of what the chosen one has there; "": nothing."""
    log = other.log
    same = _last_equal(best, log)
    if not has_replaced(best, log, same):
        return ""
    return (
        f"{other.name} holds entries {same + 1} to {log.last_index} that are not in the log of "
        f"{best.name}, which has others there, of a later epoch: they are missing if a later "
        "primary, now lost, acknowledged them"
    )


def has_replaced(best: Survivor, log: LogIndex, same: int) -> bool:
    """R1: whether `best` has other entries in place of those of a log that follow entry `same`."""
    return same < log.last_index and best.log.epoch_at(same + 1) is not None


def _losses(best: Survivor, memories: list[NodeMemory]) -> list[str]:
    """Return what is known to be missing."""
    losses = []
    if best.incomplete:
        losses.append(
            f"{best.name} is marked as incomplete: it is known to lack entries that it had "
            "acknowledged"
        )
    furthest = max(
        ((position, memory) for memory in memories for position in memory.remembered.values()),
        key=lambda item: item[0],
        default=None,
    )
    if furthest is not None and is_beyond(furthest[0], best):
        (epoch, index), memory = furthest
        losses.append(
            f"{memory.name} remembers that entry {index} of epoch {epoch} was committed: what was "
            f"acknowledged after entry {best.log.last_index} is missing, at least up to there"
        )
    return losses


def is_beyond(committed: Position, best: Survivor) -> bool:
    """R2: whether more was committed than `best` holds."""
    return committed > best.position


def _doubts(best: Survivor, memories: list[NodeMemory]) -> list[str]:
    """R2: return why it cannot be said that nothing is missing; nothing: it can."""
    doubts = []
    if not has_whole_end(best):
        doubts.append(
            f"the end of the log of {best.name} is torn or damaged: what stood there may have been "
            "acknowledged"
        )
    last = last_views(memories)
    if not last:
        doubts.append("no directory says which replicas were in sync")
        return doubts
    newest = last[0].view
    if not all(is_in_sync(best, state.view) for state in last):
        doubts.append(
            f"{best.name} was not in sync, or may not have been, in the last view that is known "
            f"(version {newest.version}, epoch {newest.epoch}, primary {newest.primary}, in sync "
            f"{', '.join(newest.in_sync)}): what these acknowledged since is missing"
        )
    here = {memory.node for memory in memories if memory.views}
    lost = sorted(frozenset().union(*(state.voters for state in last)) - here)
    if not all(has_majority(here, state.voters) for state in last):
        doubts.append(
            f"the lost nodes ({', '.join(lost)}) may have agreed on a later view than version "
            f"{newest.version} and acknowledged writes without {best.name}: if they did, those "
            "writes are missing"
        )
    return doubts


def has_whole_end(best: Survivor) -> bool:
    """R2: whether the log ends where it was written to last, as far as anybody can tell."""
    return not (best.tail_cut or best.is_cut)


def is_in_sync(best: Survivor, view: View) -> bool:
    """R2: whether that very data directory is that of a replica in sync."""
    member = view.member(best.node)
    return best.node in view.in_sync and member is not None and member.data_id in ("", best.data_id)


def has_majority(here: set[str], voters: frozenset[str]) -> bool:
    """R2: whether nothing can have been agreed without one of the nodes that are `here`."""
    return 2 * len(voters & here) > len(voters)


def last_views(memories: Iterable[NodeMemory]) -> list[KnownView]:
    """Return the last view that is known to be agreed, and all that may have followed it."""
    known = list(memories)
    agreed = [memory.views[0] for memory in known if memory.views]
    if not agreed:
        return []
    newest = max(agreed, key=lambda state: state.view.version)
    later = [state for memory in known for state in memory.views[1:] if may_follow(state, newest)]
    return [newest, *later]


def may_follow(state: KnownView, agreed: KnownView) -> bool:
    """R2: whether it may have been agreed after that one, as a step of its voters too."""
    return state.view.version >= agreed.view.version
