"""The exit codes of `onecopy`; docs/cli.md lists them."""

from __future__ import annotations

EXIT_OK = 0
EXIT_NOT_APPLIED = 1  # refused; nothing was applied
EXIT_USAGE = 2  # the command line is wrong
EXIT_NOT_FOUND = 3  # no such key
EXIT_PRECONDITION_FAILED = 4
EXIT_UNKNOWN_OUTCOME = 5  # it may or may not have been applied
EXIT_UNAVAILABLE = 6  # no node could take it before the deadline; nothing was applied
EXIT_STORAGE_FULL = 7  # nothing was applied
EXIT_DAMAGED = 65  # a backup is damaged, or of another format; nothing was made of it
EXIT_OUTPUT_FAILED = 74  # done, but the result could not be written; a write has been applied
EXIT_REFUSED = 78  # `serve`, `restore`: configuration or data forbid it; again cannot help
EXIT_INTERRUPTED = 130  # Ctrl-C
