"""Where things live: a room passes no names on, tests mirror the code, no file is too long."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("cluster", "datapath", "election")
MAX_LINES = 500


def folders(top: Path) -> set[str]:
    """The folders below `top` that hold Python, relative to it."""
    return {str(path.parent.relative_to(top)) for path in top.rglob("*.py")}


def test_a_room_passes_no_names_on() -> None:
    faces = [path for package in PACKAGES for path in (ROOT / package).rglob("__init__.py")]
    full = {str(path.relative_to(ROOT)) for path in faces if path.read_text()}
    assert full == {"election/pysyncobj_adapter/__init__.py"}  # the library behind it is its secret


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("kind", ["unit", "integration"])
def test_tests_stand_in_the_folder_of_their_code(kind: str, package: str) -> None:
    assert folders(ROOT / "tests" / kind / package) <= folders(ROOT / package) | {"."}


@pytest.mark.parametrize("package", PACKAGES)
def test_each_room_has_its_face(package: str) -> None:
    for folder in folders(ROOT / package):
        assert (ROOT / package / folder / "__init__.py").is_file(), folder


def test_no_file_is_too_long() -> None:
    files = [path for package in (*PACKAGES, "onecopy") for path in (ROOT / package).rglob("*.py")]
    lines = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in files}
    assert {path: count for path, count in lines.items() if count > MAX_LINES} == {}
