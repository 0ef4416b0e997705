"""A toxiproxy-server of one test's own, steered through its Python client.

    with ToxiproxyServer(log_path) as server:
        proxy = server.add("peer n1 to n2", upstream="127.0.0.1:8202")
        proxy.add_toxic(name="slow", type="latency", stream="upstream", attributes={"latency": 50})
        ...
        server.reset()

The client, toxiproxy-python 0.1.1, keeps the server's address in a class (one server in a process
at a time), takes an answer of 500 for success, and does not tell a proxy's toxics from the listing.
So everything done here is read back from the server, and what did not come true raises
ToxiproxyError.

What the words of toxiproxy mean: *upstream* is the stream of bytes from who dials to who listens,
*downstream* the way back. A toxic acts on live connections too, from the next bytes on. Removing a
`timeout` closes the connections that it swallowed bytes of. Removing one that holds bytes back
(`bandwidth`, `latency`, `slicer`) delivers them, and blocks the server where the receiver of such
bytes has gone: then `renew` the proxy instead.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import toxiproxy
from toxiproxy.api import APIConsumer

from tests.support.go_tools import toxiproxy_server
from tests.support.ports import free_address, free_port

Stream = Literal["upstream", "downstream"]
Attributes = Mapping[str, int]

START_TIMEOUT_S = 30.0
_POLL_INTERVAL_S = 0.01


class ToxiproxyError(Exception):
    """The server did not do what it was asked for."""


class Proxy:
    """One proxy: a port that leads to `upstream`."""

    def __init__(self, name: str, listen: str, upstream: str, inner: Any) -> None:
        self.name = name
        self.listen = listen
        self.upstream = upstream
        self._inner = inner

    def add_toxic(self, name: str, kind: str, stream: Stream, attributes: Attributes) -> None:
        """Add a toxic to one stream of all its connections, live and future ones."""
        self._inner.add_toxic(name=name, type=kind, stream=stream, attributes=dict(attributes))
        found = self._inner.get_toxic(name)
        if (
            found is None
            or (found.type, found.stream) != (kind, stream)
            or not attributes.items() <= found.attributes.items()
        ):
            raise ToxiproxyError(f"{self.name}: {kind} {attributes} on {stream} was not added")

    def disable(self) -> None:
        """Close all its connections, and refuse new ones, until `enable`, or the server's reset."""
        self._inner.disable()
        if _listing()[self.name]["enabled"]:
            raise ToxiproxyError(f"{self.name} is still enabled")

    def enable(self) -> None:
        """Take connections again; its toxics are as they were."""
        self._inner.enable()
        if not _listing()[self.name]["enabled"]:
            raise ToxiproxyError(f"{self.name} is still disabled")


class ToxiproxyServer:
    """A process and its proxies. See above."""

    def __init__(self, log_path: Path) -> None:
        self.log_path = log_path
        self.url = ""
        self._client = toxiproxy.Toxiproxy()
        self._popen: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()

    def start(self) -> None:
        """Start the process, and wait until it answers."""
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        os.environ["NO_PROXY"] = "127.0.0.1"  # the client asks by way of the user's proxy otherwise
        with self.log_path.open("ab") as log:
            self._popen = subprocess.Popen(
                [str(toxiproxy_server()), "-host", "127.0.0.1", "-port", str(port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "LOG_LEVEL": "warn"},
                start_new_session=True,
            )
        self._client.update_api_consumer("127.0.0.1", port)
        end_s = time.monotonic() + START_TIMEOUT_S
        while not self._client.running():
            if self._popen.poll() is not None or time.monotonic() > end_s:
                raise ToxiproxyError(f"it does not run; see {self.log_path}")
            time.sleep(_POLL_INTERVAL_S)

    def end(self) -> None:
        """End the process, whatever its state."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()
            self._popen = None

    def add(self, name: str, upstream: str) -> Proxy:
        """Make a proxy on a free port."""
        listen = free_address()
        return Proxy(name, listen, upstream, self._create(name, listen, upstream))

    def _create(self, name: str, listen: str, upstream: str) -> Any:
        inner = self._client.create(upstream=upstream, name=name, listen=listen, enabled=True)
        if inner.listen != listen or not inner.enabled:
            raise ToxiproxyError(f"{name} listens on {inner.listen}, not on {listen}")
        return inner

    def renew(self, proxy: Proxy) -> None:
        """Close all its connections, and begin anew without toxics on the same port."""
        proxy._inner.destroy()
        proxy._inner = self._create(proxy.name, proxy.listen, proxy.upstream)

    def reset(self) -> None:
        """Enable every proxy, and remove every toxic."""
        self._client.reset()
        bad = [
            proxy for proxy in _listing().values() if not proxy["enabled"] or proxy["toxics"] != []
        ]
        if bad:
            raise ToxiproxyError(f"a reset left these: {bad}")


def _listing() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = APIConsumer.get("/proxies").json()
    return found
