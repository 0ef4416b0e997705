"""Patroni with real PostgreSQL, on two data nodes and a witness of ours, and on a three-node etcd.

Two members of Patroni in synchronous mode, a writer that records what was acknowledged, and faults
in turn. How long writes stop is the longest time between two acknowledged commits around a fault.
At the end every acknowledged number has to be there.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from bench.context import Context
from bench.peers.etcd import Etcd
from bench.peers.onecopy import Onecopy
from bench.peers.process import (
    MissingPeerError,
    Peer,
    Process,
    free_address,
    output_of,
    wait_until,
)

REQUIREMENTS = ("patroni[etcd3]>=4.1", "psycopg2-binary>=2.9")
HEAL_DEADLINE_S = 120.0
INSTALL_TIMEOUT_S = 300.0
SETTLE_S = 2.0
"""Of undisturbed writes before and after each fault."""
USER = "postgres"
POSTGRES = Path("/usr/lib/postgresql")
HOW_TO_GET = "PostgreSQL is not installed: apt-get install postgresql"
WRITER = Path(__file__).with_name("patroni_writer.py")

_IS_STANDBY = "select pg_is_in_recovery()"
_CONFIG = """
scope: bench
name: {name}
restapi: {{listen: "{rest}", connect_address: "{rest}"}}
etcd3: {{hosts: "{hosts}"}}
bootstrap:
  dcs:
    ttl: 20
    loop_wait: 2
    retry_timeout: 5
    synchronous_mode: true
    postgresql:
      use_pg_rewind: true
      parameters: {{max_connections: 30, shared_buffers: 16MB, wal_keep_size: 128MB}}
  initdb: [encoding: UTF8, data-checksums, no-sync]
postgresql:
  listen: "{address}"
  connect_address: "{address}"
  data_dir: "{home}/{name}"
  bin_dir: "{binaries}"
  pgpass: "{home}/{name}.pgpass"
  pg_hba:
    - local all all trust
    - host all all 127.0.0.1/32 trust
    - host replication all 127.0.0.1/32 trust
  authentication:
    superuser: {{username: postgres, password: bench}}
    replication: {{username: replicator, password: bench}}
    rewind: {{username: rewinder, password: bench}}
  parameters: {{unix_socket_directories: "{home}"}}
"""


class Members:
    """Two members of Patroni, each with its PostgreSQL, in `home`; `hosts`: of the store."""

    def __init__(self, home: Path, python: Path, hosts: list[str]) -> None:
        self._home = home
        self._python = python
        self._binaries = postgres_binaries()
        self.ports: dict[str, str] = {}
        self.processes: dict[str, Process] = {}
        for name in ("pg1", "pg2"):
            address, rest = free_address(), free_address()
            self.ports[name] = address.rpartition(":")[2]
            config = home / f"{name}.yml"
            text = _CONFIG.format(
                name=name, rest=rest, address=address, hosts=",".join(hosts), home=home,
                binaries=self._binaries,
            )  # fmt: skip
            config.write_text(text)
            command = [*as_user(), str(python.with_name("patroni")), str(config)]
            log_path, environment = home / f"{name}.log", {"HOME": str(home)}
            self.processes[name] = Process(name, command, log_path, environment)

    def start(self) -> None:
        """Start the first, which makes the database, then the other."""
        for process in self.processes.values():
            process.start()
            self.wait_whole(only_leader=process.name == "pg1")

    def close(self) -> None:
        """End everything."""
        for name, process in self.processes.items():
            process.end()
            self.kill_postgres(name)

    def list(self) -> list[dict[str, Any]]:
        """Return what Patroni says of its members."""
        command = [*as_user(), str(self._python.with_name("patronictl"))]
        done = subprocess.run(
            [*command, "-c", str(self._home / "pg1.yml"), "list", "-f", "json"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        return json.loads(done.stdout) if done.returncode == 0 and done.stdout else []

    def leader(self) -> str:
        """Return the member that leads, and whose PostgreSQL takes writes."""

        def found() -> str | None:
            for member in self.list():
                name: str = member["Member"]
                with contextlib.suppress(subprocess.SubprocessError):
                    if member["Role"] == "Leader" and self.sql(name, _IS_STANDBY) == "f":
                        return name
            return None

        leader: str = wait_until(found, "Patroni names a leader", HEAL_DEADLINE_S)
        return leader

    def wait_whole(self, *, only_leader: bool = False) -> None:
        """Wait for a leader that runs and, but at the start, a synchronous standby that streams."""
        wanted = {("Leader", "running")} | (
            set() if only_leader else {("Sync Standby", "streaming")}
        )
        wait_until(
            lambda: wanted <= {(m["Role"], m["State"]) for m in self.list()},
            f"Patroni has {sorted(wanted)}",
            HEAL_DEADLINE_S,
            poll_s=0.5,
        )

    def switch_over(self) -> None:
        """Ask for the other leader."""
        config = str(self._home / "pg1.yml")
        command = [*as_user(), str(self._python.with_name("patronictl")), "-c", config]
        output_of([*command, "switchover", "--force"])

    def kill_postgres(self, name: str) -> None:
        """End a member's PostgreSQL as by kill -9."""
        with contextlib.suppress(OSError, ValueError):
            pid_file = self._home / name / "postmaster.pid"
            os.kill(int(pid_file.read_text().split()[0]), signal.SIGKILL)

    def sql(self, name: str, statement: str) -> str:
        """Return what psql prints."""
        where = ["-h", "127.0.0.1", "-p", self.ports[name], "-U", "postgres", "-Atc", statement]
        return output_of([str(self._binaries / "psql"), *where]).strip()


