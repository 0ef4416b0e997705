"""What a node may pass on to the group that owns it, and what it then says (G4 to G7). Pure.

A node that gets another group's request asks that group, one endpoint after the other, and answers
with what it is told. The guards here decide what is passed on, and what an answer, or none, proves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

RELAYED_ROUTES = frozenset(
    {
        "/v1/kv/{key}",
        "/v1/kv",
        "/v1/txn",
        "/v1/locks/{name}",
        "/v1/elections/{name}",
        "/v1/leases",
        "/v1/leases/keepalive",
        "/v1/leases/{id}",
        "/v1/leases/{id}/keepalive",
        "/v1/services/{service}/{method}",
    }
)
"""Asked for keys' sake, with one answer. What streams, or administers, is not relayed."""
PASSING_STATUSES = frozenset({421, 503})
"""Of an answer that another node of the group might not give, where nothing was applied."""

Conclusion = Literal["answer", "next", "unreachable", "unknown"]


class Asking(NamedTuple):
    """A request as the guards see it. `named`: the group that it names itself, or "".

    `is_relayed`: a node of another group has sent it. `is_certificates`: only a certificate says
    who calls. `has_after`: it says after which revision it was first sent. `changes`: it is no
    read.
    """

    template: str
    changes: bool
    is_relayed: bool = False
    is_certificates: bool = False
    named: str = ""
    has_after: bool = False


class Came(NamedTuple):
    """What came of asking one endpoint: `status` 0 is no answer, `sent` whether it may have heard.

    `outcome` is what the answer says of a change: "not_applied", "unknown" or "".
    """

    sent: bool
    status: int = 0
    outcome: str = ""


def is_first_hop(asking: Asking) -> bool:
    """G4: whether no other group's node has passed it on: what was relayed once never is again."""
    return not asking.is_relayed


def is_for_keys(asking: Asking) -> bool:
    """G4: whether it is asked for keys' sake: a group is administered at its own nodes alone."""
    return asking.template in RELAYED_ROUTES


def shows_caller(asking: Asking) -> bool:
    """G5: whether the group can tell who calls: a token is passed on, a certificate cannot be."""
    return not asking.is_certificates


def knows_after(asking: Asking) -> bool:
    """G7: whether the revision that it names, if it names one, is one of the group it goes to."""
    return not asking.has_after or bool(asking.named)


def refusal_to_relay(asking: Asking) -> str | None:
    """Return why a request is not passed on, for its client; "": the usual reason; None: it is."""
    if not (is_first_hop(asking) and is_for_keys(asking)):
        return ""
    if not shows_caller(asking):
        return "a certificate, which this node cannot pass on, says who calls: ask that group"
    if not knows_after(asking):
        return (
            "Idempotency-After is a revision of one group: repeat the request with Onecopy-Group "
            "and, if this is its first try, with `revision` as Idempotency-After"
        )
    return None


def may_ask_next(changes: bool, came: Came) -> bool:
    """G6: whether another endpoint may be asked after what came of this one."""
    if not came.sent:
        return True
    if not changes:
        return came.status == 0 or came.status in PASSING_STATUSES
    return came.outcome == "not_applied" and came.status in PASSING_STATUSES


def conclude(changes: bool, came: Came, *, is_last: bool) -> Conclusion:
    """Return what follows what came of one endpoint: the next one is asked, or what is told.

    "answer": what the group said. "unreachable": nothing was applied. "unknown": it may have been.
    """
    if not is_last and may_ask_next(changes, came):
        return "next"
    if came.status:
        return "answer"
    return "unknown" if changes and came.sent else "unreachable"


def as_reached(endpoints: Sequence[str], *, by_tls: bool) -> tuple[str, ...]:
    """G5: return a map's endpoints as they are reached: by TLS from where TLS is used.

    What was sent under TLS, a token too, goes on under TLS. A map may be older than certificates.
    """
    if not by_tls:
        return tuple(endpoints)
    return tuple(url.replace("http://", "https://", 1) for url in endpoints)


def in_order(endpoints: Sequence[str], worked: str | None) -> list[str]:
    """Return a group's endpoints as they are to be asked: the one that last worked first."""
    return sorted(endpoints, key=lambda url: url != worked)
