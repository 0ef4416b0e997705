"""Loading a service by the name of its class: every failure names what is wrong, and the fix."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.services.loading import load_service
from cluster.services.signatures import ServiceError

GOOD = """
import onecopy

class Shop(onecopy.Service):
    @onecopy.operation
    def reserve(self, tx: onecopy.Transaction, item: str) -> str:
        return item
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    path, modules = list(sys.path), set(sys.modules)
    (tmp_path / "good_shop.py").write_text(GOOD)
    (tmp_path / "broken_shop.py").write_text("import not_there_at_all\n")
    (tmp_path / "failing_shop.py").write_text("1 / 0\n")
    (tmp_path / "odd_shop.py").write_text(
        GOOD
        + "class Plain: pass\n"
        + "class Needs(onecopy.Service):\n    def __init__(self, x): pass\n"
        + "class Forgets(onecopy.Service):\n    def __init__(self): pass\n"
    )
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.endswith("_shop"):
            del sys.modules[name]


def test_a_class_is_made(folder: Path) -> None:
    service = load_service("good_shop:Shop", folder)
    assert set(service.operations) == {"reserve"}


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("good_shop", 'write it like class = "myshop.service:Shop"'),
        ("good_shop:", "is not module:Class"),
        ("no_shop:Shop", "there is no module 'no_shop': install it where this node runs, or name"),
        ("no_shop.inner:Shop", "there is no module 'no_shop'"),
        ("good_shop:Shoop", "has no class 'Shoop'; did you mean Shop?"),
        ("broken_shop:Shop", "it needs 'not_there_at_all', which is not installed here"),
        ("failing_shop:Shop", "cannot be imported for its Shop: ZeroDivisionError"),
        ("odd_shop:Plain", "is not a service: write class Plain(onecopy.Service)"),
        ("odd_shop:Needs", "It is made without arguments"),
        ("odd_shop:Forgets", "its __init__ has to call super().__init__()"),
    ],
)
def test_what_cannot_be_loaded(folder: Path, spec: str, complaint: str) -> None:
    with pytest.raises(ServiceError) as caught:
        load_service(spec, folder)
    assert complaint in str(caught.value)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="is no directory"):
        load_service("good_shop:Shop", tmp_path / "missing")
