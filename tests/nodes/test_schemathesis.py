"""The API document, tried against a live cluster by schemathesis, for each who may ask."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from cluster.client.results import RoleRights
from tests.nodes.conftest import MakeCluster

SCHEMATHESIS = shutil.which("schemathesis")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        SCHEMATHESIS is None,
        reason="needs schemathesis on PATH: pip install schemathesis (make install does not)",
    ),
]
# 503 and 504 are documented answers: of a node that is no primary, say.
CONFIG = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "503", "504"]
"""
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance"
)
NOT_TRIED = "watch|observe|nodes|handover"
"""Streams, which do not end, and what takes nodes out."""
RIGHTS = RoleRights(read=("",), write=("",), watch=("",), lock=("",), call=("*",))


@pytest.mark.parametrize(("who", "examples"), [("admin", 10), ("role", 10), ("nobody", 3)])
async def test_the_api_answers_as_its_document_says(
    make_cluster: MakeCluster, tmp_path: Path, who: str, examples: int
) -> None:
    assert SCHEMATHESIS is not None
    cluster = make_cluster(replicas=2, witnesses=1, tls=True, access={})
    await cluster.start()
    document = tmp_path / "openapi.json"
    document.write_bytes((await cluster.fetch("n1", "GET", "/openapi.json")).body)
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    assert cluster.token is not None
    token = {"admin": cluster.token.text, "nobody": ""}.get(who)
    async with cluster.client() as admin:
        if token is None:
            await admin.set_role("app", RIGHTS)
            token = (await admin.create_token("app")).token
    shown = ("--header", f"Authorization: Bearer {token}") if token else ()
    process = await asyncio.create_subprocess_exec(
        SCHEMATHESIS, "--config-file", str(config), "--no-color", "run", str(document),
        "--url", cluster.url("n1"), "--tls-verify", cluster.cacert, *shown,
        "--request-timeout", "10", "--max-examples", str(examples), "--seed", "15",
        "--phases", "examples,fuzzing", "--checks", CHECKS, "--continue-on-failure",
        "--exclude-path-regex", NOT_TRIED,
        cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()[-8000:]
    cluster.check_alive()
    for node in cluster.specs:
        assert "Traceback" not in cluster.nodes[node].log()
    async with cluster.client() as client:
        await client.put("after", b"all of it")
