"""`onecopy token` and `onecopy role` against a real node: each subcommand, and what goes wrong."""

from __future__ import annotations

import asyncio
import json
import re
import stat
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from cluster.cli.main import main
from tests.nodes.conftest import MakeCluster
from tests.support.cluster import Cluster
from tests.support.commands import Ended, run

pytestmark = pytest.mark.slow  # a real node

TOKEN = re.compile(r"oct_[0-9a-f]{16}_[A-Za-z0-9_-]{43}")


class Asking:
    """Runs commands against the cluster, as its administrator unless `token` says otherwise."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        assert cluster.token is not None
        self.admin = cluster.token.text

    async def __call__(
        self, *arguments: str | Path, code: int = 0, token: str | None = None
    ) -> Ended:
        env = {
            "ONECOPY_ENDPOINTS": self.cluster.url("n1"),
            "ONECOPY_TOKEN": self.admin if token is None else token,
        }
        words = list(map(str, arguments))
        # In a thread of this process: a process for each would be most of the time.
        done = await asyncio.to_thread(CliRunner().invoke, main, words, env=env)
        ended = Ended(done.exit_code, done.stdout_bytes, done.stderr)
        assert ended.code == code, (arguments, ended)
        return ended

    async def make(self, role: str) -> str:
        return (await self("token", "create", role)).out.decode().strip()


@pytest.fixture
async def ask(make_cluster: MakeCluster) -> Asking:
    cluster = make_cluster(replicas=1, access={"audit_file": "audit-{node}.jsonl"})
    await cluster.start()
    return Asking(cluster)


async def test_roles_and_tokens_from_the_first_to_the_last(ask: Asking, tmp_path: Path) -> None:
    await ask("role", "set", "app", "--read", "app/", "--read", "shared/", "--write", "app/")
    await ask("role", "set", "locks", "--lock", "jobs", "--watch", "", "--call", "*")
    listed = (await ask("role", "list")).out.decode()
    assert "app: read 'app/', 'shared/'; write 'app/'" in listed
    assert "locks: watch ''; lock 'jobs'; call '*'" in listed
    roles = json.loads((await ask("role", "list", "--json")).out)["roles"]
    assert {"admin", "app", "locks"} >= {item["name"] for item in roles} >= {"app", "locks"}
    file = tmp_path / "worker.token"
    made = await ask("token", "create", "app", "--note", "worker 1", "--output", file)
    worker = file.read_text().strip()
    assert TOKEN.fullmatch(worker)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert worker not in made.err + made.out.decode()
    token_id = worker.split("_")[1]
    assert token_id in made.err
    listed = (await ask("token", "list")).out.decode()
    assert f"{token_id}  app  worker 1" in listed
    assert not TOKEN.search(listed + (await ask("token", "list", "--json")).out.decode())
    await ask("put", "app/k", "v", "--token-file", file, token="")
    assert (await ask("get", "app/k", token=worker)).out == b"v"
    # A file that is named counts, not the environment.
    assert (await ask("get", "app/k", "--token-file", file, token="oct_wrong")).out == b"v"
    assert "forbidden" in (await ask("put", "b", "v", "--json", code=1, token=worker)).err
    for command in (("token", "list"), ("role", "list"), ("role", "delete", "app")):
        assert "admin" in (await ask(*command, code=1, token=worker)).err
    assert "its tokens" in (await ask("role", "delete", "app", code=1)).err
    assert json.loads((await ask("token", "revoke", token_id, "--json")).out) == {
        "revoked": token_id
    }
    refused = await ask("get", "app/k", code=1, token=worker)
    assert "the token is unknown, or was revoked" in refused.err
    assert worker not in refused.err
    await ask("role", "delete", "app")
    await ask("role", "delete", "locks")
    assert (await ask("token", "list")).out.decode().splitlines() == [
        f"{ask.admin.split('_')[1]}  admin  from the configuration"
    ]
    _audited(ask, [worker])


def _audited(ask: Asking, tokens: list[str]) -> None:
    """The audit log has who changed what, and the refusals; no token, no value."""
    text = (ask.cluster.directory / "audit-n1.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert not TOKEN.search(text)
    changes = {
        (line["method"], line["path"], line["status"]) for line in lines if line["event"] == "admin"
    }
    assert {
        ("PUT", "/v1/roles/app", 201), ("POST", "/v1/tokens", 201), ("DELETE", "/v1/roles/app", 200)
    } <= changes  # fmt: skip
    admin, worker = ask.admin.split("_")[1], tokens[0].split("_")[1]
    by = {line["token"] for line in lines if line["event"] == "admin"}
    assert admin in by
    refused = [line for line in lines if line["event"] == "refused"]
    assert {401, 403} <= {line["status"] for line in refused}
    assert worker in {line["token"] for line in refused}
    assert all(line["node"] == "n1" and line["remote"] for line in lines)
    assert stat.S_IMODE((ask.cluster.directory / "audit-n1.jsonl").stat().st_mode) == 0o600
    log = ask.cluster.nodes["n1"].log()
    assert not TOKEN.search(log)
    found = subprocess.run(
        ["grep", "-rqF", tokens[0], str(ask.cluster.data("n1"))], check=False
    )  # only hashes are kept
    assert found.returncode == 1


async def test_nobody_locks_every_administrator_out(ask: Asking) -> None:
    admin = ask.admin.split("_")[1]
    assert "make another first" in (await ask("token", "revoke", admin, code=1)).err
    await ask("role", "set", "boss", "--admin")
    boss = await ask.make("boss")
    await ask("token", "revoke", admin)
    for command in (
        ("token", "revoke", boss.split("_")[1]),
        ("role", "set", "boss", "--read", ""),
        ("role", "delete", "boss"),
    ):
        refused = (await ask(*command, code=1, token=boss)).err
        assert "error:" in refused, command
        assert "Nothing was applied" in refused
    assert "boss: admin" in (await ask("role", "list", token=boss)).out.decode()
    assert "revoked" in (await ask("token", "list", code=1)).err


async def test_bad_input_is_told_by_name_and_changes_nothing(ask: Asking, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_text("kept")
    for arguments, code, words in (
        (("role", "set", "UPPER", "--read", ""), 1, "a role is called by 1 to 31"),
        (("role", "set", "admin", "--read", ""), 1, "built in"),
        (("role", "set", "long", "--read", "x" * 600), 1, "$.read[0]"),
        (("role", "delete", "nobody"), 1, "no role 'nobody'"),
        (("role", "delete", "admin"), 1, "built in"),
        (("token", "create", "nobody"), 1, "no role 'nobody'"),
        (("token", "create", "admin", "--note", "x" * 300), 1, "note"),
        (("token", "create", "admin", "--output", there), 2, "already exists"),
        (("token", "revoke", "0" * 16), 1, "no token"),
        (("token", "revoke", "../x"), 1, "is no name"),
        (("token", "revoke", ask.admin), 2, f"its ID is {ask.admin.split('_')[1]}"),
        (("token", "revoke", ask.admin[:-1]), 1, "no token"),
        (("token", "list", "--token-file", ask.admin), 2, "holds the token, not the token"),
        (("token", "list", "--token-file", tmp_path / "none"), 2, "No such file"),
        (("token", "list", "--token", ask.admin), 2, "No such option"),  # `ps` would show it
        (("token", "init", there), 1, "already exists"),
        (("token", "init", tmp_path / "no" / "file"), 1, "No such file"),
    ):
        ended = await ask(*arguments, code=code)
        assert words in ended.err, (arguments, ended)
        assert "Traceback" not in ended.err
        assert ask.admin[21:30] not in ended.err, "A2"
    assert ask.admin[21:30] not in ask.cluster.nodes["n1"].log()
    assert ask.admin[21:30] not in (ask.cluster.directory / "audit-n1.jsonl").read_text()
    two_lines = tmp_path / "two lines"
    two_lines.write_text(f"{ask.admin}\n{ask.admin}\n")
    assert "token" in (await ask("token", "list", "--token-file", two_lines, code=2)).err
    assert there.read_text() == "kept"
    assert len((await ask("token", "list")).out.splitlines()) == 1
    assert json.loads((await ask("role", "list", "--json")).out)["roles"] in (
        [], [{"name": "admin", "rights": {"admin": True}}]
    )  # fmt: skip


async def test_the_first_token_is_drawn_before_there_is_a_cluster(tmp_path: Path) -> None:
    file = tmp_path / "admin.token"
    drawn = await run("token", "init", file)
    assert drawn.code == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    token = file.read_text().strip()
    assert TOKEN.fullmatch(token)
    assert token not in drawn.out.decode() + drawn.err
    assert re.fullmatch(
        r'\[access\]\nadmin_token_hash = "[0-9a-f]{16}:[0-9a-f]{64}"\n', drawn.out.decode()
    )
