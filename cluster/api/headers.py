"""Request headers: conditions (RFC 9110, section 13), idempotency keys, what a PUT may not carry.

Malformed values are refused, naming the header: a condition that was ignored because of a missing
quote would overwrite what it was to protect.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from aiohttp import hdrs
from multidict import CIMultiDictProxy, istr

from cluster.api.params import decode_name
from cluster.api.problems import ProblemError
from cluster.services.kv import ANY_REVISION, NO_REVISION, Revisions
from datapath.operations import QueryResult, Result

Headers = CIMultiDictProxy[str]

IDEMPOTENCY_KEY = istr("Idempotency-Key")
IDEMPOTENCY_AFTER = istr("Idempotency-After")
CLUSTER = istr("Onecopy-Cluster")
IF_LOCK = istr("If-Lock")
GROUP = istr("Onecopy-Group")
"""Names the group that a request is for; on an answer: which other group has given it."""
RELAYED = istr("Onecopy-Relayed")
"""On a request that a node of another group passes on: the id of the group that it is for."""
REVISION = istr("Onecopy-Revision")
MAX_IDEMPOTENCY_KEY_LENGTH = 255
REVISION_LINE = b"Onecopy-Revision: %d\r\n"
"""As `revision_line`."""
MAX_ENTITY_TAGS = 100
"""In one condition. A head may be as long as 128 fields of 8 KB, and each tag costs a step."""

_TAG = r'(W/)?"([\x21\x23-\x7e\x80-\U0010ffff]*)"'
_TAGS = re.compile(rf"[ \t]*{_TAG}[ \t]*(?:,|$)")
_REVISION = re.compile(r"[1-9][0-9]{0,18}")
_INDEX = re.compile(r"[0-9]{1,18}")
_QUOTED = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
_MSGPACK = "application/msgpack"
_WEIGHT = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")
_TOKEN = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]+")


class EntityTags(NamedTuple):
    """A condition's value: `*` (any), or the revisions it lists.

    `strong` are the revisions of strong tags; `all` has those of weak ones too. A tag that is no
    revision of this service is in neither: it matches nothing.
    """

    any: bool
    strong: tuple[int, ...]
    all: tuple[int, ...]


def entity_tags(headers: Headers, name: istr) -> EntityTags | None:
    """Read If-Match or If-None-Match; None if it isn't there. Raises Problem "invalid_header"."""
    values = headers.getall(name, None)
    if values is None:
        return None
    text = ", ".join(values).strip(" \t")
    if text == "*":
        return EntityTags(any=True, strong=(), all=())
    strong: list[int] = []
    every: list[int] = []
    position = n_tags = 0
    while position < len(text) or not position:
        n_tags += 1
        if n_tags > MAX_ENTITY_TAGS:
            raise ProblemError(
                "invalid_header", f"{name} lists more than {MAX_ENTITY_TAGS} entity tags: use fewer"
            )
        match = _TAGS.match(text, position)
        if match is None:
            raise ProblemError(
                "invalid_header",
                f'{name} must be * or entity tags in double quotes, as in {name}: "42"',
            )
        weak, tag = match.groups()
        if _REVISION.fullmatch(tag):
            every.append(int(tag))
            if not weak:
                strong.append(int(tag))
        position = match.end()
    return EntityTags(any=False, strong=tuple(strong), all=tuple(every))


def write_if_match(headers: Headers) -> Revisions | None:
    """Read If-Match as the condition of a write. Raises Problem.

    Comparison is strong (RFC 9110, 13.1.1): weak and foreign tags match nothing, so that a
    condition of those alone fails with 412.
    """
    if hdrs.IF_MATCH not in headers:
        return None
    tags = entity_tags(headers, hdrs.IF_MATCH)
    if tags is None or tags.any:
        return ANY_REVISION
    if len(tags.strong) == 1:
        return tags.strong[0]
    return tags.strong or NO_REVISION