def postgres_binaries() -> Path:
    """Return where PostgreSQL's programs are. Raises MissingPeerError."""
    found = sorted(POSTGRES.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found:
        raise MissingPeerError(HOW_TO_GET)
    return found[-1].parent


def as_user() -> list[str]:
    """Return how a command is begun so that PostgreSQL runs: it refuses to be root's."""
    if os.geteuid():
        return []
    return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]


def make_environment(directory: Path) -> Path:
    """Install Patroni into an environment of its own, and return its Python."""
    system = shutil.which("python3", path="/usr/bin") or sys.executable
    python = directory / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in ([system, "-m", "venv", str(directory)], [*install, *REQUIREMENTS]):
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
        )
        if done.returncode:
            raise MissingPeerError(f"Patroni cannot be installed: {done.stderr[-500:]}")
    return python


class Writer:
    """The process that writes, and what was acknowledged to it."""

    def __init__(self, members: Members, python: Path, home: Path) -> None:
        self._log_path = home / "acknowledged"
        ports = ",".join(members.ports.values())
        self._process = Process("writer", [str(python), str(WRITER), ports], self._log_path)

    def start(self) -> None:
        """Start it."""
        self._process.start()

    def end(self) -> None:
        """End it."""
        self._process.end()

    def acknowledged(self) -> list[tuple[int, int]]:
        """Return the numbers and when they were acknowledged, in ns."""
        lines = self._log_path.read_text().splitlines()
        return [
            (int(line.split()[0]), int(line.split()[1])) for line in lines if line.count(" ") == 1
        ]

    def longest_gap_s(self, since_ns: int) -> float:
        """Return the longest time between two acknowledgements since then."""
        times = [at for _, at in self.acknowledged() if at >= since_ns]
        gaps = [after - before for before, after in itertools.pairwise(times)]
        return max(gaps, default=0) / 1e9


def run(context: Context) -> dict[str, Any]:
    """Measure both stores; `rounds` of each fault."""
    postgres_binaries()
    found: dict[str, Any] = {}
    with context.directory() as home:
        for path in (context.work, home):
            path.chmod(0o755)  # PostgreSQL's user goes there
        python = make_environment(home / "patroni")
        for name, make in (("onecopy", _onecopy), ("etcd", _etcd)):
            if not context.wants(name):
                continue
            try:
                with context.peer(make) as store:
                    found[name] = _measure(context, store, home / name, python)
            except MissingPeerError as error:
                context.say(f"left out: {error}")
                context.missing.append(str(error))
    return {"stores": found}


