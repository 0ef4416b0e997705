"""An event loop in a thread of its own, for `Client`: begun, ended, dropped, forked, exited.

A runner must never make its process wait for ever, so

- a call waits for its time-out and no longer (`run`);
- the program's end closes all runners while their threads still run: afterwards, in some object's
  `__del__`, nobody would be left to answer (`_end_all`);
- a forked child has the runner's memory and not its thread. Its copies of the descriptors are
  closed, and the objects around them kept for ever: their finalizers would unregister the
  connections from an epoll instance that is still the parent's (`_leave_in_child`). The client
  then makes itself a new runner.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import ctypes
import os
import selectors
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from cluster.client.errors import UnavailableError

STUCK_AFTER_S = 5.0
"""How long after its time-out a call is awaited that its own event loop should have ended."""
CLOSE_TIMEOUT_S = 5.0
"""How long closing waits for the thread, and the thread for calls under way."""

_T = TypeVar("_T")

CLOSED = "this client is closed"


class StuckError(Exception):
    """The runner's thread did not answer in time."""


class LoopThread:
    """One event loop and its daemon thread. `close` is awaited on the loop at the end."""

    def __init__(self, close: Callable[[], Awaitable[None]]) -> None:
        if sys.is_finalizing():
            raise RuntimeError("the interpreter is shutting down: clients can no longer be used")
        self._close = close
        # A selector of our own making: a forked child has to close it, and nothing else of it.
        self._selector = selectors.DefaultSelector()
        self._loop = asyncio.SelectorEventLoop(self._selector)
        self._lock = threading.Lock()
        self._ending = False
        # Named by its parts, so that the thread holds no reference to this object.
        self._thread = threading.Thread(
            target=_serve, args=(self._loop, close), name="onecopy-client", daemon=True
        )
        self._thread.start()
        _live.add(self)

    @property
    def ended(self) -> bool:
        """Whether it takes no calls any more."""
        return self._ending

    def run(self, call: Coroutine[Any, Any, _T], timeout_s: float) -> _T:
        """Run a call on the loop and return its result.

        Raises what the call raises, RuntimeError where it cannot be run, and StuckError.
        """
        future = self._submit(call)
        try:
            return future.result(timeout_s + STUCK_AFTER_S)
        except concurrent.futures.CancelledError:
            raise StuckError("the client was closed during this call") from None
        except TimeoutError:
            if future.done():
                raise  # the call's own
            future.cancel()
            raise StuckError(
                f"the client's thread has not answered within {timeout_s:.1f} s"
            ) from None
        except BaseException:
            future.cancel()  # Ctrl-C while waiting: do not leave the request running
            raise

    def ask(self, call: Coroutine[Any, Any, _T], timeout_s: float) -> _T:
        """`run` a call that is no write: where the thread does not answer, UnavailableError."""
        try:
            return self.run(call, timeout_s)
        except StuckError as error:
            raise UnavailableError(str(error), code="stuck") from None

    def _submit(self, call: Coroutine[Any, Any, _T]) -> concurrent.futures.Future[_T]:
        with self._lock:
            if threading.current_thread() is self._thread:
                problem = "a client cannot be called from within its own thread"
            elif self._ending:
                problem = CLOSED
            else:
                return asyncio.run_coroutine_threadsafe(call, self._loop)
        call.close()
        raise RuntimeError(problem)

    def end(self, *, wait: bool) -> None:
        """Take no more calls, close the connections, end the thread. May be called again."""
        with self._lock:
            if not self._ending:
                self._ending = True
                _live.discard(self)
                self._loop.call_soon_threadsafe(self._loop.stop)
        if wait and threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_TIMEOUT_S)

    def leave_in_child(self) -> None:
        """After a fork, in the child: close the copies of the descriptors, finalize nothing."""
        self._ending = True
        for part in (self, self._loop, self._close):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(part))
        with contextlib.suppress(OSError, RuntimeError):
            registered = list(self._selector.get_map() or ())
            self._selector.close()  # this process's descriptor of it; the parent's stays as it is
            for descriptor in registered:
                with contextlib.suppress(OSError):
                    os.close(descriptor)  # type: ignore[arg-type]


def _serve(loop: asyncio.AbstractEventLoop, close: Callable[[], Awaitable[None]]) -> None:
    """Run the loop until it is stopped, then end what is under way and free everything."""
    try:
        loop.run_forever()
    finally:
        try:
            loop.run_until_complete(_finish(close))
        finally:
            loop.close()


async def _finish(close: Callable[[], Awaitable[None]]) -> None:
    """Close; let calls under way end as what is known of them, within a bound."""
    await close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        _, late = await asyncio.wait(others, timeout=CLOSE_TIMEOUT_S / 2)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=CLOSE_TIMEOUT_S / 2)
    await asyncio.sleep(0)  # what was closed last lets go of its socket in the next turn


_live: set[LoopThread] = set()


def _end_all() -> None:
    """End every runner while its thread can still run: at the interpreter's exit."""
    runners = list(_live)
    for runner in runners:
        runner.end(wait=False)
    for runner in runners:
        runner.end(wait=True)


def _leave_in_child() -> None:
    for runner in list(_live):
        runner.leave_in_child()
    _live.clear()


atexit.register(_end_all)
os.register_at_fork(after_in_child=_leave_in_child)
