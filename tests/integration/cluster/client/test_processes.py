"""The plain client where programs fork, end, forget to close it, or call it from odd places."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable

import pytest

from cluster.client.aio import AsyncClient
from cluster.client.errors import UnavailableError, UnknownOutcomeError
from cluster.client.sync import Client
from tests.support.commands import ROOT, Ended
from tests.support.fake_api import FakeCluster

HANGS_AFTER_S = 25.0
DEV = ("-X", "dev")  # ResourceWarnings are shown, what is closed twice is told
OPEN = "len(os.listdir('/proc/self/fd'))"


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


SLOW_STEP = re.compile(r"Executing <.* took \d+\.\d+ seconds$")


async def program(code: str, *arguments: str, options: tuple[str, ...] = DEV) -> Ended:
    """Run a program to its end; one that hangs fails the test."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *options, "-c", textwrap.dedent(code), *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        async with asyncio.timeout(HANGS_AFTER_S):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise AssertionError("the program hangs") from None
    assert process.returncode is not None
    # Development mode tells of each step of a loop that took long: on a loaded machine any may.
    told = "".join(line for line in err.decode().splitlines(True) if not SLOW_STEP.match(line))
    return Ended(process.returncode, out, told)


HEAD = """
import atexit, gc, operator, os, signal, sys, threading, time, warnings
from cluster.client.errors import ClientError
from cluster.client.sync import Client
url = sys.argv[1]
"""

FORKED = {
    "os": """
        pid = os.fork()
        if pid == 0:
            in_child()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    """,
    "a whole exit": """
        pid = os.fork()
        if pid == 0:
            in_child()
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    """,
    "unused": """
        pid = os.fork()
        if pid == 0:
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        c.put("child", b"2")
    """,
    "closed": """
        pid = os.fork()
        if pid == 0:
            c.close()
            c.close()
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        c.put("child", b"2")
    """,
    "dropped": """
        pid = os.fork()
        if pid == 0:
            del c
            gc.collect()
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        c.put("child", b"2")
    """,
    "grandchild": """
        pid = os.fork()
        if pid == 0:
            in_child()
            pid = os.fork()
            if pid == 0:
                in_child()
                sys.exit(0)
            assert os.waitpid(pid, 0)[1] == 0
            in_child()
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    """,
    "multiprocessing": """
        import multiprocessing
        process = multiprocessing.get_context("fork").Process(target=in_child)
        process.start()
        process.join()
        assert process.exitcode == 0
    """,
    "threads": """
        pid = os.fork()
        if pid == 0:
            threads = [threading.Thread(target=in_child) for _ in range(8)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            in_child()
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    """,
}


@pytest.mark.parametrize("way", FORKED)
async def test_after_a_fork_both_go_on(nodes: FakeCluster, way: str) -> None:
    code = (
        HEAD
        + textwrap.dedent("""
        signal.alarm(20)
        c = Client(url, timeout_ms=3000)
        c.put("parent", b"1")
        def in_child():
            signal.alarm(20)
            assert c.put("child", b"2").revision > 1
            assert c.get("parent").value == b"1"
            assert c.cluster_id == "fake"
        """)
        + textwrap.dedent(FORKED[way])
        + textwrap.dedent("""
        for number in range(20):
            c.put("parent", b"1")
        assert c.get("child").value == b"2"
        c.close()
        print("done")
        """)
    )
    ended = await program(code, nodes["n2"].url)
    assert (ended.code, ended.out, ended.err) == (0, b"done\n", "")


async def test_a_forked_child_talks_to_no_other_cluster(nodes: FakeCluster) -> None:
    code = HEAD + textwrap.dedent("""
        c = Client(url, timeout_ms=500, cluster_id="another")
        if os.fork() == 0:
            try:
                c.put("child", b"2")
            except ClientError as error:
                print(type(error).__name__, flush=True)
            os._exit(0)
        os.wait()
        c.close()
    """)
    ended = await program(code, nodes["n1"].url)
    assert (ended.out, ended.err) == (b"WrongClusterError\n", "")
    assert nodes.core.executed == 0


EXITS = {
    "a finalizer that closes": """
        class Repository:
            def __init__(self): self.c = Client(url, timeout_ms=3000)
            def __del__(self): self.c.close()
        kept = Repository(); kept.c.put("k", b"1")
    """,
    "a finalizer in a cycle": """
        class Repository:
            def __init__(self): self.c = Client(url, timeout_ms=3000); self.self = self
            def __del__(self): self.c.close()
        kept = Repository(); kept.c.put("k", b"1"); del kept
    """,
    "a finalizer that writes": """
        class Repository:
            def __init__(self): self.c = Client(url, timeout_ms=3000)
            def __del__(self):
                try: self.c.put("last", b"1")
                except RuntimeError as error: print(error, file=sys.stdout, flush=True)
        sys.repository = Repository(); sys.repository.c.put("k", b"1")
    """,
    "atexit": """
        c = Client(url); c.put("k", b"1"); atexit.register(c.close)
    """,
    "atexit, registered before": """
        late = []
        atexit.register(lambda: [c.close() for c in late])
        late.append(Client(url)); late[0].put("k", b"1")
    """,
    "not closed": """
        c = Client(url); c.put("k", b"1")
    """,
    "never used": """
        c = Client(url)
    """,
    "amid a listing": """
        c = Client(url); c.put("k", b"1"); listing = c.list(); next(listing)
    """,
    "an exception": """
        c = Client(url); c.put("k", b"1"); raise SystemExit(0)
    """,
    "another thread in a call": """
        c = Client(url, timeout_ms=20000); c.put("k", b"1")
        def ask():
            try:
                while True: c.get("k")
            except (RuntimeError, ClientError): pass
        threading.Thread(target=ask, daemon=True).start()
    """,
}


