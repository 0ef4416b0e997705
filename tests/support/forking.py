"""Nodes forked from a process that has imported onecopy: a start costs 10 ms of CPU, not 450.

`fork` starts a node as `python -m cluster.cli.main` would: a process of its own, with this one's
environment and umask. Linux only; `tests.support.cluster` takes it where a test asks for no other
command. Programs and pages of documentation start nodes as users do.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parents[2]
SERVERS = 2
"""Each has its own seed of hashes: the nodes of a cluster do not all agree on the order of sets."""
MAX_MESSAGE_BYTES = 100_000  # the environment is most of it
ANSWER_TIMEOUT_S = 60.0


class Order(msgspec.Struct):
    """A process to be: its arguments after `onecopy`, and where its output is appended."""

    arguments: list[str]
    output: str
    environment: dict[str, str]
    umask: int


class Started(msgspec.Struct, tag=True):
    """The answer to an order."""

    pid: int


class Ended(msgspec.Struct, tag=True):
    """Sent once for each process; the code is as `subprocess.Popen.returncode`."""

    pid: int
    code: int


# -- in the tests


class Forked:
    """A process that was forked: what `NodeProcess` needs of `subprocess.Popen`."""

    def __init__(self, server: Server, pid: int) -> None:
        self._server = server
        self.pid = pid

    def poll(self) -> int | None:
        self._server.hear()
        return self._server.ended.get(self.pid)

    def wait(self) -> int:
        while (code := self.poll()) is None:
            self._server.hear(ANSWER_TIMEOUT_S)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Server:
    """The tests' end: ends with this process, and its nodes with it."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.forking", str(theirs.fileno())],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._started: list[int] = []
        self.ended: dict[int, int] = {}
        atexit.register(self.close)

    def close(self) -> None:
        """End the server, and with it the nodes that are left."""
        self._channel.close()
        self.process.wait()

    def fork(self, arguments: Sequence[str], output: Path) -> Forked:
        output.touch()
        umask = os.umask(0)
        os.umask(umask)
        order = Order(
            [*arguments, "--supervised-by", str(self.process.pid)],
            str(output),
            dict(os.environ),
            umask,
        )
        self._channel.send(msgspec.json.encode(order))
        while not self._started:
            assert self.hear(ANSWER_TIMEOUT_S), "the server answers"
        return Forked(self, self._started.pop())

    def hear(self, timeout_s: float = 0.0) -> bool:
        """Take what the server says until it falls silent; False: it said nothing."""
        heard = False
        while select.select([self._channel], [], [], 0.0 if heard else timeout_s)[0]:
            heard = True
            message = self._channel.recv(MAX_MESSAGE_BYTES)
            assert message, "the server that forks has ended"
            match msgspec.json.decode(message, type=Started | Ended):
                case Started(pid):
                    self.ended.pop(pid, None)  # of an earlier process of this id
                    self._started.append(pid)
                case Ended(pid, code):
                    self.ended[pid] = code
        return heard


@functools.cache
def _server(number: int) -> Server:
    return Server()


def fork(node: str, arguments: Sequence[str], output: Path) -> Forked:
    """Start `onecopy` with arguments, for this node; what it prints is appended to a file."""
    return _server(ord(node[-1]) % SERVERS).fork(arguments, output)


# -- in the server


def serve(channel: socket.socket) -> Order:
    """Fork for each order, until the tests end; return in each process that is to carry out one."""
    children: dict[int, int] = {}  # the process of each descriptor
    while True:
        for ready in select.select([channel.fileno(), *children], [], [])[0]:
            if ready != channel.fileno():
                pid = children.pop(ready)
                os.close(ready)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                channel.send(msgspec.json.encode(Ended(pid, code)))
            elif message := channel.recv(MAX_MESSAGE_BYTES):
                if (pid := os.fork()) == 0:
                    for descriptor in children:
                        os.close(descriptor)
                    channel.close()
                    return msgspec.json.decode(message, type=Order)
                children[os.pidfd_open(pid)] = pid
                channel.send(msgspec.json.encode(Started(pid)))
            else:
                sys.exit()


def carry_out(order: Order) -> None:
    """Become the process that was ordered."""
    os.setsid()
    os.umask(order.umask)
    os.environ.clear()
    os.environ.update(order.environment)
    output = os.open(order.output, os.O_WRONLY | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.close(output)
    sys.argv = ["onecopy", *order.arguments]
    main(prog_name="onecopy")


if __name__ == "__main__":
    import uvloop  # noqa: F401 -- for those that are forked

    import cluster.cli.serve  # noqa: F401
    from cluster.cli.main import main

    carry_out(serve(socket.socket(fileno=int(sys.argv[1]))))
