"""`/ui/`: serves the dashboard's files, to anybody. They say nothing about the cluster."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import hdrs
from aiohttp.web import BaseRequest

from cluster.api.answer import Answer
from cluster.api.problems import ProblemError
from cluster.api.route_rights import PAGES
from cluster.dashboard.files import INDEX, load_files

_POLICY = b"; ".join((
    b"default-src 'none'",
    b"script-src 'self'",
    b"style-src 'self'",
    b"img-src 'self'",
    b"connect-src 'self'",
    b"base-uri 'none'",
    b"form-action 'none'",
    b"frame-ancestors 'none'",
    b"require-trusted-types-for 'script'",
    b"trusted-types 'none'",
))  # fmt: skip
_HEADERS = (
    b"Content-Security-Policy: %b\r\n"
    b"X-Content-Type-Options: nosniff\r\n"
    b"Referrer-Policy: no-referrer\r\n"
    b"Cross-Origin-Opener-Policy: same-origin\r\n"
    b"Cross-Origin-Resource-Policy: same-origin\r\n"
    b"Cache-Control: no-cache\r\n" % _POLICY
)


class PageHandlers:
    """The handlers of the dashboard's files, which are read once."""

    def __init__(self, identity: Callable[[], bytes]) -> None:
        self._files = load_files()
        self._identity = identity
        self.methods: dict[str, Callable[[BaseRequest, str], Awaitable[Answer]]] = {
            "GET": self.get,
            "HEAD": self.get,
        }

    async def get(self, request: BaseRequest, path: str) -> Answer:
        """GET of a file. Any query is ignored."""
        headers = self._identity() + _HEADERS
        if path == PAGES[:-1]:  # the page's own links are relative to /ui/
            return Answer(308, b"", b"text/plain", headers + b"Location: %b\r\n" % PAGES.encode())
        file = self._files.get(path[len(PAGES) :] or INDEX)
        if file is None:
            raise ProblemError("not_found", f"the dashboard has no {path[:200]!r}: open {PAGES}")
        headers += b"ETag: %b\r\n" % file.etag
        if request.headers.get(hdrs.IF_NONE_MATCH, "").encode("utf-8", "replace") == file.etag:
            return Answer(304, None, headers=headers)
        return Answer(200, file.body, file.content_type, headers)
