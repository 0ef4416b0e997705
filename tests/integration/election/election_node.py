"""A member in a process: reads questions as lines of JSON, writes answers. See `NodeProcess`."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import resource
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec

from election.agreement import AgreementUnavailableError, Outcome, Refused
from election.pysyncobj_adapter import AgreementSettings, PySyncObjAgreement
from election.shared_secret import SharedSecret
from election.view import Bootstrap, Confirm, Member, View


def describe(outcome: Outcome) -> dict[str, Any]:
    view = getattr(outcome, "view", None)
    return {
        "outcome": type(outcome).__name__,
        "version": None if view is None else view.version,
        "reason": getattr(outcome, "reason", ""),
    }


class Node:
    def __init__(self, config: dict[str, Any]) -> None:
        self.failures: list[str] = []
        self.hoard: list[int] = []
        self.agreement = PySyncObjAgreement(
            AgreementSettings(
                **{
                    **config,
                    "directory": Path(config["directory"]),
                    "secret": SharedSecret(bytes.fromhex(config["secret"])),
                }
            )
        )
        self.agreement.on_failure(lambda error: self.failures.append(str(error)))

    async def answer(self, question: dict[str, Any]) -> Any:
        method = getattr(self, "do_" + question.pop("do"))
        return await method(**question)

    async def do_connected(self, count: int) -> str:
        while True:
            status = self.agreement.status
            if status is not None and len(status.connected) >= count and status.leader:
                return "connected"
            await asyncio.sleep(0.005)

    async def do_alone(self) -> str:
        while self.agreement.status is None or self.agreement.status.connected:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        return "alone"

    async def do_bootstrap(self, members: list[dict[str, str]]) -> Any:
        converted = msgspec.convert(members, tuple[Member, ...])
        return describe(
            await self.agreement.propose(Bootstrap("cluster", "n1", converted), 0, 5000)
        )

    async def do_confirm(self, timeout_ms: int = 5000) -> Any:
        """Propose on the view at hand, and on the newer one if that has been overtaken."""
        view: View | None = self.agreement.view
        while True:
            version = 0 if view is None else view.version
            outcome = await self.agreement.propose(Confirm(), version, timeout_ms)
            if not isinstance(outcome, Refused) or outcome.view in (None, view):
                return describe(outcome)
            view = outcome.view

    async def do_read(self, timeout_ms: int = 5000) -> Any:
        try:
            view = await self.agreement.read_view(timeout_ms)
        except AgreementUnavailableError:
            return "unavailable"
        return None if view is None else view.version

    async def do_status(self) -> Any:
        status = self.agreement.status
        assert status is not None
        view = self.agreement.view
        return msgspec.to_builtins(status) | {
            "version": None if view is None else view.version,
            "failures": self.failures,
            "cpu_s": resource.getrusage(resource.RUSAGE_SELF).ru_utime
            + resource.getrusage(resource.RUSAGE_SELF).ru_stime,
        }

    async def do_hold_gil(self, duration_ms: int) -> str:
        """Let another thread sit on the interpreter lock: nothing else runs meanwhile."""
        usleep = ctypes.PyDLL(None).usleep  # PyDLL keeps the lock during the call.
        thread = threading.Thread(target=usleep, args=(duration_ms * 1000,))
        thread.start()
        await asyncio.to_thread(thread.join)
        return "held"

    async def do_exhaust_descriptors(self) -> str:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
        try:
            while True:
                self.hoard.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            return "exhausted"

    async def do_release_descriptors(self) -> str:
        while self.hoard:
            os.close(self.hoard.pop())
        return "released"


async def main() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    node = Node(json.loads(await reader.readline()))
    await node.agreement.start()
    print(json.dumps("started"), flush=True)
    while line := await reader.readline():
        print(json.dumps(await node.answer(json.loads(line))), flush=True)
    await node.agreement.stop()
    transport.close()


if __name__ == "__main__":
    asyncio.run(main())
