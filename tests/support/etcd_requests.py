"""Random requests to etcd's gateway, valid and not, and what of two servers' answers must agree."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from typing import Any, NamedTuple

KEYS = (b"a", b"aa", b"ab", b"b", b"ba", b"c", b"\x00", b"\xff\xfe", "ü".encode(), b"zz")
ENDS = (b"", b"\x00", b"b", b"ac", b"c", b"\xff", b"a")
VALUES = (b"", b"1", b"2", b"\x00\xff", b"x" * 30)
LEASES = (101, 102, 103)

DRAWN = "drawn"
"""In place of the id of a lease that the server has drawn."""

Document = dict[str, Any]


class Asked(NamedTuple):
    """A request: its path, and its document (or raw text), made of what a server knows of keys."""

    path: str
    make: Callable[[dict[str, Document]], Any]


def b64(data: bytes) -> str:
    """Return bytes as protobuf's JSON has them."""
    return base64.b64encode(data).decode()


class Draws:
    """Draws requests from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def request(self) -> Asked:
        """Draw one request."""
        chance = self._random.random()
        kinds: tuple[tuple[float, Callable[[], Asked]], ...] = (
            (0.22, self._put),
            (0.44, self._range),
            (0.54, self._delete),
            (0.80, self._txn),
            (0.92, self._lease),
            (0.94, self._compact),
            (1.00, self._malformed),
        )
        return next(draw for limit, draw in kinds if chance < limit)()

    # -- keys

    def _key(self) -> bytes:
        return self._random.choice(KEYS)

    def _chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def _put_document(self) -> Document:
        document: Document = {"key": b64(self._key()), "value": b64(self._random.choice(VALUES))}
        if self._chance(0.3):
            document["lease"] = self._lease_id()
        if self._chance(0.3):
            document[self._random.choice(("prev_kv", "prevKv"))] = self._chance(0.9)
        if self._chance(0.1):
            document["ignore_value"] = True
            if self._chance(0.7):
                del document["value"]
        if self._chance(0.1):
            document["ignore_lease"] = True
            if self._chance(0.7):
                document.pop("lease", None)
        if self._chance(0.03):
            document["key"] = ""
        return document

    def _put(self) -> Asked:
        return _fixed("/v3/kv/put", self._put_document())

    def _range_document(self) -> Document:
        document: Document = {"key": b64(self._key())}
        if self._chance(0.6):
            document[self._random.choice(("range_end", "rangeEnd"))] = b64(
                self._random.choice(ENDS)
            )
        for field, values, probability in (
            ("limit", (0, 1, 2, "3", -1, 100), 0.3),
            ("sort_order", ("NONE", "ASCEND", "DESCEND", 0, 1, 2), 0.3),
            ("sort_target", ("KEY", "MOD", "CREATE", "KEY", 0, 3), 0.3),
            ("keys_only", (True, False), 0.2),
            ("count_only", (True, False), 0.15),
            ("serializable", (True, False), 0.0),
            ("sort_order", (7, "NOT_AN_ORDER"), 0.02),
            ("revision", ("1", 1, 10**12), 0.03),
        ):
            if self._chance(probability):
                document[field] = self._random.choice(values)
        if self._chance(0.02):
            del document["key"]
        return document

    def _range(self) -> Asked:
        document = self._range_document()
        if not self._chance(0.15):
            return _fixed("/v3/kv/range", document)
        field = self._random.choice(
            ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision")
        )
        name = "mod_revision" if "mod" in field else "create_revision"
        key = b64(self._key())
        return Asked(
            "/v3/kv/range", lambda known: {**document, field: known.get(key, {}).get(name, "0")}
        )

    def _delete_document(self, *, in_txn: bool = False) -> Document:
        document: Document = {"key": b64(self._key())}
        if self._chance(0.4):
            end = self._random.choice(ENDS)
            if not (in_txn and end == b"\0"):
                # etcd's check does not see that a put of the same transaction is in that range.
                # With ignore_value or ignore_lease it then finds no key, and its process ends.
                document["range_end"] = b64(end)
        if self._chance(0.5):
            document["prev_kv"] = True
        return document

    def _delete(self) -> Asked:
        return _fixed("/v3/kv/deleterange", self._delete_document())

    def _txn(self) -> Asked:
        compares = [self._compare() for _ in range(self._random.choice((0, 1, 1, 2)))]
        branches = [
            [self._op(0) for _ in range(self._random.choice((0, 1, 2, 3)))] for _ in range(2)
        ]
        return Asked(
            "/v3/kv/txn",
            lambda known: {
                "compare": [make(known) for make in compares],
                "success": branches[0],
                "failure": branches[1],
            },
        )

    def _compare(self) -> Callable[[dict[str, Document]], Document]:
        key = b64(self._key())
        result = self._random.choice(("EQUAL", "GREATER", "LESS", "NOT_EQUAL", 0, 1, 2, 3))
        target = self._random.choice(("VERSION", "CREATE", "MOD", "VALUE", "LEASE", 0, 3))
        document: Document = {"key": key, "result": result, "target": target}
        if self._chance(0.2):
            document["range_end"] = b64(self._random.choice(ENDS))
        if self._chance(0.02):
            document["key"] = ""
        if target in ("VALUE", 3):
            document["value"] = b64(self._random.choice(VALUES))
        elif target == "LEASE":
            document["lease"] = self._random.choice((0, *LEASES))
        elif target in ("VERSION", 0):
            document["version"] = self._random.choice((0, 1, "2", 3))
        elif not self._chance(0.1):
            field = "mod_revision" if target == "MOD" else "create_revision"
            return lambda known: {**document, field: known.get(key, {}).get(field, "0")}
        return lambda _: document

    def _op(self, depth: int) -> Document:
        chance = self._random.random()
        if chance < 0.4:
            return {"request_put": self._put_document()}
        if chance < 0.7:
            document = self._range_document()
            return {"requestRange": document}
        if chance < 0.88 or depth > 1:
            return {"request_delete_range": self._delete_document(in_txn=True)}
        if chance < 0.90:
            return {}
        return {
            "request_txn": {
                "compare": [self._compare()({}) for _ in range(self._random.choice((0, 1)))],
                "success": [self._op(depth + 1) for _ in range(self._random.choice((0, 1, 2)))],
                "failure": [self._op(depth + 1) for _ in range(self._random.choice((0, 1)))],
            }
        }

    def _lease_id(self) -> int | str:
        lease = self._random.choice(LEASES)
        return str(lease) if self._chance(0.5) else lease

    def _lease(self) -> Asked:
        chance = self._random.random()
        if chance < 0.45:
            ttl = self._random.choice((3600, "3600", 3600, 0, 10**11, -1))
            return _fixed("/v3/lease/grant", {"ID": self._lease_id(), "TTL": ttl})
        if chance < 0.65:
            return _fixed(self._path("lease/revoke"), {"ID": self._lease_id()})
        if chance < 0.8:
            return _fixed("/v3/lease/keepalive", {"ID": self._lease_id()})
        if chance < 0.95:
            document = {"ID": self._lease_id(), "keys": self._chance(0.5)}
            return _fixed(self._path("lease/timetolive"), document)
        return _fixed(self._path("lease/leases"), {})

    def _path(self, name: str) -> str:
        return f"/v3/{self._random.choice(('', 'kv/'))}{name}"

    def _compact(self) -> Asked:
        return _fixed("/v3/kv/compaction", {"revision": self._random.choice((10**12, -1))})

    def _malformed(self) -> Asked:
        path = self._random.choice(
            ("/v3/kv/put", "/v3/kv/range", "/v3/kv/deleterange", "/v3/kv/txn", "/v3/lease/grant")
        )
        body = self._random.choice(
            (
                "",
                "{",
                "[]",
                "1",
                '"text"',
                "null",
                "{}",
                "{}x",
                '{"key": 5}',
                '{"key": "YQ==", "key": "Yg=="}',
                '{"key": "YQ", "unknown": [1, {}]}',
                '{"key": "Y!=="}',
                '{"key": null}',
                '{"key": "YQ==", "limit": "x", "lease": "x", "ID": "x", "prev_kv": "x"}',
                '{"key": "YQ==", "limit": 1.5, "lease": 1.5, "TTL": 1.5, "prev_kv": 1}',
                '{"key": "YQ==", "limit": 1.0, "lease": 0.0, "TTL": 60.0, "ID": 101.0}',
                '{"compare": {}, "value": {}, "prev_kv": [], "TTL": {}, "limit": []}',
                '{"compare": [1], "value": 1, "prev_kv": 2, "TTL": [], "sort_order": []}',
                '{"success": [{"request_put": {"key": "YQ=="}, "request_range": {}}], "ID": 102}',
                '{"compare": [{"key": "YQ==", "version": 1, "lease": 1}], "key": "", "TTL": "0x1"}',
            )
        )
        return Asked(path, lambda _: body)


def _fixed(path: str, document: Document) -> Asked:
    return Asked(path, lambda _: document)


# -- what must agree


class Labels:
    """Names for the revisions of one server, in the order in which its answers tell them."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def of(self, revision: str) -> str:
        """Return the name of a revision."""
        return self._names.setdefault(revision, f"r{len(self._names) + 1}")


