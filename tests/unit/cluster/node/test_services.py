"""The services of a configuration, loaded: who may see whose keys (X1)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.config.file import load_config
from cluster.config.model import ConfigError
from cluster.node.settings import load_hosts

MODULE = """
import onecopy

class Plain(onecopy.Service):
    @onecopy.operation
    def work(self, tx: onecopy.Transaction) -> None: ...

class Awaiting(onecopy.Service):
    @onecopy.operation
    async def order(self, tx: onecopy.Transaction) -> None: ...

class Ticking(onecopy.Service):
    @onecopy.every(seconds=1)
    async def tick(self, tx: onecopy.Transaction) -> None: ...
"""
NODE = """
[cluster]
name = "demo"
[nodes.n1]
role = "replica"
client = "127.0.0.1:8101"
peer = "127.0.0.1:8201"
raft = "127.0.0.1:8301"
data = "n1"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    path = list(sys.path)
    (tmp_path / "rights_of_services.py").write_text(MODULE)
    yield tmp_path
    sys.path[:] = path
    sys.modules.pop("rights_of_services", None)


def load(folder: Path, shop: str, stock: str, rights: str) -> None:
    config = folder / "cluster.toml"
    config.write_text(
        f'{NODE}[services.shop]\nclass = "rights_of_services:{shop}"\npath = "."\n{rights}\n'
        f'[services.stock]\nclass = "rights_of_services:{stock}"\npath = "."\n'
    )
    config.chmod(0o600)
    load_hosts(load_config(config), "n1")


@pytest.mark.parametrize(
    ("shop", "stock", "rights", "refused"),
    [
        ("Plain", "Plain", 'reads = ["stock", "kv"]\nwrites = ["stock", "kv"]', ""),
        ("Plain", "Awaiting", 'reads = ["stock"]', ""),
        ("Plain", "Awaiting", 'writes = ["stock"]', "services.shop.writes: stock.order is async"),
        ("Plain", "Ticking", 'writes = ["stock"]', "services.shop.writes: stock.tick is async"),
        ("Awaiting", "Plain", 'reads = ["kv"]', "services.shop.reads: shop.order is async"),
        ("Awaiting", "Plain", 'writes = ["stock"]', "services.shop.writes: shop.order is async"),
        ("Ticking", "Plain", 'reads = ["stock"]', "services.shop.reads: shop.tick is async"),
    ],
)
def test_a_service_that_awaits_shares_no_keys_with_one_that_writes(
    folder: Path, shop: str, stock: str, rights: str, refused: str
) -> None:
    if not refused:
        load(folder, shop, stock, rights)
        return
    with pytest.raises(ConfigError) as caught:
        load(folder, shop, stock, rights)
    assert refused in str(caught.value)


@pytest.mark.parametrize("name", ["shop", "other", "KV", ""])
def test_a_right_names_another_service_or_the_store(folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"services\.shop\.reads: .*there are: kv, stock"):
        load(folder, "Plain", "Plain", f'reads = ["{name}"]')
