"""A node that begins a cluster with data that it was given, and the others that join it."""

from __future__ import annotations

import struct

import pytest

from datapath.keyspaces import KV
from datapath.storage.founding import Founding, continue_after
from datapath.storage.store import Store
from tests.nodes.conftest import MakeCluster
from tests.support.cluster import Cluster
from tests.support.raw_http import kv

pytestmark = pytest.mark.slow

MAP_BYTES = 1 << 30
KEPT = (7, 3)


def give_data(cluster: Cluster, node: str) -> str:
    found = Founding(cluster.data(node), node)
    store = Store.open(found.store, cluster_id=found.cluster_id, map_size_bytes=MAP_BYTES)
    head = struct.pack(">QQQQ", KEPT[0], KEPT[0], 1, 0)
    store.apply([[] for _ in range(KEPT[0] - 1)], KEPT[0] - 1, KEPT[1])
    store.apply([[(KV, b"old", head + b"kept")]], *KEPT)
    store.flush()
    store.close()
    return found.finish(*KEPT, MAP_BYTES).cluster_id


async def test_a_founder_that_is_not_the_first_replica_leads_and_the_others_get_its_data(
    make_cluster: MakeCluster,
) -> None:
    cluster: Cluster = make_cluster(replicas=2, witnesses=1)
    cluster_id = give_data(cluster, "n2")
    next_index, next_epoch = continue_after(*KEPT)
    await cluster.start("n2", in_sync=False)  # it waits for nobody
    got = await cluster.fetch("n2", "GET", kv("old"))
    assert (got.status, got.body, got.headers["etag"]) == (200, b"kept", f'"{KEPT[0]}"')
    await cluster.kill("n2")
    await cluster.start("n2", in_sync=False)  # nothing is founded twice
    cluster.launch("n1", "w1")
    await cluster.wait_in_sync("n1", "n2")
    status = await cluster.status("n1")
    assert status is not None
    assert status.cluster_id == cluster_id
    assert status.epoch >= next_epoch
    written = await cluster.fetch("n1", "PUT", kv("new"), b"1")
    assert int(written.headers["etag"].strip('"')) > next_index
    assert (await cluster.fetch("n1", "GET", kv("old"))).body == b"kept"
    early = await cluster.fetch("n1", "GET", f"/v1/watch?prefix=&after={KEPT[0]}")
    assert early.status == 410
    await cluster.wait_converged()
