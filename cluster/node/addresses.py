"""What a node does when its configuration and the view give it different addresses. Pure.

Whichever was changed last counts. The configuration is newer if it is not what it was when the two
last agreed (which the data directory remembers): then the view is to follow it. Otherwise the view
was changed, by `onecopy member move`: then the configuration is to follow, by the operator's hand.
"""

from __future__ import annotations

from typing import Literal

from election.identity import Addresses

AddressStep = Literal["none", "register", "refuse", "warn"]
CHANNELS = ("client", "peer", "raft")


def next_step(
    configured: Addresses, agreed: Addresses, last_agreed: Addresses | None, *, is_first: bool
) -> AddressStep:
    """Return what to do about this node's own entry in a view.

    "register": have the view take the configured addresses. "refuse": do not start. "warn": the
    view has changed while the node runs (`is_first`: it is the first view since its start).
    """
    if configured == agreed:
        return "none"
    if configured != last_agreed:
        return "register"
    return "refuse" if is_first else "warn"


def differences(configured: Addresses, agreed: Addresses) -> list[str]:
    """Return the names of the channels whose addresses differ."""
    return [
        name
        for name, mine, theirs in zip(CHANNELS, as_tuple(configured), as_tuple(agreed), strict=True)
        if mine != theirs
    ]


def as_tuple(addresses: Addresses) -> tuple[str, str, str]:
    """Return the addresses in the order of `CHANNELS`."""
    return addresses.client, addresses.peer, addresses.raft


def edit_or_move(node: str, path: object, configured: Addresses, agreed: Addresses) -> str:
    """Return the sentence that tells the operator what to do after a move by command."""
    mine, theirs = as_tuple(configured), as_tuple(agreed)
    edits, options = [], []
    for name in differences(configured, agreed):
        at = CHANNELS.index(name)
        edits.append(f'nodes.{node}.{name} = "{theirs[at]}"')
        options.append(f"--{name} {mine[at]}")
    return (
        f"the agreed addresses of node {node} differ from those in {path}: set "
        f"{', '.join(edits)} there and restart the node; or, to keep those in the file, run "
        f"`onecopy member move {node} {' '.join(options)}`"
    )
