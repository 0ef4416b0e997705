"""Two members of Patroni, each with a real PostgreSQL, in synchronous mode."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from bench.patroni.network import Link, Network
from bench.peers.process import (
    BenchError,
    MissingPeerError,
    Process,
    fetch,
    fetch_json,
    free_address,
    output_of,
    wait_until,
)

REQUIREMENTS = ("patroni[etcd3]>=4.1", "psycopg2-binary>=2.9")
INSTALL_TIMEOUT_S = 300.0
HEAL_DEADLINE_S = 120.0
"""How long Patroni may take until all is as it was. Its `ttl` is 20 s."""
MACHINES = {"pg1": "m1", "pg2": "m2"}
USER = "postgres"
POSTGRES = Path("/usr/lib/postgresql")
HOW_TO_GET = "PostgreSQL is not installed: apt-get install postgresql"

_IS_STANDBY = "select pg_is_in_recovery()"
_CONFIG = """
scope: bench
name: {name}
restapi: {{listen: "{rest}", connect_address: "{rest_of_others}"}}
etcd3: {{hosts: "{hosts}", use_proxies: true}}
bootstrap:
  dcs:
    ttl: 20
    loop_wait: 2
    retry_timeout: 5
    synchronous_mode: true
    postgresql:
      use_pg_rewind: true
      parameters:
        max_connections: 30
        shared_buffers: 16MB
        wal_keep_size: 128MB
        wal_sender_timeout: 5s
        wal_receiver_timeout: 5s
  initdb: [encoding: UTF8, data-checksums, no-sync]
postgresql:
  listen: "{address}"
  connect_address: "{address_of_others}"
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
    """The members pg1 and pg2 in `home`; `gateways`: the store's addresses by machine.

    What goes to another machine, or to the store, goes through `network`.
    """

    def __init__(
        self, home: Path, python: Path, gateways: dict[str, str], network: Network
    ) -> None:
        self._home = home
        self._python = python
        self._binaries = postgres_binaries()
        self._rest: dict[str, str] = {}
        self.ports: dict[str, str] = {}
        self.processes: dict[str, Process] = {}
        for name, machine in MACHINES.items():
            other = MACHINES[self.other(name)]
            address, rest = free_address(), free_address()
            self._rest[name], self.ports[name] = rest, address.rpartition(":")[2]
            hosts = [
                network.connect(Link(machine, target, "gateway"), gateway)
                for target, gateway in gateways.items()
            ]
            config = home / f"{name}.yml"
            text = _CONFIG.format(
                name=name, rest=rest, address=address, hosts=",".join(hosts), home=home,
                binaries=self._binaries,
                rest_of_others=network.connect(Link(other, machine, "patroni"), rest),
                address_of_others=network.connect(Link(other, machine, "postgres"), address),
            )  # fmt: skip
            config.write_text(text)
            command = [*as_user(), str(python.with_name("patroni")), str(config)]
            log_path, environment = home / f"{name}.log", {"HOME": str(home)}
            self.processes[name] = Process(name, command, log_path, environment)

    @staticmethod
    def other(name: str) -> str:
        """Return the other member."""
        return next(other for other in MACHINES if other != name)

    def start(self) -> None:
        """Start the first, which makes the database, then the other."""
        for name, process in self.processes.items():
            process.start()
            if name == "pg1":
                wait_until(lambda: self.leads("pg1"), "the first member leads", HEAL_DEADLINE_S)
        self.wait_whole()

    def close(self) -> None:
        """End everything."""
        for name in self.processes:
            self.kill(name)

    def kill(self, name: str) -> None:
        """End a member's Patroni, then its PostgreSQL, as by kill -9."""
        self.processes[name].end()
        self.kill_postgres(name)

    def kill_postgres(self, name: str) -> None:
        """End a member's PostgreSQL as by kill -9."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid_file = self._home / name / "postmaster.pid"
            os.kill(int(pid_file.read_text().split()[0]), signal.SIGKILL)

    def leads(self, name: str) -> bool:
        """Return whether a member's Patroni has the leader key, and its PostgreSQL is primary."""
        if not self.processes[name].running:
            return False
        reply = fetch(self._rest[name], "GET", "/primary", timeout_s=2.0)
        return reply is not None and reply[0] == 200

    def leader(self) -> str:
        """Wait for the one member that leads."""

        def found() -> str | None:
            leading = [name for name in self.processes if self.leads(name)]
            return leading[0] if len(leading) == 1 else None

        leader: str = wait_until(found, "one member leads", HEAL_DEADLINE_S, poll_s=0.2)
        return leader

    def wait_leads(self, name: str) -> None:
        """Wait until this member leads."""
        wait_until(lambda: self.leads(name), f"{name} leads", HEAL_DEADLINE_S, poll_s=0.2)

    def wait_whole(self) -> None:
        """Wait for a leader and a synchronous standby that streams from it.

        Raises BenchError if both take writes.
        """
        wanted = {("leader", "running"), ("sync_standby", "streaming")}

        def whole() -> bool:
            found = fetch_json(self._rest[self.leader()], "GET", "/cluster")
            return found is not None and wanted == {
                (member["role"], member["state"]) for member in found["members"]
            }

        wait_until(whole, f"Patroni has {sorted(wanted)}", HEAL_DEADLINE_S, poll_s=0.5)
        standbys = sorted(self.sql(name, _IS_STANDBY) for name in self.ports)
        if standbys != ["f", "t"]:
            raise BenchError(f"there is not one primary and one standby: {standbys}")

    def switch_over(self) -> None:
        """Ask for the other leader."""
        config = str(self._home / "pg1.yml")
        command = [*as_user(), str(self._python.with_name("patronictl")), "-c", config]
        output_of([*command, "switchover", "--force"])

    def numbers(self, first: int = 0) -> set[int]:
        """Return which numbers from `first` on the leader holds."""
        statement = f"select number from written where number >= {first}"
        return {int(line) for line in self.sql(self.leader(), statement).split()}

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


def make_home(home: Path) -> None:
    """Make a directory for the members, of the user that PostgreSQL runs as."""
    home.mkdir()
    if not os.geteuid():
        shutil.chown(home, USER, USER)
