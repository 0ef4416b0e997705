"""Who a caller is by its certificate: the one place where that is decided."""

from __future__ import annotations

import asyncio


def certificate_name(transport: asyncio.BaseTransport | None) -> str:
    """Return the common name in the certificate that the client has proved to hold, or "": none.

    TLS has verified the certificate under `[tls] client_ca`. It does not change over a connection's
    life. Who has two common names has none.
    """
    certificate = transport.get_extra_info("peercert") if transport is not None else None
    if not certificate:
        return ""
    names = [
        value
        for attributes in certificate.get("subject", ())
        for kind, value in attributes
        if kind == "commonName"
    ]
    return str(names[0]) if len(names) == 1 else ""


def shown_certificate(transport: asyncio.BaseTransport | None) -> bytes:
    """Return the certificate (DER) that the client has proved to hold, or b"": none."""
    connection = transport.get_extra_info("ssl_object") if transport is not None else None
    return (connection.getpeercert(binary_form=True) or b"") if connection is not None else b""
