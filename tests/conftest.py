"""What holds for every test."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Let the programs under test be interrupted.

    A shell that starts `make test` in the background makes it ignore SIGINT, children inherit
    that, and a Python that starts so never sees Ctrl-C: the tests that interrupt a command would
    wait for ever.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
