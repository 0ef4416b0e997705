"""No pattern, and no function that reads what strangers send, costs more than in proportion."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from re import _parser as parser  # type: ignore[attr-defined]
from types import ModuleType
from typing import Any

import pytest
from aiohttp import hdrs
from multidict import CIMultiDict, CIMultiDictProxy

import cluster
import datapath
import election
from cluster.api import headers as http_headers
from cluster.api import plain_head
from cluster.api.cursor import decode_cursor
from cluster.api.params import RANGE_PARAMS, decode_key, parse_query
from cluster.api.problems import ProblemError
from cluster.config import model
from tests.support.growth import LARGE, grows_too_fast

SEARCHING = {"search", "sub", "split", "findall", "finditer"}


def modules() -> Iterator[ModuleType]:
    for package in (cluster, datapath, election):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            yield importlib.import_module(found.name)


@functools.cache
def parsed() -> dict[ModuleType, list[ast.AST]]:
    """Return the syntax, node by node, of the modules that have to do with patterns."""
    found = {}
    for module in modules():
        text = Path(str(module.__file__)).read_text()
        kept = any(isinstance(value, re.Pattern) for value in vars(module).values())
        if kept or re.search(r"\bre\.", text):
            found[module] = list(ast.walk(ast.parse(text)))
    return found


def compiled() -> Iterator[tuple[str, re.Pattern[Any]]]:
    """Yield every pattern: those that modules keep, and those given to `re` where they are used."""
    for module, nodes in parsed().items():
        for name, value in vars(module).items():
            if isinstance(value, re.Pattern):
                yield f"{module.__name__}.{name}", value
        for node in nodes:
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "re"
                and isinstance(node.args[0], ast.Constant)
            ):
                yield f"{module.__name__}:{node.lineno}", re.compile(node.args[0].value)


def searched() -> set[str]:
    """Return the names of patterns that are searched for, not matched at a place."""
    return {
        f"{module.__name__}.{node.value.id}"
        for module, nodes in parsed().items()
        for node in nodes
        if isinstance(node, ast.Attribute)
        and node.attr in SEARCHING
        and isinstance(node.value, ast.Name)
    }


PATTERNS = dict(compiled())
SEARCHED = searched()
parsed.cache_clear()


def letters(tree: Any) -> set[int]:
    """Return a few characters that a parsed pattern speaks of: the ends of its classes."""
    found: set[int] = set()
    for op, argument in tree:
        name = str(op)
        if name in {"LITERAL", "NOT_LITERAL"}:
            found.add(argument)
        elif name == "RANGE":
            found.update(argument)
        elif name == "IN":
            found |= letters(argument)
        elif name == "BRANCH":
            for branch in argument[1]:
                found |= letters(branch)
        elif name == "SUBPATTERN":
            found |= letters(argument[-1])
        elif name in {"MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"}:
            found |= letters(argument[2])
        elif name in {"ASSERT", "ASSERT_NOT"}:
            found |= letters(argument[1])
    return found


def sample(tree: Any) -> str:
    """Return a text that matches a parsed pattern, each repeat once."""
    text = ""
    for op, argument in tree:
        match str(op):
            case "LITERAL":
                text += chr(argument)
            case "IN":
                inner = [entry for entry in argument if str(entry[0]) in {"LITERAL", "RANGE"}]
                first = inner[0][1] if inner else ord("0")
                text += chr(first if isinstance(first, int) else first[0])
            case "ANY" | "CATEGORY":
                text += "a"
            case "BRANCH":
                text += sample(argument[1][0])
            case "SUBPATTERN":
                text += sample(argument[-1])
            case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
                text += sample(argument[2]) * max(1, argument[0])
    return text


def attacks(pattern: re.Pattern[Any]) -> Iterator[tuple[str, str, str]]:
    """Yield (before, pumped, after): the pumped part is repeated."""
    tree = parser.parse(pattern.pattern)
    usual = [chr(letter) for letter in sorted(letters(tree)) if letter < 0x80]
    whole = sample(tree)
    pumps = [*dict.fromkeys([*usual, " ", "\t", "a", "0", "\r\n"])][:24]
    pumps += [" a", "a ", "\\\\", '\\"', "%4", "a,", '"",', whole]
    for end in range(len(whole) + 1):
        for pump in pumps:
            for after in ("\x01", "", "%", '"'):
                yield whole[:end], pump, after


@pytest.mark.parametrize("name", PATTERNS)
def test_no_pattern_is_slow(name: str) -> None:
    pattern = PATTERNS[name]
    uses = [pattern.fullmatch, pattern.match] + ([pattern.search] if name in SEARCHED else [])
    for before, pump, after in attacks(pattern):

        def text(size: int, *parts: str) -> Any:
            whole = parts[0] + parts[1] * (size // len(parts[1])) + parts[2]
            return whole.encode("latin-1") if isinstance(pattern.pattern, bytes) else whole

        for use in uses:
            small, large = text(LARGE // 8, before, pump, after), text(LARGE, before, pump, after)
            slow = grows_too_fast(
                lambda size, use=use, small=small, large=large: use(  # type: ignore[misc]
                    large if size == LARGE else small
                )
            )
            assert not slow, f"{use.__name__} {before!r} + {pump!r} * n + {after!r}"


def test_the_patterns_have_been_found() -> None:
    assert "cluster.api.plain_head._FIELD" in PATTERNS
    assert "cluster.api.params._BAD_PERCENT" in SEARCHED
    assert any(name.startswith("cluster.config.model:") for name in PATTERNS)


def headers(name: str, *values: str) -> CIMultiDictProxy[str]:
    return CIMultiDictProxy(CIMultiDict([(name, value) for value in values]))


READERS: dict[str, Callable[[str], object]] = {
    "fields": lambda text: plain_head._parse_block(b"host: h\r\nx:%b\r\n" % text.encode()),
    "fields that end badly": lambda text: plain_head._parse_block(b"x:%b\x01\r\n" % text.encode()),
    "many fields": lambda text: plain_head._parse_block(
        b"".join(b"a%d:%b\r\n" % (number, text[:4].encode()) for number in range(len(text) // 8))
    ),
    "request line": lambda text: plain_head.PLAIN.match(b"GET /v1/kv/" + text.encode()),
    "entity tags": lambda text: http_headers.entity_tags(headers("If-Match", text), hdrs.IF_MATCH),
    "idempotency key": lambda text: http_headers.idempotency_key(
        headers("Idempotency-Key", f'"{text}')
    ),
    "key": decode_key,
    "query": lambda text: parse_query(text, RANGE_PARAMS),
    "parameter": lambda text: parse_query(f"prefix={text}", RANGE_PARAMS),
    "cursor": lambda text: decode_cursor(text, None),
    "address": lambda text: model.split_address(f"{text}:80"),
}
PUMPS = [" ", "\t", " \t", "a", "%", "%4", "%41", '"', '"",', '"1",', 'W/"1" ,', ",", "\\", "\\\\"]
PUMPS += ["&", "=", "a=&", "+", ":", "[", "0", "."]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("pump", PUMPS)
def test_no_reader_is_slow(reader: str, pump: str) -> None:
    read = READERS[reader]

    def call(size: int) -> None:
        with contextlib.suppress(ProblemError, ValueError):
            read(pump * (size // len(pump)))

    assert not grows_too_fast(call)


def test_the_work_for_a_condition_is_bounded() -> None:
    few = headers("If-Match", *['"1"'] * http_headers.MAX_ENTITY_TAGS)
    tags = http_headers.entity_tags(few, hdrs.IF_MATCH)
    assert tags is not None
    assert len(tags.strong) == http_headers.MAX_ENTITY_TAGS
    with pytest.raises(ProblemError, match="more than 100"):
        http_headers.entity_tags(headers("If-Match", '"1",' * 101), hdrs.IF_MATCH)
