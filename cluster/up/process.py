"""One node's process under `onecopy up`: start, watch, restart, stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from cluster.exit_codes import EXIT_REFUSED

RESTART_FIRST_S = 1.0
RESTART_MAX_S = 30.0
STABLE_AFTER_S = 30.0  # a node that ran so long starts again after RESTART_FIRST_S
LOG_SIZE_MAX_BYTES = 16 * 1024 * 1024  # a larger log is set aside as .1 when the node starts
TAIL_SIZE_BYTES = 4096
STOPPED = "stopped"
NODE_ENVIRONMENT = {
    "PYTHONMALLOC": "malloc",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1",
}
"""Memory in huge pages, where the kernel gives them on request: docs/performance.md says what for.
`deploy/` sets the same."""


def own_file(path: str, flags: int) -> int:
    """Open for `open(…, opener=own_file)`: this user's alone if it is new, and never by a link."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


class NodeProcess:
    """A node's process and what became of it. The time is an argument (monotonic seconds).

    `note` is "" while it runs, else a sentence: why it does not, and what happens next.
    """

    def __init__(self, node_id: str, config: Path, log: Path, *, restart: bool) -> None:
        self.node_id = node_id
        self.note = ""
        self.log = log
        self._config = config
        self._restart = restart
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._start_again_at: float | None = None
        self._pause_s = RESTART_FIRST_S
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        """The process id while it runs, else None."""
        return self._process.pid if self._process is not None else None

    @property
    def given_up(self) -> bool:
        """Whether it does not run and will not be started again."""
        return self._process is None and self._start_again_at is None

    def start(self, now: float) -> None:
        """Start the process, in a group of its own so that the terminal's Ctrl-C is ours alone."""
        self.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > LOG_SIZE_MAX_BYTES:
            self.log.replace(self.log.with_name(self.log.name + ".1"))
        package_root = str(Path(__file__).resolve().parents[2])
        environment = {**NODE_ENVIRONMENT, **os.environ, "PYTHONUNBUFFERED": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(
            part for part in (package_root, os.environ.get("PYTHONPATH", "")) if part
        )
        command = [sys.executable, "-P", "-m", "onecopy", "serve", "--node", self.node_id]
        command += ["--config", str(self._config), "--supervised-by", str(os.getpid())]
        with open(self.log, "ab", opener=own_file) as output:
            self._log_start = output.tell()
            self._process = subprocess.Popen(  # noqa: S603 -- our own program
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
        self._started_at = now
        self._start_again_at = None
        self.note = ""

    def tick(self, now: float) -> None:
        """Notice an end, and start again when it is time."""
        if self._process is not None and (code := self._process.poll()) is not None:
            self._process = None
            self._ended(code, now)
        if self._start_again_at is not None and now >= self._start_again_at:
            self.start(now)

    def _ended(self, code: int, now: float) -> None:
        if code == EXIT_REFUSED:
            self.note = f"refused to start: {self.last_message() or f'see {self.log}'}"
            return
        why = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        if code == 0:
            self.note = "has ended"
            return
        if not self._restart:
            self.note = f"{why}; not restarted"
            return
        if now - self._started_at >= STABLE_AFTER_S:
            self._pause_s = RESTART_FIRST_S
        self._start_again_at = now + self._pause_s
        self.note = f"{why}; restarting in {self._pause_s:.0f} s"
        self._pause_s = min(2 * self._pause_s, RESTART_MAX_S)

    def last_message(self) -> str:
        """Return the last line that this run has logged, without time and origin."""
        try:
            with self.log.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(self._log_start, end - TAIL_SIZE_BYTES))
                lines = file.read().decode("utf-8", "replace").strip().splitlines()
        except OSError:
            return ""
        if not lines:
            return ""
        head, colon, text = lines[-1].partition(": ")
        return text if colon and f" {self.node_id} " in head else lines[-1]

    def ask_to_stop(self) -> None:
        """SIGTERM to its group; a stopped process is continued so that it can obey."""
        self._start_again_at = None
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL to its group."""
        self._start_again_at = None
        self._signal(signal.SIGKILL)

    def has_ended(self) -> bool:
        """Whether the process is gone (and reap it)."""
        if self._process is None:
            return True
        code = self._process.poll()
        if code is None:
            return False
        self._process = None
        self.note = STOPPED if code in {0, -signal.SIGTERM} else f"stopped with code {code}"
        return True

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, number)
