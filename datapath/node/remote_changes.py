"""Changes of keys at a node that has no data: it asks the primary, with one call for each key.

The call is answered as soon as what is stored there differs from what the caller has seen, so that
nothing is missed between two calls, nor where the primary changes. What is seen is a digest under a
key of the answering process: it tells that something has changed, and not what.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from hashlib import blake2b

from datapath.errors import DataPathError
from datapath.node.context import CALL_MARGIN_MS, Context
from datapath.node.engine import Engine
from datapath.tasks import Tasks
from datapath.transport.calls import NoAnswerError, NotSentError, ObserveCall, ObserveReturn

logger = logging.getLogger(__name__)

OBSERVE_MS = 1000
"""How long one call waits for a change; then it is sent anew, to whoever is the primary by then."""
BLIND_INTERVAL_S = 0.25
"""How often observers are called while the primary cannot be asked."""
DIGEST_SIZE_BYTES = 16

_Place = tuple[int, bytes]
_Observers = dict[object, Callable[[], None]]


class RemoteChanges:
    """The keys that are observed on one node without data."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._observed: dict[_Place, tuple[_Observers, asyncio.Task[None]]] = {}
        self._tasks = Tasks(_on_failed)

    async def stop(self) -> None:
        """Observe nothing more."""
        await self._tasks.stop()

    def observe(
        self, keyspace: int, key: bytes, observer: Callable[[], None]
    ) -> Callable[[], None]:
        """Call `observer` after each committed write of a key, until what is returned is called.

        It is called once at first, too, and every `BLIND_INTERVAL_S` while nobody can be asked.
        """
        place = keyspace, key
        if place not in self._observed:
            observers: _Observers = {}
            self._observed[place] = observers, self._tasks.spawn(self._follow(place, observers))
        token = object()
        self._observed[place][0][token] = observer
        return partial(self._leave, place, token)

    def _leave(self, place: _Place, token: object) -> None:
        observers, task = self._observed[place]
        del observers[token]
        if not observers:
            del self._observed[place]
            task.cancel()

    async def _follow(self, place: _Place, observers: _Observers) -> None:
        seen = b""
        while True:
            try:
                mark = await self._ask(place, seen)
            except DataPathError:
                mark = b""
                await asyncio.sleep(BLIND_INTERVAL_S)
            if mark != seen or not mark:
                for observer in list(observers.values()):
                    observer()
            seen = mark

    async def _ask(self, place: _Place, seen: bytes) -> bytes:
        context = self._context
        primary = context.views.primary
        if not primary:
            raise NotSentError("there is no primary")
        call = ObserveCall(*place, seen, OBSERVE_MS)
        answer = await context.caller.call(primary, call, OBSERVE_MS + CALL_MARGIN_MS)
        if not isinstance(answer, ObserveReturn):
            raise NoAnswerError(f"{primary} gave an invalid answer")
        return answer.mark


async def next_mark(engine: Engine, call: ObserveCall, secret: bytes) -> bytes:
    """Return the digest of what is stored under a key, once it differs from what was seen.

    At the latest after `timeout_ms`. `secret`: the digests' key.
    """
    interpreter, changed = engine.interpreter, asyncio.Event()
    watcher = interpreter.feed.observe(call.keyspace, call.key, changed.set)
    try:
        async with asyncio.timeout(min(call.timeout_ms, OBSERVE_MS) / 1000):
            while True:
                changed.clear()
                mark = _mark_of(interpreter.stored(call.keyspace, call.key), secret)
                if mark != call.seen:
                    return mark
                await changed.wait()
    except TimeoutError:
        return call.seen
    finally:
        interpreter.feed.leave(watcher)


def _mark_of(stored: bytes | None, secret: bytes) -> bytes:
    if stored is None:
        return b"absent"
    return blake2b(stored, digest_size=DIGEST_SIZE_BYTES, key=secret).digest()


def _on_failed(problem: BaseException) -> None:
    logger.error("observing a key at the primary failed", exc_info=problem)
