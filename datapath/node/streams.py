"""The replication streams of one replica: those that it opens, and those that it takes."""

from __future__ import annotations

from collections.abc import Callable

from datapath.execution.pipeline import LogSpace
from datapath.protocol import messages
from datapath.transport.link import Link


class _Streams:
    """The newest link to each peer, in one direction: what is sent goes to `links` itself."""

    encode = staticmethod(messages.encode_message)
    decode = staticmethod(messages.decode_message)

    def __init__(self) -> None:
        self.links: dict[str, Link] = {}

    def _is_newest(self, link: Link) -> bool:
        return self.links.get(link.peer) is link


class OutgoingStreams(_Streams):
    """Those that this node has opened: a primary sends on them, and its replicas answer."""

    def __init__(
        self,
        *,
        on_link: Callable[[str], None],
        on_link_lost: Callable[[str], None],
        on_message: Callable[[str, messages.Message], None],
    ) -> None:
        super().__init__()
        self._on_link = on_link
        self._on_link_lost = on_link_lost
        self._on_message = on_message

    def on_open(self, link: Link) -> None:
        """A stream is open."""
        self.links[link.peer] = link
        self._on_link(link.peer)

    def on_messages(self, link: Link, answers: list[messages.Message]) -> None:
        """Answers."""
        if self._is_newest(link):
            for message in answers:
                self._on_message(link.peer, message)

    def on_close(self, link: Link, reason: str) -> None:
        """A stream is gone."""
        del reason
        if self._is_newest(link):
            del self.links[link.peer]
            self._on_link_lost(link.peer)


class IncomingStreams(_Streams):
    """Those that primaries have opened to this node, once it is admitted.

    `is_ours` judges a probe's cluster id, and ends the node that has another's data. `room`:
    of the disk, for records.
    """

    def __init__(
        self,
        node_id: str,
        *,
        is_ours: Callable[[str], bool],
        room: LogSpace,
        on_message: Callable[[str, messages.Message], None],
    ) -> None:
        super().__init__()
        self._node_id = node_id
        self._is_ours = is_ours
        self._room = room
        self._on_message = on_message
        self.admitted = False

    def on_open(self, link: Link) -> None:
        """A primary may speak from now on."""
        if self.admitted:
            self.links[link.peer] = link
        else:
            link.close(f"{self._node_id} has not been admitted to the cluster yet")

    def on_messages(self, link: Link, said: list[messages.Message]) -> None:
        """What a primary says."""
        if not self._is_newest(link):
            return
        for message in said:
            if isinstance(message, messages.Probe) and not self._is_ours(message.cluster_id):
                return
            if (
                isinstance(message, messages.Append)
                and message.records
                and not self._room.reserve(sum(map(len, message.records)))
            ):
                # Not acknowledged, and the stream is broken off: the primary goes on without.
                link.close(f"the disk of {self._node_id} is full or too slow")
                return
            self._on_message(link.peer, message)

    def on_close(self, link: Link, reason: str) -> None:
        """A stream is gone."""
        del reason
        if self._is_newest(link):
            del self.links[link.peer]
