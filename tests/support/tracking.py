"""The tasks of servers in tests: whoever stops one waits for them, or their sockets stay open."""

from __future__ import annotations

import asyncio
from typing import Any


def track(tasks: set[asyncio.Task[Any]]) -> None:
    """Keep the running task in `tasks` until it is done.

    `asyncio.start_server` keeps no record of the tasks of its handlers, and closing it does not
    wait for them: one that is just opening a connection of its own leaves that behind.
    """
    task = asyncio.current_task()
    assert task is not None
    tasks.add(task)
    task.add_done_callback(tasks.discard)
