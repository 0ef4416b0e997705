"""Which node to ask next: known addresses, the primary among them, and who failed just now.

Pure bookkeeping: no I/O, the time is an argument (seconds, any monotonic clock).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_ENDPOINT = re.compile(r"(https?://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?)/?")

PENALTY_FIRST_S = 0.1  # an endpoint that failed is avoided for so long, doubled at each failure …
PENALTY_MAX_S = 5.0  # … up to this


class _Endpoint:
    __slots__ = ("avoid_until", "failures", "url")

    def __init__(self, url: str) -> None:
        self.url = url
        self.failures = 0
        self.avoid_until = 0.0


class Endpoints:
    """The nodes' base URLs, in order of preference.

    The given ones are kept for ever; those learned from the cluster's status come and go with it.
    Addresses are learned only if all the given ones are plain http: behind a TLS proxy the nodes'
    own addresses are not for clients.
    """

    def __init__(self, given: Iterable[str]) -> None:
        self._given = tuple(dict.fromkeys(normalize_endpoint(url) for url in given))
        if not self._given:
            raise ValueError("at least one endpoint is needed, say http://127.0.0.1:8101")
        self._learns = all(url.startswith("http://") for url in self._given)
        self._known = {url: _Endpoint(url) for url in self._given}
        self._by_node: dict[str, str] = {}
        self._preferred = self._given[0]

    @property
    def urls(self) -> tuple[str, ...]:
        """All known base URLs, the given ones first."""
        return tuple(self._known)

    def url_of(self, node: str) -> str | None:
        """Return the base URL of a node that the cluster's status has named, or None."""
        return self._by_node.get(node)

    def pick(self, now: float) -> str:
        """Return the endpoint to ask: the preferred, unless it failed just now."""
        preferred = self._known[self._preferred]
        if preferred.avoid_until <= now:
            return preferred.url
        return min(self._known.values(), key=lambda item: max(item.avoid_until, now)).url

    def has_fresh(self, now: float) -> bool:
        """Whether there is an endpoint that did not fail just now."""
        return any(item.avoid_until <= now for item in self._known.values())

    def failed(self, url: str, now: float) -> None:
        """Avoid the endpoint for a while."""
        if item := self._known.get(url):
            penalty = min(PENALTY_FIRST_S * 2.0 ** min(item.failures, 10), PENALTY_MAX_S)
            item.failures += 1
            item.avoid_until = now + penalty

    def worked(self, url: str) -> None:
        """The endpoint answered a request: prefer it until the primary is known to be another."""
        if item := self._known.get(url):
            item.failures, item.avoid_until = 0, 0.0
            self._preferred = url

    def prefer_node(self, node: str) -> None:
        """Prefer this node, which executed a write, if its address is known."""
        url = self._by_node.get(node)
        if url is not None and self._known[url].failures == 0:
            self._preferred = url

    def learn(self, clients: Mapping[str, str], primary: str) -> None:
        """Take over what the cluster's status says: node id -> client address, and the primary."""
        if not self._learns:
            return
        self._by_node = {node: normalize_endpoint(address) for node, address in clients.items()}
        wanted = dict.fromkeys((*self._given, *self._by_node.values()))
        self._known = {url: self._known.get(url) or _Endpoint(url) for url in wanted}
        if self._preferred not in self._known:
            self._preferred = self._given[0]
        self.prefer_node(primary)


def normalize_endpoint(text: str) -> str:
    """Return the base URL: a bare host:port is http; no path. Raises ValueError."""
    url = text.strip()
    if "://" not in url:
        url = f"http://{url}"
    found = _ENDPOINT.fullmatch(url)
    if found is None:
        raise ValueError(f"{text!r} is no endpoint; write it like http://127.0.0.1:8101")
    return found[1]
