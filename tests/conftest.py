"""What holds for every test."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

SLOW = "slow and not long"
"""What `make test` asks for. A test file that has any names the mark itself."""


def pytest_configure() -> None:
    """Prepare this process for the tests."""
    _let_bytecode_be_kept()
    _let_programs_be_interrupted()
    _close_what_comes_while_a_server_closes()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Pass over the files of tests in which none is slow, where only those are asked for."""
    if config.option.markexpr != SLOW or not collection_path.match("test_*.py"):
        return None
    return True if "mark.slow" not in collection_path.read_text() else None


def _let_bytecode_be_kept() -> None:
    """Have modules compiled once, also where the environment (of a container, say) forbids it.

    Else each node that a test starts compiles all of onecopy, and each worker all of the tests.
    """
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def _let_programs_be_interrupted() -> None:
    """Give SIGINT its handler back.

    A shell that starts `make test` in the background makes it ignore SIGINT, children inherit
    that, and a Python that starts so never sees Ctrl-C: the tests that interrupt a command would
    wait for ever.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _close_what_comes_while_a_server_closes() -> None:
    """Mend asyncio: `Server.close` just after a connection was accepted leaves its socket open.

    The collector then finds it in some later test, which fails for it.
    """
    loops: Any = asyncio.SelectorEventLoop
    make = loops._make_socket_transport

    def make_or_close(loop: object, sock: socket.socket, *args: Any, **kwargs: Any) -> object:
        server = kwargs.get("server")
        if server is not None and not server.is_serving():
            sock.close()
            raise ConnectionAbortedError(errno.ECONNABORTED, "the server has closed")
        return make(loop, sock, *args, **kwargs)

    loops._make_socket_transport = make_or_close
