"""The secret that the nodes of a cluster share, of which two count while it is being changed."""

from __future__ import annotations


class SharedSecret:
    """What proves a node to others. It may be replaced at any time, from any thread.

    A node proves itself by the `current` one, and takes others at their word for any `accepted`.
    Links that are open go on.
    """

    __slots__ = ("_accepted",)

    def __init__(self, current: bytes, *accepted: bytes) -> None:
        self._accepted = (current, *accepted)

    def __repr__(self) -> str:
        return "<shared secret>"

    def __bool__(self) -> bool:
        return bool(self.current)

    @property
    def current(self) -> bytes:
        """The one that this node proves itself by; b"": none."""
        return self._accepted[0]

    @property
    def accepted(self) -> tuple[bytes, ...]:
        """Those by which others may prove themselves, `current` among them."""
        return self._accepted

    def replace(self, current: bytes, *accepted: bytes) -> bool:
        """Use these from now on, for new links; return whether they are others."""
        before, self._accepted = self._accepted, (current, *accepted)
        return self._accepted != before
