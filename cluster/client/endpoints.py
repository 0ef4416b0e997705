"""Which node to ask next: known addresses, the primary among them, and who failed just now.

Pure bookkeeping: no I/O, the time is an argument (seconds, any monotonic clock).

The addresses that nodes advertise are theirs, and need not lead to them from here: in front of a
client may stand a proxy, a tunnel, a translated address. So one is used only if

- the node that named it was itself reached at an address that the cluster advertises: whoever was
  given other addresses is to stay behind what stands at those; and
- it has proved, by an answer, to belong to the same cluster: on this machine, or in this network,
  something else may listen there.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Literal

Scheme = Literal["http", "https"]
DEFAULT_ENDPOINTS = ("http://127.0.0.1:8101", "http://127.0.0.1:8102", "http://127.0.0.1:8103")
_ENDPOINT = re.compile(
    r"([Hh][Tt][Tt][Pp][Ss]?)(://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?)/?"
)
_LOOPBACK = re.compile(r"(?<=//)(?:localhost|127\.0\.0\.1|\[::1\])(?=:|$)")

PENALTY_FIRST_S = 0.1  # an endpoint that failed is avoided for so long, doubled at each failure …
PENALTY_MAX_S = 5.0  # … up to this
LEARNED_MAX = 64  # addresses beyond these are not taken from a status


class _Endpoint:
    __slots__ = ("avoid_until", "failures", "no_tls", "url", "usable")

    def __init__(self, url: str, *, usable: bool) -> None:
        self.url = url
        self.usable = usable  # given, or proved
        self.failures = 0
        self.avoid_until = 0.0
        self.no_tls = False  # the last failure was one of TLS


class Endpoints:
    """The nodes' base URLs, in order of preference.

    The given ones are kept for ever; those learned from the cluster's status come and go with it,
    and are used once `proved`. They are reached as the given ones are, by http or by https; so
    nothing is learned where those differ, nor without `discover`. `scheme` is that of an address
    that is given without one.
    """

    def __init__(
        self, given: Iterable[str], *, discover: bool = True, scheme: Scheme = "http"
    ) -> None:
        self._given = tuple(dict.fromkeys(normalize_endpoint(url, scheme) for url in given))
        if not self._given:
            raise ValueError("at least one endpoint is needed, for example http://127.0.0.1:8101")
        schemes = {url.partition("://")[0] for url in self._given}
        self.learns = discover and len(schemes) == 1
        self._scheme: Scheme = "https" if "https" in schemes else "http"
        self._known = {url: _Endpoint(url, usable=True) for url in self._given}
        self._by_node: dict[str, str] = {}
        self._primary = ""
        self._preferred = self._given[0]

    @property
    def urls(self) -> tuple[str, ...]:
        """All base URLs in use, the given ones first."""
        return tuple(item.url for item in self._known.values() if item.usable)

    @property
    def unproved(self) -> tuple[str, ...]:
        """The learned base URLs that are not used yet."""
        return tuple(item.url for item in self._known.values() if not item.usable)

    def is_given(self, url: str) -> bool:
        """Whether the endpoint was named by the caller."""
        return url in self._given

    def url_of(self, node: str) -> str | None:
        """Return the base URL, proved or not, of a node that has been learned, or None."""
        return self._by_node.get(node)

    def pick(self, now: float) -> str:
        """Return the endpoint to ask: the preferred, unless it failed just now."""
        preferred = self._known[self._preferred]
        if preferred.avoid_until <= now:
            return preferred.url
        usable = (item for item in self._known.values() if item.usable)
        return min(usable, key=lambda item: max(item.avoid_until, now)).url

    def pick_any(self, now: float, besides: Collection[str] = ()) -> str | None:
        """Return any endpoint that is none of `besides`, if there is one; rather a fresh one."""
        others = [item for item in self._known.values() if item.usable and item.url not in besides]
        fresh = [item.url for item in others if item.avoid_until <= now]
        if fresh:
            return random.choice(fresh)  # noqa: S311 -- spreads watchers over the nodes
        return min(others, key=lambda item: item.avoid_until).url if others else None

    def has_fresh(self, now: float) -> bool:
        """Whether there is an endpoint that did not fail just now."""
        return any(item.usable and item.avoid_until <= now for item in self._known.values())

    @property
    def no_tls(self) -> bool:
        """Whether TLS has failed with every endpoint in use: to try them again is no use."""
        return all(item.no_tls for item in self._known.values() if item.usable)

    def failed(self, url: str, now: float, *, no_tls: bool = False) -> None:
        """Avoid the endpoint for a while; `no_tls`: it was TLS that failed."""
        if item := self._known.get(url):
            item.no_tls = no_tls
            penalty = min(PENALTY_FIRST_S * 2.0 ** min(item.failures, 10), PENALTY_MAX_S)
            item.failures += 1
            item.avoid_until = now + penalty

    def worked(self, url: str) -> None:
        """The endpoint answered a request: prefer it until the primary is known to be another."""
        item = self._known.get(url)
        if item is not None and item.usable:
            item.failures, item.avoid_until, item.no_tls = 0, 0.0, False
            self._preferred = url

    def prefer_node(self, node: str) -> None:
        """Prefer this node, which is the primary, if its address is in use."""
        self._primary = node
        item = self._known.get(self._by_node.get(node, ""))
        if item is not None and item.usable and item.failures == 0:
            self._preferred = item.url

    def learn(self, clients: Mapping[str, str], primary: str, source: str) -> None:
        """Take over what the status says that `source`, an endpoint, has answered with.

        `clients` maps each node's id to its client address. Addresses that are none are left out.
        """
        found = {}
        for node, address in list(clients.items())[:LEARNED_MAX]:
            if (url := endpoint_or_none(address, self._scheme)) is not None:
                found[node] = url
        # A node that was just removed names the others, and no longer itself.
        advertised = map(_same_place, (*found.values(), *self._by_node.values()))
        if not self.learns or not found or _same_place(source) not in advertised:
            return
        self._by_node = found
        self._known = {
            url: self._known.get(url) or _Endpoint(url, usable=False)
            for url in dict.fromkeys((*self._given, *found.values()))
        }
        if self._preferred not in self._known:
            self._preferred = self._given[0]
        self.prefer_node(primary)

    def proved(self, url: str) -> None:
        """The endpoint has answered as a node of this client's cluster: it may be used."""
        item = self._known.get(url)
        if item is not None and not item.usable:
            item.usable = True
            self.prefer_node(self._primary)

    def disown(self, url: str) -> None:
        """Another cluster answers at this learned endpoint: use it no more."""
        if url not in self._given and (item := self._known.get(url)):
            item.usable = False
            if self._preferred == url:
                self._preferred = self._given[0]


def _same_place(url: str) -> str:
    """Return the URL with one name for this machine, however it is written."""
    return _LOOPBACK.sub("localhost", url)


def endpoint_or_none(text: str, scheme: Scheme = "http") -> str | None:
    """Return the base URL, or None where `text` is none."""
    try:
        return normalize_endpoint(text, scheme)
    except ValueError:
        return None


def normalize_endpoint(text: str, scheme: Scheme = "http") -> str:
    """Return the base URL: a bare host:port gets `scheme`; no path. Raises ValueError."""
    url = text.strip()
    if "://" not in url:
        url = f"{scheme}://{url}"
    found = _ENDPOINT.fullmatch(url)
    if found is None:
        raise ValueError(f"{text!r} is not an endpoint; write it like http://127.0.0.1:8101")
    given_scheme, rest, port = found.groups()
    if port and not 1 <= int(port) <= 65535:
        raise ValueError(f"{text!r} is not an endpoint: the port must be from 1 to 65535")
    return f"{given_scheme.lower()}{rest}"
