"""The map of a deployment's groups, and the rules about it (G1, G2). Pure.

Each group is a cluster of its own and owns some slots for good. The map tells clients where the
groups are; whether a key is its own, a group decides by its configuration alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from cluster.groups.partition import SLOTS, slot_of_range

MAX_GROUPS = 1024
MAX_SLOT_RANGES = 8
"""Of one group."""
MAX_ENDPOINTS = 16
"""Of one group."""
MAX_MAP_BYTES = 1024 * 1024
GROUP_ID_PATTERN = "[a-z0-9][a-z0-9-]{0,30}"

SlotRange = tuple[int, int]
"""The first and the last slot."""


class GroupMapError(ValueError):
    """A map, or a group's slots, cannot be used. `str(error)` names the field and the fix."""


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One group: the slots that it owns, and where its clients find it."""

    id: Annotated[str, Meta(description="1 to 31 of `a-z 0-9 -`, not beginning with `-`.")]
    slots: Annotated[
        tuple[SlotRange, ...], Meta(description="Ranges of slots, each its first and its last one.")
    ]
    endpoints: Annotated[tuple[str, ...], Meta(description="URLs of its nodes for clients.")] = ()


class GroupMap(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All groups. `version` rises with each change; the first group is the one with slot 0."""

    version: Annotated[int, Meta(ge=1, description="Rises with each change.")]
    groups: tuple[Group, ...]
    slots: Annotated[int, Meta(description="How many there are.")] = SLOTS

    @property
    def first(self) -> Group:
        """The group that keeps the map."""
        return self.owner(0)

    def owner(self, slot: int) -> Group:
        """Return the group that owns a slot."""
        return next(group for group in self.groups if owns(group.slots, slot))

    def group(self, group_id: str) -> Group | None:
        """Return a group by its id."""
        return next((group for group in self.groups if group.id == group_id), None)


_decoder = msgspec.json.Decoder(GroupMap)
encode_map = msgspec.json.Encoder().encode


def decode_map(data: bytes) -> GroupMap:
    """Read a map from JSON. Raises GroupMapError."""
    if len(data) > MAX_MAP_BYTES:
        raise GroupMapError(f"a map has at most {MAX_MAP_BYTES} bytes, not {len(data)}")
    try:
        found = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise GroupMapError(f"not a map of groups: {error}") from error
    check_map(found)
    return found


def check_map(found: GroupMap) -> None:
    """Raise GroupMapError unless every slot belongs to one group, and every field can be used."""
    if found.slots != SLOTS:
        raise GroupMapError(f"slots: must be {SLOTS}, not {found.slots}")
    if not 1 <= len(found.groups) <= MAX_GROUPS:
        raise GroupMapError(f"groups: must be 1 to {MAX_GROUPS}, not {len(found.groups)}")
    owner: dict[int, str] = {}
    for number, group in enumerate(found.groups):
        field = f"groups[{number}]"
        check_group_id(f"{field}.id", group.id)
        if any(other.id == group.id for other in found.groups[:number]):
            raise GroupMapError(f"{field}.id: {group.id!r} is there twice: give each its own")
        check_slots(f"{field}.slots", group.slots)
        check_urls(f"{field}.endpoints", group.endpoints)
        for slot in slots_in(group.slots):
            if slot in owner:
                raise GroupMapError(
                    f"{field}.slots: slot {slot} belongs to {owner[slot]!r} and to {group.id!r}: "
                    "give each slot to one group"
                )
            owner[slot] = group.id
    if len(owner) < SLOTS:
        missing = next(slot for slot in range(SLOTS) if slot not in owner)
        raise GroupMapError(f"groups: slot {missing} belongs to no group: give it to one")


def check_group_id(field: str, group_id: str) -> None:
    """Raise GroupMapError for what cannot be a group's id."""
    if not re.fullmatch(GROUP_ID_PATTERN, group_id):
        raise GroupMapError(
            f"{field}: {group_id[:50]!r} must be 1 to 31 of a-z, 0-9 and '-', not beginning with "
            "'-'"
        )


