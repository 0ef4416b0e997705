"""GET /v1/cluster's body: valid by its own OpenAPI, and silent on what is not known."""

from __future__ import annotations

import ast
from pathlib import Path

import jsonschema
import msgspec
import pytest

from cluster.api.openapi_services import openapi_document
from cluster.services.kv import KeyValue
from datapath.operations import NODE_STATES, ClusterStatus, NodeState, NodeStateWord
from tests.support.replicas import QUICK, running, until


def check(status: ClusterStatus) -> None:
    """Fail unless it is valid by the schema that is served."""
    schema = {"$ref": "#/components/schemas/ClusterStatus", **openapi_document({})}
    jsonschema.Draft202012Validator(schema).validate(
        msgspec.json.decode(msgspec.json.encode(status))
    )


def status_of(state: NodeStateWord) -> ClusterStatus:
    node = NodeState(role="replica", client="127.0.0.1:1", state=state)
    return ClusterStatus(
        cluster="c", cluster_id="", epoch=0, version=0, primary="", in_sync=(), nodes={"n1": node}
    )


@pytest.mark.parametrize("state", NODE_STATES)
def test_every_state_is_valid(state: NodeStateWord) -> None:
    check(status_of(state))


def test_another_state_is_not() -> None:
    with pytest.raises(jsonschema.ValidationError):
        check(status_of("asleep"))  # type: ignore[arg-type]


def test_the_program_says_no_other_state() -> None:
    said = set()
    for name in ("status.py", "gateway.py"):
        for node in ast.walk(ast.parse((Path("datapath/node") / name).read_text())):
            if isinstance(node, ast.Assign | ast.AnnAssign) and "state" in ast.dump(node):
                said |= {
                    item.value
                    for item in ast.walk(node)
                    if isinstance(item, ast.Constant) and isinstance(item.value, str)
                }
    assert {"primary", "unreachable", "unknown"} <= said <= {*NODE_STATES, "replicate"}


@pytest.mark.slow
async def test_what_each_node_says_in_good_and_bad_times(tmp_path: Path) -> None:
    async with running(tmp_path, KeyValue, timing=QUICK) as cluster:
        await cluster["n1"].execute("put", b"k", b"v")

        def own(node: str) -> ClusterStatus:
            status = cluster[node].gateway._own_status()
            check(status)
            return status

        assert {item.state for item in own("n1").nodes.values()} == {"primary", "backup"}
        await until(
            lambda: own("n2").nodes["n3"].state == "unknown", "n2 is in touch with n3 again"
        )
        assert own("n2").nodes["n2"].state == "backup"
        assert own("n2").nodes["n3"].applied_index is None
        await cluster.stop("n3")
        await until(lambda: own("n1").nodes["n3"].state == "unreachable", "n3 is missed")
        await until(lambda: own("n2").nodes["n3"].state == "unreachable", "n2 misses it, too")
        for node in ("n1", "n2"):
            gone = own(node).nodes["n3"]
            assert (gone.applied_index, gone.durable_index, gone.lag) == (None, None, None)
