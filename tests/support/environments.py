"""Empty virtual environments, and the project's wheel to install into them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("onecopy", "cluster", "datapath", "election")
WHEEL_FILES = ("pyproject.toml", "LICENSE", "README.md", "docs/package-index.md")
PIP_DEADLINE_S = 120.0
COMMAND_DEADLINE_S = 30.0


def environment() -> dict[str, str]:
    """Return an environment in which nothing but what is installed can be imported."""
    hidden = ("PYTHON", "ONECOPY_", "COV_", "PYTEST_")
    return {name: value for name, value in os.environ.items() if not name.startswith(hidden)}


def pip(*arguments: str | Path) -> None:
    """Run pip. Raises AssertionError with what it said."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PIP_DEADLINE_S, check=False
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"


class Environment:
    """A virtual environment without anything of the project's own."""

    def __init__(self, directory: Path, python: str = sys.executable) -> None:
        self.directory = directory
        self.python = directory / "bin" / "python"
        command = [python, "-m", "venv", "--without-pip", str(directory)]
        subprocess.run(command, check=True, timeout=COMMAND_DEADLINE_S)

    def install(self, *arguments: str | Path) -> None:
        pip("--python", self.python, "install", "-q", *arguments)

    def popen(self, program: str, *arguments: str, log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as file:
            return subprocess.Popen(
                [self.directory / "bin" / program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env=environment(),
            )

    def run(
        self, program: str, *arguments: str, endpoints: str = "http://127.0.0.1:9"
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.directory / "bin" / program, *arguments],
            capture_output=True,
            text=True,
            cwd=self.directory,
            env=environment() | {"ONECOPY_ENDPOINTS": endpoints},
            timeout=COMMAND_DEADLINE_S,
            check=False,
        )

    def check(self, program: str, *arguments: str, endpoints: str = "http://127.0.0.1:9") -> str:
        """Run a program that has to succeed; return its output."""
        done = self.run(program, *arguments, endpoints=endpoints)
        assert done.returncode == 0, f"{program} {arguments}:\n{done.stdout}\n{done.stderr}"
        return done.stdout


def has_commit(commit: str) -> bool:
    """Whether the repository holds a commit (a clone may be shallow)."""
    return _git("cat-file", "-e", f"{commit}^{{commit}}").returncode == 0


def build_wheel_of(commit: str, directory: Path) -> Path:
    """Build the wheel of another commit; `directory` is empty."""
    source = directory / "source"
    source.mkdir()
    archive = _git("archive", commit, *PACKAGES, *WHEEL_FILES)
    assert archive.returncode == 0, archive.stderr.decode()
    subprocess.run(
        ["tar", "-x", "-C", source], input=archive.stdout, check=True, timeout=COMMAND_DEADLINE_S
    )
    pip("wheel", "-q", "--no-deps", "--wheel-dir", directory, source)
    return next(directory.glob("*.whl"))


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments],
        capture_output=True,
        timeout=COMMAND_DEADLINE_S,
        check=False,
    )


def build_wheel(directory: Path) -> Path:
    """Build the project's wheel; `directory` is empty."""
    source = directory / "source"  # a copy: setuptools leaves its build directory in the source
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in WHEEL_FILES:
        (source / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    pip("wheel", "-q", "--no-deps", "--wheel-dir", directory, source)
    return next(directory.glob("*.whl"))
