"""The wheel, as users get it: built once, installed by pip into empty environments, and used.

Skipped only where pip reaches no package index.
"""

from __future__ import annotations

import email.parser
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from email.message import Message
from pathlib import Path

import pytest

from tests.support.cluster import wait_until
from tests.support.environments import (
    COMMAND_DEADLINE_S,
    PACKAGES,
    ROOT,
    Environment,
    build_wheel,
    environment,
    pip,
)
from tests.support.ports import free_up_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]  # pip, and real nodes

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
SERVER_MODULES = (
    *("cryptography", "google_crc32c", "lmdb", "prometheus_client", "pysyncobj", "rich", "uvloop"),
    "xxhash",
)
NAMESAKE = "cluster==1.4.1.post3"
"""PyPI's package of the same name as one of ours: both install `cluster/__init__.py`."""
USE_THE_FACE = """
import onecopy
assert onecopy.Client("http://127.0.0.1:9").endpoints == ("http://127.0.0.1:9",)
assert onecopy.Service.__module__ == "onecopy"
"""
TYPED_PROGRAM = """
import onecopy

def read(client: onecopy.Client) -> bytes:
    try:
        entry = client.get("key")
    except onecopy.UnavailableError as error:
        return error.code.encode()
    return entry.value if entry is not None else b""

class Counter(onecopy.Service):
    @onecopy.operation
    def add(self, tx: onecopy.Transaction, key: bytes) -> int:
        tx.put(key, b"1")
        return tx.index

reveal_type(read)
onecopy.Client().get(1)
"""


def find_python(version: str) -> str | None:
    """Return an interpreter of that version, on PATH or among pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = [f"python{version}", *map(str, pyenv.glob(f"versions/{version}.*/bin/python"))]
    for candidate in filter(shutil.which, found):
        shown = subprocess.run([candidate, "--version"], capture_output=True, check=False)
        if shown.returncode == 0:  # pyenv's shims stand for versions that it does not select
            return candidate
    return None


@pytest.fixture(scope="module")
def namesake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PyPI's `cluster`, downloaded."""
    directory = tmp_path_factory.mktemp("namesake")
    try:
        pip("download", "-q", "--no-deps", "--dest", directory, NAMESAKE)
    except (AssertionError, subprocess.TimeoutExpired) as error:
        lines = str(error).strip().splitlines()
        pytest.skip(f"pip reaches no package index: {lines[-1]}")
    return next(directory.iterdir())


