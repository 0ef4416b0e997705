"""What etcd's gateway answers: protobuf's JSON form, without the fields that have their default."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from cluster.etcd.ranges import EtcdKey, FoundRange
from cluster.services.leases import FIRST_CHOSEN_LEASE, LAST_CHOSEN_LEASE

encode = msgspec.json.Encoder().encode

Document = dict[str, Any]

MAX_LEASE_ID = 2**63 - 2
"""The largest id of a lease that a client may choose."""


def shown_lease(lease: int) -> int:
    """Return a lease's id as etcd's clients see it.

    Those that they have been granted or have chosen are kept from FIRST_CHOSEN_LEASE on, apart from
    the leases of this service's own API.
    """
    return lease - FIRST_CHOSEN_LEASE if lease >= FIRST_CHOSEN_LEASE else lease


def stored_lease(lease: int) -> int:
    """Return under which id a lease of etcd's clients is kept; 0 is none.

    What cannot be one of theirs is an id that no lease ever has.
    """
    if not lease:
        return 0
    return lease + FIRST_CHOSEN_LEASE if 0 < lease <= MAX_LEASE_ID else LAST_CHOSEN_LEASE + 1


def compared_lease(lease: int) -> int:
    """Return what stands for a lease's id in a comparison, in the order of the ids."""
    return lease + FIRST_CHOSEN_LEASE if lease > 0 else lease


def number_of(*parts: str) -> int:
    """Return a 64-bit number for a cluster or a member: etcd's have numbers, and here are names."""
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return int.from_bytes(digest[:8]) | 1


def with_numbers(fields: Iterable[tuple[str, int]]) -> Document:
    """Return 64-bit numbers as protobuf's JSON has them: as strings, and not if they are 0."""
    return {name: str(value) for name, value in fields if value}


def key_value(kv: EtcdKey) -> Document:
    """Return a key."""
    document: Document = {"key": kv.key} if kv.key else {}
    document["create_revision"] = str(kv.create_revision)
    document["mod_revision"] = str(kv.mod_revision)
    document["version"] = str(kv.version)
    if kv.value:
        document["value"] = kv.value
    if kv.lease:
        document["lease"] = str(shown_lease(kv.lease))
    return document


def range_fields(found: FoundRange) -> Document:
    """Return a range's answer, without its header."""
    document: Document = {}
    if found.kvs:
        document["kvs"] = [key_value(kv) for kv in found.kvs]
    if found.more:
        document["more"] = True
    if found.total:
        document["count"] = str(found.total)
    return document


def put_fields(previous: Sequence[EtcdKey]) -> Document:
    """Return a put's answer, without its header; `previous`: of the key, if that was asked for."""
    return {"prev_kv": key_value(previous[0])} if previous else {}


def delete_fields(deleted: int, previous: Sequence[EtcdKey]) -> Document:
    """Return a delete's answer, without its header."""
    document: Document = with_numbers([("deleted", deleted)])
    if previous:
        document["prev_kvs"] = [key_value(kv) for kv in previous]
    return document
