"""Giving disk space back: LMDB keeps the pages of deleted keys, so the store moves to a copy.

The copy is made by a process of its own (`datapath.storage.compaction_child`), of one state, and
takes over as an installed snapshot does: by `CURRENT`. Meanwhile nothing is flushed: what commits
waits in memory, and where that becomes too much the copy is given up. See `docs/storage.md`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from datapath.errors import DataPathError, SafetyError, StorageError
from datapath.storage.environment import Environment, next_environment, set_current
from datapath.storage.overlay import MAX_FLUSH_RECORDS
from datapath.storage.store import Store
from datapath.storage.store_flusher import StoreFlusher

logger = logging.getLogger(__name__)

DEFAULT_MIN_WASTE_BYTES = 64 * 1024 * 1024
PAGE_BYTES = 4096
MIN_WASTE_FRACTION = 0.5
"""Of the file: less is not worth copying the rest."""
MAX_HELD_BYTES = 64 * 1024 * 1024
"""What may commit while a copy is made: half of what a replica holds in memory at most."""
_CHECK_INTERVAL_S = 5.0
_RETRY_INTERVAL_S = 600.0
"""After a copy that was given up or failed."""
_LOOK_INTERVAL_S = 0.05
_EXIT_TIMEOUT_S = 2.0
_MAX_COMPLAINT_BYTES = 500


def is_wasteful(file_bytes: int, used_bytes: int, min_waste_bytes: int) -> bool:
    """Whether a store's file is worth a copy of what is used of it; `min_waste_bytes` 0: never.

    What two flushes leave free is taken again by those that follow: it is no waste.
    """
    unused_bytes = file_bytes - used_bytes
    waste_bytes = unused_bytes - 2 * min(used_bytes, MAX_FLUSH_RECORDS * PAGE_BYTES)
    return 0 < min_waste_bytes <= waste_bytes and unused_bytes >= MIN_WASTE_FRACTION * file_bytes


class NotCompactedError(DataPathError):
    """The store stays as it is; the message says why."""


class Compactor:
    """Looks at the store's file now and then, and compacts it. Made and used on the event loop.

    `on_error` is told when what CURRENT names is not known: the node must end; `on_compacted` when
    a copy has taken over. `compacted_total`: how many have.
    """

    def __init__(
        self,
        store: Store,
        flusher: StoreFlusher,
        *,
        on_error: Callable[[BaseException], object],
        on_compacted: Callable[[], object] = lambda: None,
        min_waste_bytes: int = DEFAULT_MIN_WASTE_BYTES,
        check_interval_s: float = _CHECK_INTERVAL_S,
        max_held_bytes: int = MAX_HELD_BYTES,
    ) -> None:
        self._store = store
        self._flusher = flusher
        self._on_error = on_error
        self._on_compacted = on_compacted
        self._min_waste_bytes = min_waste_bytes
        self._check_interval_s = check_interval_s
        self._max_held_bytes = max_held_bytes
        self._taking_over: asyncio.Task[None] | None = None
        self.compacted_total = 0
        self._task = asyncio.get_running_loop().create_task(self._run(), name="onecopy-compact")

    async def close(self) -> None:
        """Stop: a copy that is being made is given up."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._taking_over is not None:
            await asyncio.gather(self._taking_over, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._check_interval_s)
            before_bytes, used_bytes = self._store.space()
            if not is_wasteful(before_bytes, used_bytes, self._min_waste_bytes):
                continue
            try:
                await self._compact()
            except (NotCompactedError, StorageError, OSError) as problem:
                logger.warning(
                    "%s was not compacted: %s. It is tried again in %.0f minutes",
                    self._store.directory,
                    problem,
                    _RETRY_INTERVAL_S / 60,
                )
                await asyncio.sleep(_RETRY_INTERVAL_S)
            else:
                self.compacted_total += 1
                after_bytes, _ = self._store.space()
                logger.info(
                    "%s was compacted: %d bytes became %d",
                    self._store.directory,
                    before_bytes,
                    after_bytes,
                )

    async def _compact(self) -> None:
        """Move the store to a copy. Raises NotCompactedError, StorageError, OSError."""
        store, directory = self._store, self._store.directory
        async with self._flusher.paused():
            file_bytes, used_bytes = store.space()
            if store.is_flushing or not is_wasteful(file_bytes, used_bytes, self._min_waste_bytes):
                raise NotCompactedError("the store has just changed")
            room = os.statvfs(directory)
            needed_bytes = used_bytes + self._max_held_bytes
            if room.f_bavail * room.f_frsize < needed_bytes:
                raise NotCompactedError(f"it takes {needed_bytes} free bytes on its disk")
            target = next_environment(directory)
            try:
                await asyncio.to_thread(target.mkdir, mode=0o700)
                copy = await self._copy(target)
            except BaseException:
                await asyncio.to_thread(shutil.rmtree, target, ignore_errors=True)
                raise
            # From here on it is carried through, also if this node is told to stop: a store that
            # went on in the old environment would lose what it flushes at the next start.
            self._taking_over = asyncio.create_task(self._take_over(copy))
            await asyncio.shield(self._taking_over)

    async def _take_over(self, copy: Environment) -> None:
        try:
            await asyncio.to_thread(set_current, self._store.directory, copy.path.name)
            former = self._store.switch(copy)
        except (OSError, SafetyError) as error:
            # CURRENT may name either now: both hold the same, and must go on to.
            self._store.refuse(f"compacting {self._store.directory} failed: {error}")
            self._on_error(error)
            raise
        self._on_compacted()
        await asyncio.to_thread(former.discard)

    async def _copy(self, target: Path) -> Environment:
        """Have a process copy the store, and open that. Raises NotCompactedError, OSError."""
        source = self._store.acquire_environment()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "datapath.storage.compaction_child"),
                *(str(source.path), str(target), str(source.map_size_bytes)),
                stdin=asyncio.subprocess.PIPE,  # its end is this process's: then the child ends too
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
            said = asyncio.create_task(_read_end(process))
            try:
                while process.returncode is None:
                    if self._store.overlay_bytes > self._max_held_bytes:
                        raise NotCompactedError("too much was written meanwhile")
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(process.wait(), _LOOK_INTERVAL_S)
                if process.returncode != 0:
                    raise NotCompactedError(f"the process that copies it ended: {await said}")
            finally:
                if process.returncode is None:
                    process.kill()
                    with contextlib.suppress(TimeoutError):  # it hangs in a disk
                        await asyncio.wait_for(process.wait(), _EXIT_TIMEOUT_S)
                said.cancel()
                await asyncio.gather(said, return_exceptions=True)
            return await asyncio.to_thread(Environment, target, source.map_size_bytes)
        finally:
            source.lmdb.reader_check()  # a killed reader would hold its pages for ever
            source.release()


async def _read_end(process: asyncio.subprocess.Process) -> str:
    """Return the end of what a process says of its trouble."""
    assert process.stderr is not None
    end = b""
    while data := await process.stderr.read(_MAX_COMPLAINT_BYTES):
        end = (end + data)[-_MAX_COMPLAINT_BYTES:]
    return end.decode(errors="replace").strip() or f"status {process.returncode}"