def put_if_absent(headers: Headers) -> bool:
    """Read `If-None-Match: *` on a PUT; tags are not supported there. Raises Problem."""
    if hdrs.IF_NONE_MATCH not in headers:
        return False
    tags = entity_tags(headers, hdrs.IF_NONE_MATCH)
    if tags is not None and not tags.any:
        raise ProblemError(
            "invalid_header",
            "If-None-Match on PUT must be * (the key must not exist); for a revision use If-Match",
        )
    if hdrs.IF_MATCH in headers:
        raise ProblemError(
            "invalid_header",
            "If-None-Match: * and If-Match cannot be combined: a key is either absent or at a "
            "revision",
        )
    return True


def refuse_if_none_match(headers: Headers) -> None:
    """Refuse If-None-Match on DELETE: no removal could meet it. Raises Problem."""
    if hdrs.IF_NONE_MATCH in headers:
        raise ProblemError(
            "invalid_header", "If-None-Match is not supported on DELETE; use If-Match"
        )


def refuse_conditions(headers: Headers, instead: str) -> None:
    """Refuse If-Match and If-None-Match where they name no key. Raises Problem."""
    for name in (hdrs.IF_MATCH, hdrs.IF_NONE_MATCH):
        if name in headers:
            raise ProblemError("invalid_header", f"{name} has no meaning here: {instead}")


def if_lock(headers: Headers) -> tuple[bytes, int] | None:
    """Read If-Lock: the name of a lock, percent-encoded, and its token (K3); None: not there.

    Raises Problem "invalid_header".
    """
    if IF_LOCK not in headers:
        return None
    values = headers.getall(IF_LOCK)
    raw_name, _, token = values[0].strip(" \t").rpartition("=")
    if len(values) > 1 or not raw_name or not _REVISION.fullmatch(token):
        raise ProblemError(
            "invalid_header",
            "If-Lock must be one lock's name, percent-encoded, and its token: If-Lock: jobs=77",
        )
    return decode_name(raw_name, "If-Lock"), int(token)


def idempotency_key(headers: Headers) -> str:
    """Read Idempotency-Key, as a structured-field string or a bare token; "" if there is none.

    `"abc"` and `abc` are the same key. Raises Problem "invalid_header".
    """
    if IDEMPOTENCY_KEY not in headers:
        return ""
    values = headers.getall(IDEMPOTENCY_KEY)
    if len(values) > 1:
        raise ProblemError("invalid_header", "Idempotency-Key is given twice")
    text = values[0].strip(" \t")
    if quoted := _QUOTED.fullmatch(text):
        key = re.sub(r"\\(.)", r"\1", quoted[1])
    elif _TOKEN.fullmatch(text):
        key = text
    else:
        raise ProblemError(
            "invalid_header",
            "Idempotency-Key must be a string of printable ASCII in double quotes, "
            "or the same without quotes, spaces, commas, semicolons and backslashes",
        )
    if not 1 <= len(key) <= MAX_IDEMPOTENCY_KEY_LENGTH:
        raise ProblemError(
            "invalid_header",
            f"Idempotency-Key must have 1 to {MAX_IDEMPOTENCY_KEY_LENGTH} characters, "
            f"not {len(key)}",
        )
    return key


def idempotency_after(headers: Headers) -> int | None:
    """Read Idempotency-After: a revision (`Onecopy-Revision`) known before the first try, or None.

    It means nothing without an Idempotency-Key. Raises Problem "invalid_header".
    """
    if IDEMPOTENCY_AFTER not in headers:
        return None
    values = headers.getall(IDEMPOTENCY_AFTER)
    if len(values) > 1 or not _INDEX.fullmatch(values[0].strip(" \t")):
        raise ProblemError(
            "invalid_header",
            "Idempotency-After must be one revision, from the Onecopy-Revision of an earlier "
            "answer",
        )
    return int(values[0])


@functools.lru_cache(maxsize=16)  # one of it, on every answer
def cluster_line(cluster_id: str) -> bytes:
    """Return the answer's header line that names the cluster, none while its id is not known."""
    return f"{CLUSTER}: {cluster_id}\r\n".encode("ascii") if cluster_id else b""


