"""`[groups]` of a configuration file."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from cluster.groups.group_map import SlotRange


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