_NUMBERS = {"cluster_id", "member_id", "raft_term"}


def alike(status: int, document: Any, labels: Labels) -> Any:
    """Return of an answer what must agree with another server's.

    Left out: the numbers of cluster, member and term; the revision of headers, which counts other
    writes too here; what is left of a lease's time; and the words about what is not even a request.
    """
    if isinstance(document, dict) and "code" in document:
        message = str(document.get("message"))
        words = message if message.startswith("etcdserver:") else ""
        return status, document["code"], words
    return status, _alike(document, labels)


def _alike(value: Any, labels: Labels) -> Any:
    if isinstance(value, list):
        items = [_alike(item, labels) for item in value]
        if value and set(value[0]) == {"ID"}:
            return sorted(item["ID"] for item in items if item["ID"] != DRAWN)
        return items
    if not isinstance(value, dict):
        return value
    found: Document = {}
    for name, item in value.items():
        if name in _NUMBERS or name == "header":
            continue
        if name == "lease" and "mod_revision" in value and "value" not in value:
            continue  # etcd 3.7 leaves it out where only keys are asked for, etcd 3.5 does not
        if name in {"mod_revision", "create_revision"}:
            found[name] = labels.of(item)
        elif name == "TTL" and "grantedTTL" in value:
            found[name] = "some"
        elif name == "ID":
            found[name] = item if int(item) in LEASES else DRAWN
        elif name == "keys":
            found[name] = sorted(item)
        elif name == "leases":
            if leases := _alike(item, labels):
                found[name] = leases
        else:
            found[name] = _alike(item, labels)
    return found


def learn(document: Any, known: dict[str, Document]) -> None:
    """Take from an answer what it says of keys, as later requests refer to it."""
    if isinstance(document, list):
        for item in document:
            learn(item, known)
    elif isinstance(document, dict):
        if "key" in document and "mod_revision" in document and "create_revision" in document:
            known[document["key"]] = document
        for item in document.values():
            learn(item, known)
