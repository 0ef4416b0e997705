"""Who a request is for and which web page it comes from: Host, Origin, Sec-Fetch-Site.

A page of any site can have its visitor's browser send requests to addresses that only the visitor
reaches, this node's among them. Two checks keep it out, both decided from the head alone:

- *Host.* By DNS rebinding a page's own name is made to resolve to the node's address, so that the
  browser takes the node for the page's own server. The browser still names the page's host, so only
  names of this cluster are served. An IP address is served whichever it is: rebinding takes a name.
- *Origin.* Without rebinding a page can send and not read. What a page of another origin sends to
  change something is refused, and so is what it embeds (scripts, images) if the browser says so.

Clients that are no browsers send neither Origin nor Sec-Fetch-Site, and notice only the first.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from aiohttp import HttpVersion, HttpVersion11, hdrs
from multidict import istr

from cluster.api.headers import Headers
from cluster.api.problems import ProblemError

ANY_HOST = "*"
SEC_FETCH_SITE = istr("Sec-Fetch-Site")
SEC_FETCH_MODE = istr("Sec-Fetch-Mode")

_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,254})(?::([0-9]{0,5}))?")
_ORIGIN = re.compile(r"(https?)://([\[\]0-9A-Za-z:._-]{1,300})")
_ABSOLUTE = re.compile(r"[Hh][Tt][Tt][Pp][Ss]?://([^/?#@\\]{1,300})(/[^?#]*)?(\?[^#]*)?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_MAX_KNOWN_SPELLINGS = 256


def split_target(target: str) -> tuple[str, str]:
    """Return (origin-form target, authority) of a request's target; the authority may be "".

    An absolute-form target (RFC 9112, 3.2.2; as proxies send it) brings an authority that counts
    in place of the Host header. Raises Problem "malformed_request".
    """
    if target.startswith("/") and "#" not in target:
        return target, ""
    found = _ABSOLUTE.fullmatch(target)
    if found is None:
        raise ProblemError(
            "malformed_request",
            "the request's target must be a path, or http://host/path, without # and user",
            closes=True,
        )
    authority, path, query = found.groups()
    return (path or "/") + (query or ""), authority


class Hosts:
    """The hosts that requests may be for, and the origins whose pages may send them.

    `names` are host names or addresses without ports (`*`: any name). `origins` are further
    origins, as browsers write them (`https://tools.example`), whose pages may change things.
    """

    def __init__(self, names: Iterable[str] = (), origins: Iterable[str] = ()) -> None:
        self._names = {_normal(name) for name in names}
        self._origins = frozenset(origin.lower() for origin in origins)
        self._known: set[str] = set()  # spellings of Host that were found allowed

    def learn(self, names: Iterable[str]) -> None:
        """Serve these names too: addresses that the cluster's members advertise."""
        self._names.update(_normal(name) for name in names)

    def allows(self, authority: str) -> bool:
        """Whether requests for this Host ("host" or "host:port") are served."""
        if authority in self._known:
            return True
        found = _AUTHORITY.fullmatch(authority)
        if found is None or not self._allows_host(_normal(found[1])):
            return False
        if len(self._known) >= _MAX_KNOWN_SPELLINGS:
            self._known.clear()
        self._known.add(authority)
        return True

    def allows_origin(self, origin: str | None) -> bool:
        """Whether pages of an origin are among those that the configuration names."""
        return origin is not None and origin.lower() in self._origins

    def _allows_host(self, host: str) -> bool:
        if host in self._names or host == "localhost" or host.endswith(".localhost"):
            return True
        try:
            return not ipaddress.ip_address(host).is_unspecified
        except ValueError:
            return ANY_HOST in self._names

    def check(self, method: str, authority: str, headers: Headers, version: HttpVersion) -> None:
        """Refuse a request that a foreign web page may have caused. Raises Problem.

        `authority` is what the target named, or "": then the Host header counts.
        """
        given = headers.getall(hdrs.HOST, ())
        if len(given) > 1:
            raise ProblemError("malformed_request", "the Host header is given twice", closes=True)
        authority = authority or (given[0].strip(" \t") if given else "")
        if not authority and (given or version >= HttpVersion11):
            raise ProblemError(
                "malformed_request", "the Host header is missing or empty", closes=True
            )
        if authority and not self.allows(authority):
            raise ProblemError(
                "unknown_host",
                f"Host {authority[:100]!r} is not an address of this cluster: use a node's "
                "address, or add the name to [api] hosts in the configuration file",
                closes=True,
            )
        self._check_page(method, authority, headers)

    def _check_page(self, method: str, authority: str, headers: Headers) -> None:
        origin = headers.get(hdrs.ORIGIN)
        if self.allows_origin(origin):
            return
        reads = method in _SAFE_METHODS
        site = headers.get(SEC_FETCH_SITE)
        foreign = site is not None and site.strip().lower() not in {"same-origin", "none"}
        if foreign and reads and headers.get(SEC_FETCH_MODE, "").strip().lower() == "navigate":
            foreign = False  # somebody followed a link; the page that has it sees nothing of it
        if not reads and origin is not None and not _is_same(origin, authority):
            foreign = True
        if foreign:
            whose = f"of {origin[:100]!r} " if origin is not None else ""
            raise ProblemError(
                "foreign_origin",
                f"the request comes from a web page {whose}that this node does not serve; to "
                "allow it, add its origin to [api] origins in the configuration file",
                closes=True,
            )


def _normal(host: str) -> str:
    return host.lower().removeprefix("[").removesuffix("]").rstrip(".")


def _is_same(origin: str, authority: str) -> bool:
    """Whether a page of `origin` was served by `authority`; TLS may end before this node."""
    found = _ORIGIN.fullmatch(origin.strip().lower())
    if found is None:  # "null" too
        return False
    port = _DEFAULT_PORTS[found[1]]
    return _split(found[2], port) == _split(authority.lower(), port)


def _split(authority: str, default_port: str) -> tuple[str, str] | None:
    found = _AUTHORITY.fullmatch(authority)
    return None if found is None else (_normal(found[1]), found[2] or default_port)