def _onecopy(path: Path) -> Onecopy:
    return Onecopy(path, replicas=2, witnesses=1, etcd=True)


def _etcd(path: Path) -> Etcd:
    return Etcd(path)


def _measure(context: Context, store: Peer, home: Path, python: Path) -> dict[str, Any]:
    home.mkdir()
    if not os.geteuid():
        shutil.chown(home, USER, USER)
    hosts = (
        list(store.etcd_addresses.values())
        if isinstance(store, Onecopy)
        else [store.address(node) for node in store.processes]
    )
    members = Members(home, python, hosts)
    writer = Writer(members, python, home)
    stopped: dict[str, list[float]] = {}
    try:
        members.start()
        members.sql(members.leader(), "create table written (number bigint primary key)")
        writer.start()
        for _ in range(context.options.rounds):
            for fault, strike in _FAULTS.items():
                time.sleep(SETTLE_S)
                begun_ns = time.monotonic_ns() - int(SETTLE_S / 2 * 1e9)
                mend = strike(store, members)
                _wait_for_writes(writer, begun_ns)
                mend()
                members.wait_whole()
                time.sleep(SETTLE_S)
                gap_s = round(writer.longest_gap_s(begun_ns), 2)
                stopped.setdefault(fault, []).append(gap_s)
                context.say(f"  {store.name}: {fault}: no commit for {gap_s} s")
        writer.end()
        numbers = {number for number, _ in writer.acknowledged()}
        held = members.sql(members.leader(), "select number from written").split()
        lost = len(numbers - {int(number) for number in held})
    finally:
        writer.end()
        members.close()
    context.say(f"  {store.name}: {len(numbers)} acknowledged, {lost} lost")
    return {
        "acknowledged": len(numbers),
        "lost": lost,
        "stopped_s": stopped,
        "median_s": {fault: median(values) for fault, values in stopped.items()},
    }


def _wait_for_writes(writer: Writer, since_ns: int) -> None:
    """Wait until commits are acknowledged again, some after the fault has had its time."""
    fault_ns = since_ns + int(SETTLE_S / 2 * 1e9)

    def goes_on() -> bool:
        now_ns = time.monotonic_ns()
        late = [at for _, at in writer.acknowledged() if at > now_ns - 300_000_000]
        return bool(late) and now_ns > fault_ns + int(SETTLE_S * 1e9)

    wait_until(goes_on, "commits are acknowledged again", HEAL_DEADLINE_S)


def _nothing() -> None:
    return None


def _switch_over(_store: Peer, members: Members) -> Callable[[], None]:
    members.switch_over()
    return _nothing


def _kill_postgres(_store: Peer, members: Members) -> Callable[[], None]:
    members.kill_postgres(members.leader())
    return _nothing


def _kill_patroni(_store: Peer, members: Members) -> Callable[[], None]:
    """Its PostgreSQL goes on alone; Patroni comes back when the other member leads.

    Until then the commits of who is connected to it hang.
    """
    name = members.leader()
    members.processes[name].end()
    wait_until(lambda: members.leader() != name, "the other member leads", HEAL_DEADLINE_S)
    members.processes[name].start()
    return _nothing


def _kill_machine(_store: Peer, members: Members) -> Callable[[], None]:
    name = members.leader()
    members.processes[name].end()
    members.kill_postgres(name)
    return members.processes[name].start


def _kill_store(store: Peer, _members: Members) -> Callable[[], None]:
    name = store.primary()
    store.processes[name].end()
    return lambda: store.restart(name)


_FAULTS: dict[str, Callable[[Peer, Members], Callable[[], None]]] = {
    "switchover": _switch_over,
    "kill -9 of PostgreSQL's primary": _kill_postgres,
    "kill -9 of the store's primary": _kill_store,
    "kill -9 of the leader's Patroni and PostgreSQL": _kill_machine,
    "kill -9 of the leader's Patroni alone": _kill_patroni,
}
