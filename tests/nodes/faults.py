"""What is to fail in a `faulty_node`."""

from __future__ import annotations

import msgspec


class Faults(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a control file. Paths are parts of the files' paths; "" is every file."""

    sync_delay_ms: float = 0  # each durable write takes so much longer
    delayed_path: str = ""
    sync_fails: bool = False  # each durable write raises EIO
    failing_path: str = ""
    loses_what_failed: bool = True  # the pages are dropped; else they stand, but perhaps not long
    wall_offset_s: float = 0
    stall_ms: float = 0  # what SIGUSR1 blocks the event loop for

    def delays(self, path: str) -> bool:
        return self.sync_delay_ms > 0 and self.delayed_path in path

    def fails(self, path: str) -> bool:
        return self.sync_fails and self.failing_path in path
