"""What `onecopy recover` says: what each directory holds, what is chosen, what may be missing."""

from __future__ import annotations

import time
from collections.abc import Iterator

from cluster.recovery.examination import Examination, Examined
from datapath.node.survivors import has_majority, last_views
from datapath.storage.founding import continue_after
from datapath.storage.inspection import InspectedDirectory


def last_written_s(directory: InspectedDirectory) -> float | None:
    """Return when its log was last written, by the machine's date (s since 1970); None: unknown."""
    bounds = directory.log.segment_bounds() if directory.log is not None else []
    return max((item.written_s for item in bounds), default=None)


def report(found: Examination) -> Iterator[str]:
    """Yield the lines for an operator."""
    for item in found.examined:
        yield from _directory(item)
    best, choice = found.best, found.choice
    assert best.log is not None
    yield ""
    yield f"Chosen: {best.path}, whose log goes furthest"
    but = ", but for what is named below" if choice.left_out else ""
    yield (
        "  It holds every acknowledged write that any of these directories holds, up to revision "
        f"{best.log.last_index}{but}."
    )
    if choice.best.commit_index < best.log.last_index:
        yield (
            f"  Revisions {choice.best.commit_index + 1} to {best.log.last_index} are not known to "
            "be committed. They are kept: they may have been acknowledged."
        )
    yield from _missing(found)
    yield from _majority(found)


def _missing(found: Examination) -> Iterator[str]:
    choice = found.choice
    if choice.is_complete:
        yield "Nothing that was acknowledged is missing."
    if choice.losses:
        yield "Missing:"
        yield from (f"  - {text}" for text in choice.losses)
    if choice.doubts or choice.left_out:
        written_s = last_written_s(found.best)
        since = "" if written_s is None else f" (its log was last written at {_time(written_s)})"
        yield f"May be missing{since}:"
        yield from (f"  - {text}" for text in (*choice.doubts, *choice.left_out))


def _majority(found: Examination) -> Iterator[str]:
    here = {memory.node for memory in found.memories if memory.views}
    states = last_views(found.memories)
    if states and all(has_majority(here, state.voters) for state in states):
        yield (
            f"These are a majority of the voters ({', '.join(sorted(states[0].voters))}): start "
            "their nodes instead, unless they cannot serve. They may need no recovery."
        )


def age_s(directory: InspectedDirectory) -> float:
    """Return how long ago a directory was written to, by this machine's date; 0: unknown."""
    written_s = last_written_s(directory)
    return 0.0 if written_s is None else max(0.0, time.time() - written_s)


def plan(found: Examination, age: float) -> str:
    """Return the line that tells the margin (rule B2)."""
    log = found.best.log
    assert log is not None
    index, epoch = continue_after(log.last_index, log.last_epoch, age)
    return (
        f"The new cluster goes on at revision {index} and epoch {epoch}, above all that the old "
        "one may have given out. Watches that resume from before get 410."
    )


def _directory(item: Examined) -> Iterator[str]:
    directory, identity = item.directory, item.directory.identity
    role = "witness" if directory.is_witness else "replica"
    group = f", group {identity.group}" * bool(identity.group)
    yield f"{directory.path}: {role} {identity.node} of cluster {identity.cluster}{group}"
    log = directory.log
    if log is None:
        yield "  no data: a witness only votes"
    else:
        written_s = last_written_s(directory)
        written = "" if written_s is None else f", last written at {_time(written_s)}"
        known = item.survivor.commit_index if item.survivor is not None else 0
        yield (
            f"  entries up to {log.last_index} of epoch {log.last_epoch}{written}; known to be "
            f"committed up to {known}"
        )
        yield (
            f"  store: {directory.items:,} items at entry {directory.store_index}, all checksums "
            f"right, digest {directory.digest}"
        )
    yield from (f"  {text}" for text in _marks(item))


def _marks(item: Examined) -> Iterator[str]:
    directory = item.directory
    if directory.identity.removed:
        yield "removed from the cluster: it may be far behind"
    yield from (f"damaged: {text}" for text in directory.damage)
    if directory.log is not None and directory.log.torn is not None:
        torn = directory.log.torn
        yield f"torn end: {torn.size_bytes} bytes at offset {torn.offset} of {torn.path}"
    if directory.marks is not None and directory.marks.tail_cut:
        yield "marked: the end of its log was torn, and cut off"
    if directory.marks is not None and directory.marks.incomplete:
        yield "marked: incomplete"
    if item.views_problem:
        yield f"what it knew of the view cannot be read: {item.views_problem}"
    elif item.views.states:
        view = item.views.states[0].view
        yield (
            f"view: version {view.version}, epoch {view.epoch}, primary {view.primary}, in sync "
            f"{', '.join(view.in_sync)}"
        )


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds))
