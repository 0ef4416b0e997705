"""What the troubleshooting page quotes is what the programs say."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from cluster.api.problems import CODES

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "troubleshooting.md"
PACKAGES = ("cluster", "datapath", "election")


def text_of(node: ast.AST) -> str:
    """Return the text of a string in the source, with "…" for what is put in."""
    match node:
        case ast.Constant(value=str(text)):
            return re.sub(r"%[sdrg]|%\.0f|\{.*?\}", "…", text)
        case ast.JoinedStr(values=parts):
            return "".join(text_of(part) for part in parts)
        case ast.FormattedValue():
            return "…"
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return text_of(left) + text_of(right)
    return "…"


def said() -> Iterator[str]:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp):
                    yield text_of(node)


def quoted(column: str) -> list[str]:
    found = []
    for part in PAGE.read_text().split("\n## "):
        if f"\n| {column} |" in part:
            found += re.findall(r"^\| `([^`]+)`", part, re.MULTILINE)
    return found


def test_each_message_is_one_that_is_printed() -> None:
    everything = "\n".join(said())
    messages = quoted("it says")
    assert len(messages) > 20
    for message in messages:
        pattern = ".*".join(map(re.escape, message.split("…")))
        assert re.search(pattern, everything), message


def test_each_code_is_one_of_the_apis() -> None:
    codes = quoted("code")
    assert codes
    assert set(codes) <= CODES.keys()