@pytest.mark.parametrize("way", EXITS)
async def test_a_program_ends(nodes: FakeCluster, way: str) -> None:
    ended = await program(HEAD + textwrap.dedent(EXITS[way]), nodes["n1"].url)
    assert ended.code == 0, ended.err
    assert "Traceback" not in ended.err
    assert "unclosed" not in ended.err


async def test_one_that_is_dropped_leaves_nothing_and_is_told_of(nodes: FakeCluster) -> None:
    code = HEAD + textwrap.dedent(f"""
        with Client(url) as first:
            first.put("k", b"1")
        def settle(wanted):
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                gc.collect()
                found = (threading.active_count(), {OPEN})
                if all(map(operator.le, found, wanted)): return
                time.sleep(0.01)
            raise AssertionError((wanted, found))
        before = (threading.active_count(), {OPEN})
        warnings.simplefilter("always")
        with warnings.catch_warnings(record=True) as caught:
            for number in range(10):
                c = Client(url); c.put("k", b"1")
            del c
            settle(before)
        told = [str(item.message) for item in caught if item.category is ResourceWarning]
        assert len(told) == 10, told
        assert "Client" in told[0]
        for number in range(10):
            with Client(url) as c: c.put("k", b"1")
        settle(before)
        try: Client("ftp://x")
        except ValueError: pass
        settle(before)
        print("done")
    """)
    ended = await program(code, nodes["n1"].url)
    assert (ended.code, ended.out, ended.err) == (0, b"done\n", "")


async def test_a_call_under_way_when_it_is_closed_ends_at_once(nodes: FakeCluster) -> None:
    for server in nodes.servers.values():
        server.node.pace_s = 15.0
    client = Client(nodes["n1"].url, timeout_ms=60_000, discover=False)
    call = asyncio.create_task(asyncio.to_thread(client.put, "k", b"1"))
    await until(lambda: nodes["n1"].node.requests > 0)
    await asyncio.to_thread(client.close)
    async with asyncio.timeout(10):
        with pytest.raises(UnknownOutcomeError):
            await call


async def test_its_time_out_holds_though_its_thread_is_stuck(nodes: FakeCluster) -> None:
    code = HEAD + textwrap.dedent("""
        import cluster.client.loop_thread as thread
        thread.STUCK_AFTER_S = 0.2
        c = Client(url, timeout_ms=300)
        c.put("k", b"1")
        stuck = threading.Event()
        c._here().runner._loop.call_soon_threadsafe(stuck.wait, 20)
        for call in (lambda: c.get("k"), lambda: c.put("k", b"2", idempotency_key="mine")):
            try: call()
            except ClientError as error:
                print(type(error).__name__, getattr(error, "idempotency_key", ""), flush=True)
        stuck.set()
        c.close()
    """)
    ended = await program(code, nodes["n1"].url, options=())
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == b"UnavailableError \nUnknownOutcomeError mine\n"


def test_another_event_loop_is_told_so() -> None:
    def in_a_loop(work: Callable[[], object]) -> None:
        async def main() -> None:
            await work()  # type: ignore[misc]

        asyncio.run(main())

    client = AsyncClient("127.0.0.1:9", timeout_ms=50)

    async def use() -> None:
        with pytest.raises(UnavailableError):
            await client.get("k")

    in_a_loop(use)
    for call in (
        lambda: client.get("k"),
        lambda: client.put("k", b"v"),
        client.status,
        lambda: client.digest("http://127.0.0.1:9"),
        lambda: anext(aiter(client.list())),
        client.close,
    ):
        with pytest.raises(RuntimeError, match=r"event loop .* now closed.* pytest"):
            in_a_loop(call)
    assert client._transport._session is not None
    client._transport._session.detach()  # its own loop would have closed it


async def test_a_closed_client_does_not_hide_what_may_have_been_applied(
    nodes: FakeCluster,
) -> None:
    for server in nodes.servers.values():
        server.node.pace_s = 15.0
    client = AsyncClient(nodes.endpoints[:1], timeout_ms=60_000, discover=False)
    call = asyncio.create_task(client.put("k", b"v"))
    await until(lambda: nodes["n1"].node.requests > 0)
    await client.close()
    async with asyncio.timeout(5):
        with pytest.raises(UnknownOutcomeError):
            await call
