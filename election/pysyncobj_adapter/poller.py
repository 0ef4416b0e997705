"""The poller under PySyncObj: `poll(2)`, where a descriptor's reuse cannot mislead an event.

PySyncObj's own delivers an event to whoever owns the number by then, which after a close and an
open in the same round is another connection.
"""

from __future__ import annotations

import select
from collections.abc import Callable

READ, WRITE, ERROR = 1, 2, 4  # PySyncObj's event bits

OnEvent = Callable[[int, int], None]


class Poller:
    """Calls back, on the thread that polls, for each descriptor that is ready."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._callbacks: dict[int, OnEvent] = {}

    def subscribe(self, descr: int, callback: OnEvent, eventMask: int) -> None:  # noqa: N803
        """Watch the descriptor; a second call replaces the first."""
        mask = (select.POLLIN if eventMask & READ else 0) | (
            select.POLLOUT if eventMask & WRITE else 0
        )
        self._callbacks[descr] = callback
        self._poll.register(descr, mask)

    def unsubscribe(self, descr: int) -> None:
        """Watch it no more. To be called before the descriptor is closed."""
        if self._callbacks.pop(descr, None) is not None:
            self._poll.unregister(descr)

    def poll(self, timeout: float) -> None:
        """Wait at most `timeout` seconds for events, and deliver them."""
        ready = [
            (descr, event, self._callbacks.get(descr))
            for descr, event in self._poll.poll(timeout * 1000)
        ]
        for descr, event, callback in ready:
            if callback is None or self._callbacks.get(descr) is not callback:
                continue
            mask = READ if event & select.POLLIN else 0
            if event & select.POLLOUT:
                mask |= WRITE
            if event & (select.POLLERR | select.POLLHUP | select.POLLNVAL):
                mask |= ERROR
            callback(descr, mask)


class NoNotifier:
    """Stands in for PySyncObj's wake-up pipe, which is never closed; the thread has its own."""

    def __init__(self, poller: Poller) -> None:
        """Take nothing from the poller."""

    def notify(self) -> None:
        """Do nothing: commands are queued only from the thread that polls."""
