"""A public name stands for one thing: no two modules define the same."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("cluster", "datapath", "election", "onecopy")
SHARED = {
    "logger",  # each module's own, under the name that the standard library's pages give it
}


def _is_command(node: ast.stmt) -> bool:
    """Whether it is a command of the command line: named as it is typed."""
    decorators = getattr(node, "decorator_list", [])
    return any(ast.unparse(each).split("(")[0].endswith(".command") for each in decorators)


def _targets(node: ast.stmt) -> list[ast.expr]:
    if isinstance(node, ast.Assign):
        return node.targets
    return [node.target] if isinstance(node, ast.AnnAssign) else []


def names(tree: ast.Module) -> Iterator[str]:
    """The classes, functions and constants that a module defines for others."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found = [] if _is_command(node) else [node.name]
        else:
            targets = [part for target in _targets(node) for part in ast.walk(target)]
            found = [part.id for part in targets if isinstance(part, ast.Name)]
        yield from (name for name in found if not name.startswith("_"))


def test_a_public_name_is_defined_in_one_module() -> None:
    homes = defaultdict(set)
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for name in names(ast.parse(path.read_text())):
                homes[name].add(str(path.relative_to(ROOT)))
    assert len(homes) > 500
    clashes = {name: sorted(files) for name, files in homes.items() if len(files) > 1}
    assert {name: files for name, files in clashes.items() if name not in SHARED} == {}
    assert clashes.keys() >= SHARED, "this name has no need of its exception"


def test_what_counts_as_a_public_name() -> None:
    code = "A = _b = 1\nC: int\n@main.command()\ndef d(): ...\ndef e(): ...\nclass F: ...\n"
    assert sorted(names(ast.parse(code))) == ["A", "C", "F", "e"]
