"""`onecopy up --service NAME=module:Class`: what is written, kept, and refused beforehand."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.config.file import load_config
from cluster.up.directory import UpError, prepare_config
from cluster.up.services import read_services
from tests.support.ports import free_up_port

MODULE = """
import onecopy

class Shop(onecopy.Service):
    @onecopy.operation
    def reserve(self, tx: onecopy.Transaction, item: str) -> str:
        return item

class Other(Shop): ...

class Taken(onecopy.Service):
    @onecopy.operation
    def due(self, tx: onecopy.Transaction) -> None: ...
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = list(sys.path)
    (tmp_path / "up_shop.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.path[:] = path
    sys.modules.pop("up_shop", None)


def prepare(data: Path, *options: str, port: int | None = None) -> bool:
    services = read_services(options, data)
    return prepare_config(data, nodes=None, witnesses=None, port=port, services=services)[1]


def test_a_new_cluster_has_them_and_keeps_them(place: Path) -> None:
    data = place / "deep" / "data"
    assert prepare(data, "shop=up_shop:Shop", "other=up_shop:Other", port=free_up_port())
    found = load_config(data / "cluster.toml").services
    assert {name: (item.spec, item.path) for name, item in found.items()} == {
        "shop": ("up_shop:Shop", str(place)),
        "other": ("up_shop:Other", str(place)),
    }
    assert not prepare(data)
    assert not prepare(data, "shop=up_shop:Shop")
    assert load_config(data / "cluster.toml").services == found


def test_a_kept_cluster_gets_those_that_it_has_not(place: Path) -> None:
    data = place / "data"
    prepare(data, port=free_up_port())
    config = data / "cluster.toml"
    before = config.read_text()
    prepare(data, "shop=up_shop:Shop")
    assert config.read_text().startswith(before)
    assert config.stat().st_mode & 0o777 == 0o600
    assert load_config(config).services["shop"].path == str(place)
    with pytest.raises(UpError, match=r"has --service shop=up_shop:Shop in .*; omit the option"):
        prepare(data, "shop=up_shop:Other")
    config.write_text("services = {}\n" + before)
    with pytest.raises(UpError, match=r"add it by hand and omit --service"):
        prepare(data, "shop=up_shop:Shop")
    assert config.read_text() == "services = {}\n" + before


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["shop"], "write NAME=module:Class, say shop=myshop:Shop"),
        (["Shop=up_shop:Shop"], "NAME is 1 to 31 of a-z"),
        (["shop="], "write NAME=module:Class"),
        (["shop=up_shop"], "'up_shop' is not module:Class"),
        (["shop=up_shop:Shoop"], "has no class 'Shoop'; did you mean Shop?"),
        (["shop=no_shop:Shop"], "there is no module 'no_shop'"),
        (["shop=no_shop:Shop"], "nor is there a no_shop.py in /"),
        (["shop=up_shop:Shop", "shop=up_shop:Other"], "--service shop is given twice"),
        (["shop=up_shop:Taken"], "onecopy.Service has a 'due' of its own"),
        (["kv=up_shop:Shop"], "'kv' is the store's own name"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(
    place: Path, options: list[str], complaint: str
) -> None:
    with pytest.raises(UpError) as caught:
        prepare(place / "data", *options)
    assert complaint in str(caught.value)
    assert not (place / "data").exists()
