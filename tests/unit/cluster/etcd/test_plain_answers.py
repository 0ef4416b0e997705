"""The answer to a plain read of a key is byte for byte what the ordinary way encodes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from cluster.etcd.answers import encode
from cluster.etcd.backend import Backend
from cluster.etcd.kv import KvCalls
from cluster.etcd.messages import RangeRequest
from datapath.operations import QueryResult

REVISIONS = st.integers(1, 2**63 - 1)
STORED = st.tuples(
    st.binary(max_size=20), REVISIONS, REVISIONS, REVISIONS, st.one_of(st.just(0), REVISIONS)
)


@given(st.binary(min_size=1, max_size=20), st.one_of(st.none(), STORED), st.integers(0, 2**63 - 1))
def test_a_plain_read_is_answered_as_any_other(key: bytes, stored: Any, revision: int) -> None:
    node = SimpleNamespace(views=SimpleNamespace(cluster_id=""), node_id="n1")
    calls = KvCalls(Backend(cast("Any", node), 1000, 1 << 20))
    for cluster_id in ("", "c1", "c1"):  # it becomes known some time
        node.views.cluster_id = cluster_id
        result = QueryResult(stored, revision, revision % 3, "n1")
        document = calls.key_document(RangeRequest(key=key), result)
        assert calls.plain_answer(key, result) == encode(document)
