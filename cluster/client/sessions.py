"""The connections of a client: one pool for its calls, another for its streams."""

from __future__ import annotations

import asyncio
import functools
import ssl

import aiohttp
from aiohttp.client_proto import ResponseHandler

from datapath.tls_records import read_by_record, without_context

NO_TLS = "tls_failed"
ADVISED_CA = "name the cluster's authority (cacert, --cacert or ONECOPY_CACERT)"


def make_tls(cacert: str, cert: str, key: str) -> ssl.SSLContext | None:
    """Return what connections are encrypted with; None: the system's authorities, no certificate.

    Raises ValueError that names the file which cannot be used.
    """
    if not (cacert or cert or key):
        return None
    if bool(cert) != bool(key):
        raise ValueError("cert and key belong together: give both or neither")
    try:
        context = read_by_record(ssl.create_default_context(cafile=cacert or None))
    except OSError as error:  # SSLError is one
        raise ValueError(f"cacert: {cacert} cannot be used: {_reason(error)}") from None
    if cert:
        try:
            # Else an encrypted key would be asked for on the terminal.
            context.load_cert_chain(cert, key, password="")
        except OSError as error:
            raise ValueError(f"cert or key: {cert}, {key}: {_reason(error)}") from None
    return context


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return "no PEM that belongs together" if error.reason else "no PEM"
    return error.strerror or str(error)


def is_tls_failure(error: BaseException | None) -> bool:
    """Whether no connection could be made because TLS failed, not for want of a node."""
    return isinstance(error, ssl.SSLError | aiohttp.ClientSSLError)


def explain_tls(error: Exception) -> str:
    """Return an error of a connection as a text that says what to do where TLS is the matter."""
    text = without_context(str(error))
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        reason = getattr(error.certificate_error, "verify_message", "") or text
        return f"its certificate is refused: {reason}; {ADVISED_CA}"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return f"its certificate is refused: {text}; {ADVISED_CA}"
    if "WRONG_VERSION_NUMBER" in text:
        return "it answers without TLS: use an http:// URL"
    if "ALERT" in text and "SSL" in text:
        return f"it refuses this client's certificate: {text}"
    return text


class _ClosedAtOnce(ResponseHandler):
    """A connection that waits for no farewell of TLS: nobody would, and the loop may end first."""

    def close(self) -> None:
        self.abort()


def make_session(max_connections: int, tls: ssl.SSLContext | None = None) -> aiohttp.ClientSession:
    """Return a session of that many connections; 0: without a bound."""
    connector = aiohttp.TCPConnector(
        limit=max_connections, keepalive_timeout=30, ssl=True if tls is None else tls
    )
    handler: type[ResponseHandler] = _ClosedAtOnce
    connector._factory = functools.partial(handler, loop=asyncio.get_running_loop())
    session = aiohttp.ClientSession(
        connector=connector,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("User-Agent", "Accept-Encoding", "Content-Type"),
    )
    # aiohttp would send a PUT again by itself when a kept connection breaks under it, and
    # report the second try alone: a refused connection, say, though the first was sent.
    session._retry_connection = False
    return session
