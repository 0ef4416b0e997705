"""PostgreSQL under Patroni, whose state is kept by two data nodes and a witness: kills and cuts."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.patroni.faults import FAULTS, HOWS, Fault
from bench.patroni.members import make_environment, postgres_binaries
from bench.patroni.network import How, Network
from bench.patroni.run import Trial
from bench.patroni.stores import OnecopyStore
from bench.peers.process import MissingPeerError
from tests.support.toxiproxy import ToxiproxyServer

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(300)]

CASES = [
    pytest.param(fault, how, id=f"{fault.name} {how}" if fault.is_cut else fault.name)
    for fault in FAULTS
    for how in (HOWS if fault.is_cut and fault.moves else HOWS[:1])
]


@pytest.fixture(scope="module")
def trial() -> Iterator[Trial]:
    """Two PostgreSQLs and a store, for all tests: each fault meets what the last one left."""
    try:
        postgres_binaries()
    except MissingPeerError as error:
        pytest.skip(str(error))
    directory = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="onecopy-patroni-"))
    directory.chmod(0o755)  # PostgreSQL's user goes there
    try:
        python = make_environment(directory / "environment")
        with ToxiproxyServer(directory / "toxiproxy.log") as server:
            network = Network(server)
            store = OnecopyStore(directory / "store", network)
            trial = Trial(store, network, directory / "postgres", python)
            try:
                trial.start()
                yield trial
            finally:
                trial.close()
    finally:
        shutil.rmtree(directory)


@pytest.mark.parametrize(("fault", "how"), CASES)
def test_one_primary_goes_on_and_has_every_acknowledged_commit(
    trial: Trial, fault: Fault, how: How
) -> None:
    outcome = trial.strike(fault, how)
    assert outcome.lost == 0
    assert outcome.second_primary == 0
    assert outcome.failover or not fault.moves
    assert outcome.acknowledged > 0


def test_what_was_acknowledged_before_all_of_it_is_there(trial: Trial) -> None:
    verdict = trial.verdict()
    assert verdict["acknowledged"] > 0
    assert (verdict["lost"], verdict["second_primary"]) == (0, 0)
