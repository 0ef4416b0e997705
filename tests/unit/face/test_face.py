"""The public face: what `import onecopy` offers, and what it does not load."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import onecopy

ROOT = Path(__file__).resolve().parents[3]
CLIENT_MODULES = {
    *("datapath", "datapath.clock", "datapath.errors", "datapath.operations"),
    *("datapath.keyspaces", "datapath.service", "datapath.tls_records"),
    *("cluster.groups", "cluster.groups.group_map", "cluster.groups.partition"),
    *("election", "election.identity", "election.view"),
}
"""What the client shares with a server: the shapes of answers, and of what they name."""


def loaded_by(code: str) -> set[str]:
    """Return the modules that a fresh interpreter has loaded after `code`."""
    program = f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return set(json.loads(done.stdout))


def test_importing_the_face_loads_nothing_heavy() -> None:
    loaded = loaded_by("import onecopy")
    foreign = {name.split(".")[0] for name in loaded - loaded_by("pass")}
    assert foreign - sys.stdlib_module_names == {"onecopy", "cluster"}
    assert not {name for name in loaded if name.startswith("cluster.")}


def test_the_client_loads_nothing_of_a_server() -> None:
    loaded = loaded_by("from onecopy import AsyncClient, Client")
    ours = {name for name in loaded if name.split(".")[0] in {"cluster", "datapath", "election"}}
    assert {name for name in ours if not name.startswith("cluster.client")} == {
        "cluster",
        *CLIENT_MODULES,
    }
    assert "aiohttp" in loaded
    assert not loaded & {"lmdb", "pysyncobj", "uvloop", "rich", "google_crc32c", "cryptography"}


def test_a_service_needs_no_http_and_no_disk() -> None:
    loaded = loaded_by("from onecopy import RejectedError, Service, Transaction, operation, query")
    assert not loaded & {"aiohttp", "lmdb", "pysyncobj"}


def test_type_checkers_and_the_run_time_see_the_same_names() -> None:
    tree = ast.parse(Path(onecopy.__file__).read_text())
    checked = {
        alias.asname or alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert checked == onecopy._MODULES
    assert sorted(checked) == sorted(onecopy.__all__)
    assert set(onecopy.__all__) <= set(dir(onecopy))


@pytest.mark.parametrize("name", onecopy.__all__)
def test_a_public_name_says_that_it_is_public(name: str) -> None:
    found = getattr(onecopy, name)
    if isinstance(found, type) and issubclass(found, msgspec.Struct):
        msgspec.json.schema(found)  # its annotations can still be read
    elif name != "DEFAULT_ENDPOINTS":
        assert found.__module__ == "onecopy"


def test_an_error_is_named_by_the_face_though_it_was_never_asked_for() -> None:
    loaded_by(
        """
from onecopy import Client
with Client("127.0.0.1:9", timeout_ms=50) as client:
    try:
        client.get("key")
    except Exception as error:
        assert type(error).__module__ == "onecopy", type(error)
    else:
        raise SystemExit("something listens on the discard port")
"""
    )


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'onecopy' has no attribute 'nothing'"):
        onecopy.nothing  # noqa: B018 -- the look-up is what is tested


@pytest.mark.parametrize("package", ["cluster", "datapath", "election"])
def test_the_packages_inside_have_an_empty_init(package: str) -> None:
    # PyPI's `cluster` is installed over ours, or ours over it: only an empty file survives that.
    assert (ROOT / package / "__init__.py").read_bytes() == b""


def test_a_broken_namesake_does_not_keep_the_face_from_working(tmp_path: Path) -> None:
    """PyPI's `cluster` imports pkg_resources, which Python 3.12 and newer come without."""
    site = tmp_path / "site"
    site.mkdir()
    for package in ("onecopy", "cluster", "datapath", "election"):
        copied = site / package
        copied.mkdir()
        for file in (ROOT / package).iterdir():
            if file.name not in {"__pycache__", "__init__.py"}:
                (copied / file.name).symlink_to(file)
        (copied / "__init__.py").write_bytes((ROOT / package / "__init__.py").read_bytes())
    (site / "cluster" / "__init__.py").write_text("import a_package_that_is_not_there\n")
    done = subprocess.run(
        [sys.executable, "-m", "onecopy", "get", "k", "--timeout-ms", "50"],
        cwd=site,
        env={"ONECOPY_ENDPOINTS": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 6, done.stderr
