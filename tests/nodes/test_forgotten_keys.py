"""Real nodes with a client table as small as may be configured: what it forgot is refused."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from cluster.bulk.checkpoint import read_checkpoint, write_checkpoint
from cluster.client.errors import UnknownOutcomeError
from tests.nodes.conftest import MakeCluster
from tests.support.commands import finish, run, start

pytestmark = pytest.mark.slow

TABLE_BYTES = 4_194_304
FILLING = 45_000  # records, each of which costs more than 100 bytes of it


@pytest.mark.long
async def test_a_repeat_whose_key_is_forgotten_is_refused_not_executed(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    cluster = make_cluster(limits={"client_table_bytes": TABLE_BYTES})
    await cluster.start()
    urls = [cluster.url(node) for node in cluster.specs]
    filling, cut = tmp_path / "filling.tsv", tmp_path / "cut.tsv"
    filling.write_text("".join(f"fill{number % 100}\tv\n" for number in range(FILLING)))
    cut.write_text("counted\t1\nbad line\n")
    async with cluster.client() as client:
        first = await client.put("k", b"mine", idempotency_key="mine")
        # A load that was killed after its first record had been written, before the checkpoint
        # said so.
        assert (await run("load", cut, endpoints=urls)).code == 1
        kept = read_checkpoint(cut)
        assert kept is not None
        assert (kept.line, kept.reach > 1) == (1, True)
        assert kept.revision >= first.revision
        earlier = msgspec.structs.replace(
            kept, line=0, position=0, records=0, revision=first.revision
        )
        write_checkpoint(cut, earlier)
        loaded = await client.get("counted")

        options = ("--json", "--batch", "1")  # else many records have one key together
        filled = await finish(await start("load", filling, *options, endpoints=urls), seconds=180)
        assert filled.code == 0, filled.err
        assert json.loads(filled.out)["acknowledged"] == FILLING

        newer = await client.put("k", b"another's")
        with pytest.raises(UnknownOutcomeError) as refused:
            await client.put("k", b"mine", idempotency_key="mine")
        assert (refused.value.code, refused.value.status) == ("idempotency_key_expired", 410)
        again = ("--idempotency-key", "mine", "--idempotency-after", "1")
        ended = await run("put", "k", "mine", *again, endpoints=urls)
        assert ended.code == 5
        entry = await client.get("k")
        assert entry is not None
        assert (entry.value, entry.revision) == (b"another's", newer.revision)
        resumed = await run("load", cut, endpoints=urls)
        assert resumed.code == 5, resumed.err
        assert "--restart" in resumed.err
        assert await client.get("counted") == loaded, "the record was written twice"
