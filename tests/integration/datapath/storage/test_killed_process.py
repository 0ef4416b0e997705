"""A process killed with SIGKILL loses nothing that it reported durable."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from datapath.storage.log import Log
from datapath.storage.store import Store

WRITER = """
import asyncio, sys
from datapath.storage.log_writer import LogWriter
from datapath.storage.store_flusher import StoreFlusher
from datapath.storage.log import Log
from datapath.records import make_record
from datapath.storage.store import Store

directory, seed = sys.argv[1], int(sys.argv[2])

def entry(index):
    return [(0, b"last", b"%d" % index), (0, b"key%d" % (index % 500), b"%d" % index),
            (1, b"gone%d" % index, b"x"), (1, b"gone%d" % (index - 1), None)]

async def main():
    store = Store.open(directory + "/store")
    log = Log.open(directory + "/log", segment_size_bytes=1 << 18,
                   base_index=store.durable_index, base_epoch=store.durable_epoch)
    index = store.applied_index + 1
    while batch := log.read(index, 1 << 20):
        for record in batch:
            entries = record.entries()[max(index - record.first_index, 0):]
            store.apply(entries, record.last_index, record.epoch)
            index = record.last_index + 1
    print("open", log.last_index, flush=True)
    written, progress, ticket = {}, asyncio.Event(), 0

    def done(ticket):
        # As a replica: the store gets what the log has on disk. Else, on a busy machine, it would
        # be flushed first, and a kill would leave a log that ends before its store.
        for number in sorted(number for number in written if number <= ticket):
            record = written.pop(number)
            store.apply(record.entries(), record.last_index, record.epoch)
        print("durable", store.applied_index, flush=True)
        flusher.applied()
        progress.set()

    def fail(error):
        print("error", error, flush=True)

    worker = LogWriter(log, store, on_done=done, on_error=fail)
    flusher = StoreFlusher(store, on_error=fail, flush_bytes=1 << 16, flush_age_ms=20,
        on_flushed=lambda flushed: print("flushed", flushed, flush=True))
    while True:
        for _ in range(3):
            count = 1 + (index * 7 + seed) % 9
            entries = [entry(index + n) for n in range(count)]
            record = make_record(index, 1 + seed, store.applied_index, entries)
            ticket += 1
            worker.append(ticket, [record])
            written[ticket] = record
            index = record.last_index + 1
        if index % 50 == 0:
            ticket += 1
            worker.submit(ticket, lambda: log.drop_before(store.durable_index))
        progress.clear()
        await progress.wait()

asyncio.run(main())
"""


def entry_writes(index: int) -> dict[bytes, bytes]:
    return {b"last": b"%d" % index, b"key%d" % (index % 500): b"%d" % index}


def state_at(index: int) -> dict[bytes, bytes]:
    state = {}
    for number in range(max(index - 499, 1), index + 1):
        state.update(entry_writes(number))
    return state


@pytest.mark.slow
def test_what_was_reported_durable_is_there_after_a_kill(tmp_path: Path) -> None:
    chance = random.Random(20)
    durable = flushed = 0
    for life in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(life)],
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            for _ in range(chance.randrange(50, 400)):
                word, _, number = process.stdout.readline().partition(" ")
                assert word in ("open", "durable", "flushed"), (word, number)
                durable = max(durable, int(number) if word != "flushed" else 0)
                flushed = max(flushed, int(number) if word == "flushed" else 0)
            process.send_signal(signal.SIGKILL)
            for line in process.stdout:  # what it had said before it died
                if line.startswith("durable") and line.endswith("\n"):
                    durable = max(durable, int(line.split()[1]))
        store = Store.open(tmp_path / "store")
        index = store.durable_index
        assert index >= flushed
        assert dict(store.range(0, b"", None, 10_000)) == state_at(index)
        assert store.range(1, b"", None, 10) == ([(b"gone%d" % index, b"x")] if index else [])
        log = Log.open(
            tmp_path / "log",
            segment_size_bytes=1 << 18,
            base_index=index,
            base_epoch=store.durable_epoch,
        )
        assert log.last_index >= durable
        assert log.first_index <= index + 1
        assert not log.repairs
        at = log.first_index
        while batch := log.read(at, 1 << 20):
            for item in batch:
                assert item.first_index == at
                for entry_index, writes in enumerate(item.entries(), at):
                    assert (writes[0][1], writes[0][2]) == (b"last", b"%d" % entry_index)
                at = item.last_index + 1
        assert at == log.last_index + 1
        log.close()
        store.close()
    assert durable > 200
    assert flushed > 0
