"""Which releases of the program may form one cluster, and what all of them speak. Pure.

The view holds the *level* of its cluster: the formats and features that every member uses. A
release supports the levels from `oldest` to `level`. A node tells its release on each consensus
link and when it asks to take part; one that tells none is of level 1. An upgrade replaces the
nodes one by one while the level stays; then the operator raises it (docs/decisions/0036).

U1  A node whose release does not support the cluster's level takes no part.
U2  The level rises only if every member is known to support the new one, and never falls.
U3  What a level brought is not used below it, nor asked of a node of an older release.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from election.view import View

LEVEL = 2
"""The newest level that this release supports. Level 2: a cluster has a level."""
OLDEST_LEVEL = 1
"""The oldest: that of the release before."""
FIRST_LEVEL = 1
MAX_VERSION_LENGTH = 64
"""Of a version that another node tells, in characters."""


class Release(msgspec.Struct, frozen=True, array_like=True):
    """What a node tells of its program. The default is what a node is that tells nothing."""

    version: str = ""
    level: int = FIRST_LEVEL
    oldest: int = FIRST_LEVEL

    @property
    def is_usable(self) -> bool:
        """Whether the text has a length that may stand in a log."""
        return len(self.version) <= MAX_VERSION_LENGTH

    def __str__(self) -> str:
        """Return its name for people."""
        known = f"onecopy {ascii(self.version)[1:-1]}" if self.version else "an older onecopy"
        levels = f"{self.oldest} to {self.level}" if self.oldest < self.level else f"{self.level}"
        return f"{known} (level {levels})"


def own_release(version: str) -> Release:
    """Return the release of this program, which is called `version`."""
    return Release(version[:MAX_VERSION_LENGTH], LEVEL, OLDEST_LEVEL)


def supports(release: Release, level: int) -> bool:
    """U1: whether a release can take part in a cluster at `level`."""
    return release.oldest <= level <= release.level


def unsupported(node: str, release: Release, level: int) -> str:
    """Return why a node may not take part in a cluster at `level`, and what to do; "": it may."""
    if supports(release, level):
        return ""
    if release.level < level:
        advice = "install the release that the other nodes run"
    else:
        advice = (
            f"install a release that supports level {level} first, upgrade every node to it, and "
            "run `onecopy finish-upgrade`"
        )
    return f"{node} runs {release}, but the cluster is at level {level}: {advice}"


def first_level(founders: Sequence[Release]) -> int:
    """Return the level at which a cluster of these nodes begins: the newest that all support."""
    return min(release.level for release in founders)


def may_raise(view: View, level: int, releases: Mapping[str, Release]) -> str:
    """U2: return why the level may not rise to `level` now; "": it may.

    `releases` are those of the nodes that are linked now: which release a silent node will come
    back with is not known.
    """
    silent = [member.id for member in view.members if member.id not in releases]
    old = [
        f"{member.id} runs {releases[member.id]}"
        for member in view.members
        if member.id in releases and not supports(releases[member.id], level)
    ]
    if old:
        return f"not every node supports level {level}: {'; '.join(old)}. Upgrade these nodes first"
    if silent:
        return (
            f"the release of {', '.join(silent)} is unknown: start what is stopped, or remove it "
            "for good with `onecopy remove`"
        )
    return ""


def understands(release: Release | None, level: int) -> bool:
    """U3: whether a node understands what `level` brought. None: its release is not known."""
    return release is not None and release.level >= level
