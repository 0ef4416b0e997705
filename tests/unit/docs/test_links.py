"""Links between pages lead somewhere, and the index names every page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.pages import ROOT, pages

_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")

_FOLDERS = "bench|cluster|datapath|docs|election|examples|onecopy|tests"
_NAMED = re.compile(rf"`((?:{_FOLDERS})/[\w./-]*\w)`|pytest ((?:{_FOLDERS})/[\w./-]*\w)")
"""A file or a folder in a code span, or in a command that runs tests."""
_EARLIER = frozenset({"CHANGELOG.md"})
"""Pages that speak of what was."""


def links_of(path: Path) -> set[str]:
    """Return the relative links of a page."""
    found = _LINK.findall(_FENCED.sub("", path.read_text()))
    return {link for link in found if "://" not in link}


def anchors_of(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _FENCED.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for link in links_of(path):
        name, _, anchor = link.partition("#")
        target = (path.parent / name) if name else path
        assert target.exists(), f"{link}: there is no {target}"
        if anchor:
            assert anchor in anchors_of(target), f"{link}: {target} has no such heading"


@pytest.mark.parametrize("path", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_page_names_are_there(path: Path) -> None:
    if path.name in _EARLIER:
        return
    named = {"".join(pair) for pair in _NAMED.findall(path.read_text())}
    there = {name for name in named if (ROOT / name).exists() or (ROOT / f"{name}.py").exists()}
    assert sorted(named - there) == []


def test_the_index_names_every_page() -> None:
    index = ROOT / "docs" / "index.md"
    named = {(index.parent / link).resolve() for link in links_of(index)}
    shown = {path for path in pages() if "decisions" not in path.parts and path != index}
    assert sorted(shown - named) == []
