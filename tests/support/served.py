"""What the API's fixtures hand out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from cluster.api.routes import HttpApi
from tests.support.local_node import LocalNode


class Local(NamedTuple):
    """A local node, served."""

    base_url: str
    node: LocalNode
    api: HttpApi


Serve = Callable[..., Awaitable[Local]]
"""Serves a fresh local node: `await serve(HttpSettings(…), node)`."""
