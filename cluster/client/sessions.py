"""The connections of a client: one pool for its calls, another for its streams."""

from __future__ import annotations

import aiohttp


def make_session(max_connections: int) -> aiohttp.ClientSession:
    """Return a session of that many connections; 0: without a bound."""
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=max_connections, keepalive_timeout=30),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("User-Agent", "Accept-Encoding", "Content-Type"),
    )
    # aiohttp would send a PUT again by itself when a kept connection breaks under it, and
    # report the second try alone: a refused connection, say, though the first was sent.
    session._retry_connection = False
    return session
