"""Which version of onecopy runs."""

from __future__ import annotations

import functools
from importlib.metadata import PackageNotFoundError, version


@functools.cache
def installed_version() -> str:
    """Return it, or "unknown" in a source tree that is not installed."""
    try:
        return version("onecopy")
    except PackageNotFoundError:
        return "unknown"
