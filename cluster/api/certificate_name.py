"""Who a caller is by its certificate: the one place where that is decided."""

from __future__ import annotations

import asyncio


def certificate_name(transport: asyncio.BaseTransport | None) -> str:
    """Return the name in the certificate that the client has proved to hold, or "": none.

    The common name; where there is none, the first alternative name. TLS has verified the
    certificate under `[tls] client_ca`. It does not change over a connection's life.
    """
    connection = transport.get_extra_info("ssl_object") if transport is not None else None
    certificate = connection.getpeercert() if connection is not None else None
    if not certificate:
        return ""
    for attributes in certificate.get("subject", ()):
        for kind, value in attributes:
            if kind == "commonName":
                return str(value)
    alternative = certificate.get("subjectAltName", ())
    return str(alternative[0][1]) if alternative else ""


def shown_certificate(transport: asyncio.BaseTransport | None) -> bytes:
    """Return the certificate (DER) that the client has proved to hold, or b"": none."""
    connection = transport.get_extra_info("ssl_object") if transport is not None else None
    return (connection.getpeercert(binary_form=True) or b"") if connection is not None else b""
