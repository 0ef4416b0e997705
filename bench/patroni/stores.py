"""What keeps Patroni's state: two data nodes and a witness of ours, or three nodes of etcd."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path

from bench.patroni.network import How, Link, Network
from bench.peers.etcd import Etcd
from bench.peers.onecopy import Onecopy

MACHINES = ("m1", "m2", "m3")


class OnecopyStore:
    """Replicas on the first two machines, a witness on the third, which Patroni does not ask."""

    has_planes = True

    def __init__(self, directory: Path, network: Network) -> None:
        self.peer = Onecopy(directory, replicas=2, witnesses=1, etcd=True)
        self._network = network
        self.nodes = dict(zip(MACHINES, self.peer.nodes, strict=True))
        self.gateways = {
            machine: self.peer.etcd_addresses[node]
            for machine, node in self.nodes.items()
            if node in self.peer.replicas
        }
        for plane in ("raft", "peer"):  # consensus first, see Network.cut
            for source, target in itertools.permutations(MACHINES, 2):
                link = Link(source, target, plane)
                address = self.peer.inner_address(self.nodes[target], plane)
                pair = self.nodes[source], self.nodes[target]
                routes = self.peer.routes.setdefault(pair, {})
                routes[plane] = network.connect(link, address)
        self.peer.write_config()

    def cut_off(self, machine: str, how: How) -> None:
        """Cut every link of a machine to others."""
        self._network.cut_off(machine, how)

    def heal(self) -> None:
        """Undo it."""
        self._network.heal()

    def wait_whole(self) -> None:
        """Wait until every node serves."""
        self.peer.wait_in_sync()


class EtcdStore:
    """A member on each machine.

    All reach a member under one address, so that no proxy can tell from which machine: instead of
    its links being cut, a member is stopped (SIGSTOP).
    """

    has_planes = False

    def __init__(self, directory: Path, network: Network) -> None:
        self.peer = Etcd(directory)
        self._network = network
        self.nodes = dict(zip(MACHINES, self.peer.nodes, strict=True))
        self.gateways = {machine: self.peer.address(node) for machine, node in self.nodes.items()}

    def cut_off(self, machine: str, how: How) -> None:
        """Cut every link of a machine to others."""
        self.peer.processes[self.nodes[machine]].signal(signal.SIGSTOP)
        self._network.cut_off(machine, how)

    def heal(self) -> None:
        """Undo it."""
        self._network.heal()
        for process in self.peer.processes.values():
            process.signal(signal.SIGCONT)

    def wait_whole(self) -> None:
        """Wait until every member names one leader."""
        self.peer.wait_all()


Store = OnecopyStore | EtcdStore