def check_slots(field: str, ranges: Sequence[SlotRange]) -> None:
    """Raise GroupMapError unless the ranges are in order, apart, and of slots that there are."""
    if not 1 <= len(ranges) <= MAX_SLOT_RANGES:
        raise GroupMapError(f"{field}: must be 1 to {MAX_SLOT_RANGES} ranges, not {len(ranges)}")
    above = -1
    for first, last in ranges:
        if not above < first <= last < SLOTS:
            raise GroupMapError(
                f"{field}: [{first}, {last}] must be a first and a last slot, from 0 to "
                f"{SLOTS - 1}, above those of the range before it"
            )
        above = last


def check_urls(field: str, urls: Sequence[str]) -> None:
    """Raise GroupMapError unless they are URLs of nodes."""
    if len(urls) > MAX_ENDPOINTS:
        raise GroupMapError(f"{field}: has {len(urls)} URLs: name at most {MAX_ENDPOINTS}")
    for url in urls:
        try:
            parts = urlsplit(url)
            usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port
        except ValueError:
            usable = False
        if not usable or url != f"{parts.scheme}://{parts.netloc}" or "@" in url:
            raise GroupMapError(
                f'{field}: {url[:200]!r} must be a URL such as "http://10.0.0.1:8101"'
            )


def slots_in(ranges: Iterable[SlotRange]) -> Iterable[int]:
    """Yield each slot of the ranges."""
    for first, last in ranges:
        yield from range(first, last + 1)


def owns(ranges: Iterable[SlotRange], slot: int) -> bool:
    """G1: whether a group with these slots owns one."""
    return any(first <= slot <= last for first, last in ranges)


def describe_group(group_id: str, ranges: Iterable[SlotRange]) -> str:
    """Return a group as it is bound to its data and its links: "g1:0-2047"."""
    return f"{group_id}:" + ",".join(f"{first}-{last}" for first, last in ranges)


def may_replace_map(held: GroupMap | None, offered: GroupMap) -> str:
    """G2: return why a map must not take the place of the one that is held, or ""."""
    if held is None:
        return ""
    if offered.version <= held.version:
        return f"version {offered.version} is not above {held.version}, which is known already"
    if _ownership(held) != _ownership(offered):
        return "groups and their slots stay as they are: a newer map changes endpoints alone"
    return ""


def _ownership(found: GroupMap) -> dict[str, tuple[SlotRange, ...]]:
    return {group.id: group.slots for group in found.groups}


def as_reached(endpoints: Sequence[str], *, by_tls: bool) -> tuple[str, ...]:
    """G5: return a map's endpoints as they are reached: by TLS from where TLS is used.

    What was sent under TLS, a token too, goes on under TLS. A map may be older than certificates.
    """
    if not by_tls:
        return tuple(endpoints)
    return tuple(url.replace("http://", "https://", 1) for url in endpoints)


class SpansGroupsError(GroupMapError):
    """The keys of one request do not all belong to one slot's group."""


def route(found: GroupMap, start: bytes, end: bytes | None) -> Group:
    """Return the group of all keys with start <= key < end. Raises SpansGroupsError.

    One key is the range from itself to itself with a zero byte.
    """
    slot = slot_of_range(start, end)
    if slot is not None:
        return found.owner(slot)
    if len(found.groups) == 1:
        return found.groups[0]
    raise SpansGroupsError(spans_detail(start))


def spans_detail(start: bytes) -> str:
    """Say what is wrong with a range over several groups, and what to do."""
    name = start[:100].decode("utf-8", "backslashreplace")
    return (
        f"the range that begins with {name!r} is spread over several groups: choose a prefix that "
        "contains a '/' or has a whole {tag}, or ask each group (the header Onecopy-Group; onecopy "
        "list --group)"
    )


class GroupsDocument(msgspec.Struct, frozen=True):
    """What GET /v1/groups answers."""

    own: Annotated[Group, Meta(description="The group of the node that answers.")]
    map: Annotated[
        GroupMap | None, Meta(description="The newest map that it knows; null: none yet.")
    ] = None