@pytest.fixture(scope="module")
def wheel(namesake: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel; `namesake` has shown that pip reaches an index."""
    assert namesake.exists()
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def client_only(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    made = Environment(tmp_path_factory.mktemp("client") / "venv")
    made.install(wheel)
    return made


@pytest.fixture(scope="module")
def server(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    made = Environment(tmp_path_factory.mktemp("server") / "venv")
    made.install(f"onecopy[server] @ {wheel.as_uri()}")
    return made


@asynccontextmanager
async def up(server: Environment, directory: Path) -> AsyncIterator[str]:
    """Run three nodes by an installed `onecopy up`; yield their endpoints."""
    port, log = free_up_port(), directory / "up.log"
    data = str(directory / "data")
    process = server.popen("onecopy", "up", "--data", data, "--port", str(port), log=log)
    try:
        await wait_until(
            lambda: "ready. Try" in log.read_text() or process.poll() is not None, "up is ready"
        )
        assert process.poll() is None, log.read_text()
        yield ",".join(f"http://127.0.0.1:{port + node}" for node in range(3))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(COMMAND_DEADLINE_S)


@pytest.fixture
async def endpoints(server: Environment, tmp_path: Path) -> AsyncIterator[str]:
    async with up(server, tmp_path) as found:
        yield found


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.parser.BytesParser().parsebytes(archive.read(name))


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        sizes = {item.filename: item.file_size for item in archive.infolist()}
    info = re.compile(r"onecopy-[^/]+\.dist-info")
    assert {name.split("/")[0] for name in sizes if not info.match(name)} == set(PACKAGES)
    for package in PACKAGES:
        assert f"{package}/py.typed" in sizes
        assert package == "onecopy" or sizes[f"{package}/__init__.py"] == 0
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        assert str(path.relative_to(ROOT)) in sizes
    assert any(name.endswith("licenses/LICENSE") for name in sizes)


def test_the_metadata_is_whole(wheel: Path) -> None:
    found = metadata(wheel)
    assert found["License-Expression"] == "MIT"
    assert found["Requires-Python"] == ">=3.11"
    assert found["Description-Content-Type"] == "text/markdown"
    plain = [line for line in found.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert {re.split(r"[^a-z0-9-]", line)[0] for line in plain} == {"aiohttp", "click", "msgspec"}
    assert f"{sys.version_info[0]}.{sys.version_info[1]}" in PYTHONS  # what runs these tests
    assert found.get_all("Classifier") == PROJECT["classifiers"]


def test_links_of_the_description_work_on_an_index_page(wheel: Path) -> None:
    description = metadata(wheel).get_payload()
    assert isinstance(description, str)
    assert "pip install" in description
    targets = re.findall(
        r"\]\(([^)]*)\)|(?:href|src)=[\"']([^\"']*)|^\[[^\]]+\]: (\S+)", description
    )
    assert [pair for pair in targets if not "".join(pair).startswith("https://")] == []


def test_a_client_needs_none_of_the_servers_packages(client_only: Environment) -> None:
    code = (
        "import importlib.util as u; "
        f"assert not [m for m in {SERVER_MODULES!r} if u.find_spec(m)]; import onecopy; "
        "[getattr(onecopy, name) for name in onecopy.__all__ if name != 'Node']"
    )
    client_only.check("python", "-c", code)


def test_a_node_in_a_client_says_what_to_install(client_only: Environment) -> None:
    done = client_only.run("python", "-c", "import onecopy; onecopy.Node")
    assert done.returncode == 1
    said = "ImportError: onecopy.Node needs google_crc32c, which is not installed: pip install"
    assert f"{said} 'onecopy[server]'" in done.stderr


@pytest.mark.parametrize(
    ("command", "code"), [("up --nodes 1", 1), ("serve --config x --node n1", 78)]
)
def test_a_server_command_says_what_to_install(
    client_only: Environment, command: str, code: int
) -> None:
    done = client_only.run("onecopy", *command.split())
    assert done.returncode == code
    assert "pip install 'onecopy[server]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_lists_every_command_in_a_client_too(client_only: Environment) -> None:
    shown = client_only.check("onecopy", "--help")
    listed = re.findall(r"^  ([a-z]+)  ", shown.split("Commands:")[1], re.MULTILINE)
    assert {"up", "serve", "put", "get", "status", "load"} <= set(listed)
    assert "onecopy[server]" in client_only.check("onecopy", "serve", "--help")
    assert client_only.check("python", "-m", "onecopy", "--version").startswith("onecopy ")


def test_an_installed_up_serves_an_installed_client(
    client_only: Environment, endpoints: str, tmp_path: Path
) -> None:
    def onecopy(*arguments: str) -> str:
        return client_only.check("onecopy", *arguments, endpoints=endpoints)

    onecopy("put", "hello", "world")
    assert onecopy("get", "hello") == "world"
    records = tmp_path / "records.ndjson"
    records.write_text("".join(f'{{"key": "users/{n}", "value": "a"}}\n' for n in range(50)))
    assert json.loads(onecopy("load", str(records), "--json"))["acknowledged"] == 50
    assert len(onecopy("dump", "--prefix", "users/").splitlines()) == 50
    assert onecopy("delete", "hello") is not None
    assert json.loads(onecopy("status", "--json"))["primary"]
    code = f"import onecopy\nwith onecopy.Client({endpoints.split(',')!r}) as client:\n"
    code += "    client.put('k', 'v')\n    print(client.get('k').value.decode())"
    assert client_only.check("python", "-W", "error", "-c", code) == "v\n"


@pytest.mark.long
@pytest.mark.parametrize("version", PYTHONS)
async def test_every_python_that_the_index_names_runs_it(
    wheel: Path, tmp_path: Path, version: str
) -> None:
    python = find_python(version)
    if python is None:
        pytest.skip(f"there is no python{version} here")
    made = Environment(tmp_path / "venv", python)
    made.install(f"onecopy[server] @ {wheel.as_uri()}")
    async with up(made, tmp_path) as endpoints:
        made.check("onecopy", "put", "hello", "world", endpoints=endpoints)
        assert made.check("onecopy", "get", "hello", endpoints=endpoints) == "world"


@pytest.mark.long
def test_mypy_sees_the_types_of_the_public_names(client_only: Environment, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(TYPED_PROGRAM)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--python-executable"),
            *(str(client_only.python), "--cache-dir", str(tmp_path / "cache"), str(program)),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
        timeout=COMMAND_DEADLINE_S,
        check=False,
    )
    assert "Found 1 error in 1 file" in done.stdout, done.stdout + done.stderr
    assert re.search(r'program\.py:\d+: error: Argument 1 to "get" of "Client"', done.stdout)


@pytest.fixture
def beside(wheel: Path, namesake: Path, client_only: Environment) -> Iterator[Environment]:
    """A client's environment, to which the namesake may be added."""
    yield client_only
    client_only.install("--no-deps", "--force-reinstall", wheel)


@pytest.mark.parametrize("last", ["theirs", pytest.param("ours", marks=pytest.mark.long)])
def test_pypis_cluster_may_be_installed_beside(
    beside: Environment, wheel: Path, namesake: Path, last: str
) -> None:
    order = [wheel, namesake] if last == "theirs" else [namesake, wheel]
    for each in order:
        beside.install("--no-deps", "--force-reinstall", each)
    site = next((beside.directory / "lib").glob("python*/site-packages"))
    assert (site / "cluster" / "linkage.py").exists()
    assert ((site / "cluster" / "__init__.py").stat().st_size > 0) == (last == "theirs")
    beside.check("python", "-c", USE_THE_FACE)
    beside.check("onecopy", "--help")
    assert beside.run("onecopy", "get", "key", "--timeout-ms", "50").returncode == 6
