"""Breaks of the protocol's conditions that nobody notices, and why that is right (`guards.py`)."""

from __future__ import annotations

EXPLAINED: dict[str, str] = {}