@functools.lru_cache(maxsize=64)  # on every answer; the epoch rises now and then
def who_lines(node: str, epoch: int, cluster_id: str) -> bytes:
    """Return the header lines that name the node that answers, its epoch and its cluster."""
    line = cluster_line(cluster_id)
    return b"Onecopy-Node: %b\r\nOnecopy-Epoch: %d\r\n%b" % (node.encode("ascii"), epoch, line)


def revision_line(index: int) -> bytes:
    """Return the header line of the state that an answer is of.

    It has committed, and so is good for Idempotency-After.
    """
    return REVISION_LINE % index


def state_lines(result: Result | QueryResult, cluster_id: str) -> bytes:
    """Return the header lines of an answer that tells of committed state: who, and as of when."""
    return who_lines(result.node, result.epoch, cluster_id) + REVISION_LINE % result.index


def written_lines(result: Result, cluster_id: str, *, local: bool = False) -> bytes:
    """Return the header lines of a write's answer; with `local` (ack) it has not committed."""
    lines = who_lines(result.node, result.epoch, cluster_id)
    if not local:
        lines += REVISION_LINE % result.index
    return lines + b"Idempotent-Replayed: true\r\n" if result.repeated else lines


def check_cluster(headers: Headers, cluster_id: str) -> None:
    """Refuse a request that is meant for another cluster than this node's. Raises Problem.

    A node that does not know its cluster yet cannot say that it is the right one, and refuses too.
    """
    if CLUSTER not in headers:
        return
    wanted = ", ".join(headers.getall(CLUSTER)).strip(" \t")
    if wanted == cluster_id and cluster_id:
        return
    if not cluster_id:
        raise ProblemError("cluster_unknown", "this node does not know its cluster's id yet")
    raise ProblemError(
        "wrong_cluster",
        f"this node belongs to cluster {cluster_id}, and the request is meant for {wanted[:100]}",
    )


def check_put_headers(headers: Headers) -> None:
    """Refuse what would make the stored value another than the one meant. Raises Problem."""
    if hdrs.CONTENT_RANGE in headers:  # RFC 9110, 14.5: storing a part as the whole loses the rest
        raise ProblemError("invalid_header", "Content-Range: a value is always written whole")
    transfer = headers.get(hdrs.TRANSFER_ENCODING)
    if transfer is not None and transfer.strip().lower() != "chunked":
        # aiohttp takes "gzip, chunked" for chunked: the encoded bytes would become the value.
        raise ProblemError(
            "unsupported_content_encoding",
            f"Transfer-Encoding {transfer[:80]!r} is not accepted: use chunked only, or none",
            headers=b"Accept-Encoding: identity\r\n",
        )
    encoding = headers.get(hdrs.CONTENT_ENCODING)
    if encoding is not None and encoding.strip().lower() not in {"", "identity"}:
        # The encoding could not be given back: values are bytes without metadata.
        raise ProblemError(
            "unsupported_content_encoding",
            "a value is stored exactly as sent: omit Content-Encoding, and send the decoded bytes",
            headers=b"Accept-Encoding: identity\r\n",
        )


def accepts_msgpack(headers: Headers) -> bool:
    """Whether Accept names MessagePack, and does not prefer JSON to it (RFC 9110, 12.5.1)."""
    accept = ",".join(headers.getall(hdrs.ACCEPT, ())).lower()
    if _MSGPACK not in accept:
        return False
    weight = _weight(accept, _MSGPACK)
    return weight > 0 and weight >= _weight(accept, "application/json")


def _weight(accept: str, media_type: str) -> float:
    """Return how much a media type is wanted: 0 if it is not named, or with what is no number."""
    for choice in accept.split(","):
        name, *parameters = (part.strip() for part in choice.split(";"))
        if name == media_type:
            weights = [part[2:] for part in parameters if part.startswith("q=")]
            return 1.0 if not weights else float(weights[0]) if _WEIGHT.fullmatch(weights[0]) else 0
    return 0
