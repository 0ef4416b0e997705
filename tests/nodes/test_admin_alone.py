"""Without a primary: the token of a node's configuration file, and no other, still does two things.

`onecopy backup --stale` and `onecopy remove --force`, on that node (A1, docs/decisions/0031).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.services.access_guard import draw_token, hash_line
from tests.nodes.conftest import MakeCluster
from tests.support.cluster import Cluster, wait_until
from tests.support.commands import Ended, run

pytestmark = pytest.mark.slow  # real nodes

HINT = "admin_token_hash in the configuration file"


async def ask(cluster: Cluster, node: str, token: str, *words: str | Path) -> Ended:
    """Run a command against one node."""
    return await run(
        *words, "--no-discover", "--timeout-ms", "2000",
        endpoints=[cluster.url(node)], ONECOPY_TOKEN=token,
    )  # fmt: skip


async def second_admin(cluster: Cluster) -> str:
    """Return another administrator's token."""
    async with cluster.client() as admin:
        return (await admin.create_token("admin")).token


async def decides_no_longer(cluster: Cluster, node: str, token: str) -> None:
    """Wait until what a node knows of rights is too old to go by."""
    headers = {"Authorization": f"Bearer {token}"}

    async def is_refused() -> bool:
        target = "/v1/kv/k?consistency=stale&timeout_ms=100"
        return (await cluster.fetch(node, "GET", target, None, headers)).status == 503

    await wait_until(is_refused, "its knowledge of rights is too old")


def audited(cluster: Cluster, node: str) -> list[tuple[str, str]]:
    """Return what was done for administrators at a node, and under which token."""
    lines = (cluster.directory / f"audit-{node}.jsonl").read_text().splitlines()
    done = [line for line in map(json.loads, lines) if line["event"] == "admin"]
    return [(line["path"], line["token"]) for line in done if line["status"] == 200]


def forged(token: str) -> str:
    """Return a token of the same id."""
    known = len("oct_0123456789abcdef_")
    return token[:known] + draw_token().text[known:]


async def a_new_hash_will_do(cluster: Cluster, backup: str, file: Path, other: str) -> None:
    """Put the hash of a new token into the file, take a backup under that, and put it back."""
    assert cluster.token is not None
    new, held = draw_token(), cluster.config_path.read_text()
    await cluster.kill(backup)
    cluster.config_path.write_text(held.replace(hash_line(cluster.token), hash_line(new)))
    cluster.launch(backup)
    await cluster.wait_started(backup)
    await decides_no_longer(cluster, backup, other)
    anew = await ask(cluster, backup, new.text, "backup", file, "--stale")
    assert anew.code == 0, anew
    assert (await run("backup", "verify", file)).code == 0
    await cluster.kill(backup)
    cluster.config_path.write_text(held)
    cluster.launch(backup)
    await cluster.wait_started(backup)


async def test_a_stale_backup_under_the_token_of_the_nodes_file(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    cluster = make_cluster(replicas=2, witnesses=1, access={"audit_file": "audit-{node}.jsonl"})
    await cluster.start()
    assert cluster.token is not None
    own, other = cluster.token.text, await second_admin(cluster)
    async with cluster.client() as admin:
        await admin.put("k", b"v")
    await cluster.wait_converged()
    primary = await cluster.primary()
    [backup] = cluster.others(primary)
    await cluster.kill(primary, "w1")

    await decides_no_longer(cluster, backup, other)
    file = tmp_path / "kept.backup"
    for token in (other, forged(own), draw_token().text):
        refused = await ask(cluster, backup, token, "backup", file, "--stale")
        assert (refused.code, HINT in refused.err) == (6, True), refused
    fresh = await ask(cluster, backup, own, "backup", file)
    assert (fresh.code, HINT in fresh.err) == (6, False), fresh
    for words in (["get", "k"], ["token", "list"]):
        refused = await ask(cluster, backup, own, *words)
        assert (refused.code, HINT in refused.err) == (6, False), refused
    assert not file.exists()
    written = await ask(cluster, backup, own, "backup", file, "--stale")
    assert written.code == 0, written
    assert (await run("backup", "verify", file)).code == 0
    log = cluster.nodes[backup].log()
    assert "GET /v1/backup by the administrator of this node's configuration file" in log
    assert own not in log
    assert audited(cluster, backup) == [("/v1/backup", own.split("_")[1])]

    await a_new_hash_will_do(cluster, backup, tmp_path / "anew.backup", other)

    await cluster.start(primary, "w1")
    async with cluster.client(token=other) as admin:
        await admin.revoke_token(own.split("_")[1])
        primary = (await admin.status()).primary
    [backup] = cluster.others(primary)
    authorization = {"Authorization": f"Bearer {own}"}

    async def is_revoked() -> bool:
        return (
            await cluster.fetch(backup, "GET", "/v1/whoami", headers=authorization)
        ).status == 401

    await wait_until(is_revoked, "the other replica knows it")
    await cluster.kill(primary, "w1")
    await decides_no_longer(cluster, backup, other)
    refused = await ask(cluster, backup, own, "backup", tmp_path / "later.backup", "--stale")
    assert (refused.code, HINT in refused.err) == (6, True), refused


async def test_a_removal_by_force_under_the_token_of_the_nodes_file(
    make_cluster: MakeCluster,
) -> None:
    """A majority lives, and nobody can become the primary: the only replica in sync is gone."""
    cluster = make_cluster(replicas=2, witnesses=2, access={"audit_file": "audit-{node}.jsonl"})
    await cluster.start()
    assert cluster.token is not None
    own, other = cluster.token.text, await second_admin(cluster)
    await cluster.wait_converged()
    primary = await cluster.primary()
    [backup] = cluster.others(primary)
    await cluster.kill(backup)
    await cluster.wait_in_sync(primary)
    await cluster.kill(primary)
    cluster.launch(backup)
    await cluster.wait_started(backup)

    words = ("remove", "w2", "--force", "--yes-remove", "w2")
    for node, token in ((backup, other), (backup, forged(own)), ("w1", own)):
        refused = await ask(cluster, node, token, *words)
        assert (refused.code, HINT in refused.err) == (6, True), refused
    without_force = await ask(cluster, backup, own, "remove", "w2", "--yes")
    assert (without_force.code, HINT in without_force.err) == (6, False), without_force
    removed = await ask(cluster, backup, own, *words)
    assert removed.code == 0, removed
    text = (await ask(cluster, backup, own, "status", "--json")).out.decode()
    assert '"w2"' not in text
    audited = (cluster.directory / f"audit-{backup}.jsonl").read_text().splitlines()
    [line] = [json.loads(line) for line in audited if '"event":"admin"' in line]
    assert (line["token"], line["method"], line["status"]) == (own.split("_")[1], "DELETE", 200)
