"""`[groups]` of a configuration file."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from cluster.groups.group_map import SlotRange, describe_group


class GroupsSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[groups]`: which part of the keys this cluster holds; without it, all of them."""

    id: Annotated[
        str,
        Meta(description="Id of this group: 1 to 31 of `a-z 0-9 -`, not beginning with `-`."),
    ]
    slots: Annotated[
        tuple[SlotRange, ...],
        Meta(
            description="The slots that it owns, of 4096: `[[0, 2047]]`. Fixed from the first "
            "start on: a data directory starts with no others."
        ),
    ]
    first: Annotated[
        tuple[str, ...],
        Meta(
            description="URLs of the first group's nodes, which keep the map of the groups. Not "
            "needed in that group itself, which is the one with slot 0."
        ),
    ] = ()


def group_text(groups: GroupsSection | None) -> str:
    """Return the group with its slots, as data and links are bound to it; "": no groups."""
    return "" if groups is None else describe_group(groups.id, groups.slots)


def refusal_of_data(groups: GroupsSection | None, what: str, held: str) -> str:
    """G1: return why a group does not begin with kept data, `what`, which is of `held`; "": it may.

    The text names both groups (`group_text`), and the fix.
    """
    own = group_text(groups)
    if own == held:
        return ""
    if not held:
        return (
            f"{what} is of a cluster without groups, and this file is of group {own}: name a file "
            f"without [groups], or data of {own}"
        )
    here, instead = f"this file is of group {own}", f", or data of {own}"
    if not own:
        here, instead = "this file has no [groups]", ""
    return (
        f"{what} is of group {held}, and {here}: name the configuration file of {held}, with that "
        f"id and those slots{instead}"
    )
