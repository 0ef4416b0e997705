"""The fenced blocks of a documentation page, and a shell that runs them as a reader would.

What a block is stands in its info string:

    sh       the reader pastes it into a shell, with a cluster of `onecopy up` running: it is run
    python   the reader runs it: so does the test
    toml     a complete configuration file: it is loaded
    shell    commands that need more than a running cluster, or that last: not run
    text     output, or a drawing: not run

A line of `sh` succeeds (each `curl` with a status below 400), unless its comment says otherwise:
"# 412" the status, "# exit code 4" the exit code. `# {"revision":1,…}` shows the JSON body: it has
to have those members, with those values where they are no numbers. "…" is left out on purpose.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("docs", "bench", "examples")
KINDS = frozenset({"sh", "python", "toml", "shell", "text"})
DEADLINE_S = 60.0
_BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"^(.*?)(?:(?:^|\s{2,})#\s?(.*))?$")
_STATUS = re.compile(r"^@status (\d{3})$", re.MULTILINE)
_PREAMBLE = """
curl() { command curl -sS -w '\\n@status %{http_code}\\n' "$@"; }
"""


class Block(msgspec.Struct, frozen=True):
    """One fenced block; `line` is that of its fence."""

    page: str
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """Return every page of the project's documentation."""
    shelves = [ROOT.glob("*.md"), *((ROOT / name).rglob("*.md") for name in FOLDERS)]
    found = {path for shelf in shelves for path in shelf}
    return sorted(found | {ROOT / "tests" / "sim" / "README.md"})


def blocks_of(path: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    text = path.read_text()
    return [
        Block(
            str(path.relative_to(ROOT)),
            text[: match.start()].count("\n") + 1,
            match[1].strip(),
            match[2],
        )
        for match in _BLOCK.finditer(text)
    ]


class Step(msgspec.Struct, frozen=True):
    """A line to run, and what its comment says of it."""

    command: str
    comment: str


def steps_of(text: str) -> list[Step]:
    """Split a block into its lines; one that ends in a backslash goes on in the next."""
    steps = []
    for line in text.replace("\\\n", " ").splitlines():
        match = _COMMENT.match(line)
        assert match is not None
        if match[1].strip():
            steps.append(Step(match[1].strip(), match[2] or ""))
    return steps


class PageShell:
    """One bash for a whole page, as a reader has one: variables stay from block to block.

    `replaced` maps what is printed on the page (addresses) to what is there; `endpoints` stands
    for the command's default ones.
    """

    def __init__(self, directory: Path, replaced: Mapping[str, str], endpoints: str) -> None:
        self._replaced = replaced
        self._directory = directory
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "ONECOPY_ENDPOINTS": endpoints}
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=directory,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._send(_PREAMBLE)
        venv = directory / ".venv"
        venv.symlink_to(Path(sys.executable).parents[1])

    def _send(self, text: str) -> tuple[str, int]:
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.write(f"{text}\nprintf '\\n@exit %d\\n' $?\n".encode())
        self._bash.stdin.flush()
        lines: list[bytes] = []
        for line in self._bash.stdout:
            if line.startswith(b"@exit "):
                return b"".join(lines).decode(errors="replace"), int(line.split()[1])
            lines.append(line)
        raise AssertionError(f"the shell has ended: {b''.join(lines).decode(errors='replace')}")

    def run(self, block: Block) -> list[str]:
        """Run a block; return what went another way than the page says, a text for each line."""
        problems = []
        for step in steps_of(self.here(block.text)):
            output, code = self._send(step.command)
            for problem in judge(step, output, code):
                problems.append(f"{block}: {step.command}\n  {problem}; it printed:\n{output}")
        return problems

    def run_whole(self, block: Block) -> str:
        """Run a block that has more than commands of one line; return what it printed."""
        output, code = self._send(f"set -e\n{self.here(block.text)}set +e")
        assert code == 0, f"{block}: exit code {code}:\n{output}"
        refused = [status for status in _STATUS.findall(output) if int(status) >= 400]
        assert not refused, f"{block}: {refused}:\n{output}"
        return output

    def run_python(self, block: Block) -> list[str]:
        """Run a block of Python in a process of its own."""
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", self.here(block.text)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(self._directory)},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        said = done.stdout + done.stderr
        return [] if done.returncode == 0 else [f"{block}: exit code {done.returncode}:\n{said}"]

    def here(self, text: str) -> str:
        """Return a text with what is there in place of what is printed."""
        for printed, actual in self._replaced.items():
            text = text.replace(printed, actual)
        return text

    def close(self) -> None:
        """End the shell."""
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.close()
        self._bash.kill()
        self._bash.wait()
        self._bash.stdout.close()


def judge(step: Step, output: str, code: int) -> list[str]:
    """Return what differs from what the step's comment says."""
    problems = []
    wanted = re.search(r"exit code (\d+)", step.comment)
    if code != (int(wanted[1]) if wanted else 0):
        problems.append(f"exit code {code}")
    statuses = [int(status) for status in _STATUS.findall(output)]
    said = re.match(r"(\d{3})\b", step.comment)
    if said is not None and statuses[-1:] != [int(said[1])]:
        problems.append(f"the page says {said[1]}, the answers were {statuses}")
    elif said is None and any(status >= 400 for status in statuses):
        problems.append(f"refused: {statuses}")
    for name in re.findall(r"([A-Z][-A-Za-z]+): ", step.comment):
        if not re.search(rf"^{name}: ", output, re.MULTILINE | re.IGNORECASE):
            problems.append(f"there is no header {name}")
    shown = re.search(r"\{.*\}", step.comment)
    if shown is not None and "…" not in shown[0]:
        found = _body(output)
        if not _like(json.loads(shown[0]), found):
            problems.append(f"the page shows {shown[0]}, the body is {found}")
    return problems


def _body(output: str) -> Any:
    text = _STATUS.split(output)[0].replace("\r\n", "\n")
    head, _, rest = text.partition("\n\n")
    if head.startswith("HTTP/1.1"):
        text = rest
    try:
        return json.loads(text)
    except ValueError:
        return text


def _like(shown: Any, found: Any) -> bool:
    """Whether `found` has what is shown; numbers are examples, and so are a list's length."""
    if isinstance(shown, dict):
        return isinstance(found, dict) and all(
            key in found and _like(value, found[key]) for key, value in shown.items()
        )
    if isinstance(shown, list):
        return isinstance(found, list) and (
            not shown or (bool(found) and _like(shown[0], found[0]))
        )
    if isinstance(shown, int) and not isinstance(shown, bool):
        return isinstance(found, int)
    return bool(shown == found)
