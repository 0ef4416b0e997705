"""What `[tls]` of a configuration file holds."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class TlsSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[tls]`: by which certificates the ports for clients and between nodes are encrypted."""

    ca: Annotated[
        str,
        Meta(
            description="File of the authorities that have issued the nodes' certificates; two "
            "while one is being replaced. With it, TLS 1.3 is the only way to every node."
        ),
    ] = ""
    certificate: Annotated[
        str,
        Meta(
            description="File of this node's certificate, and of those between it and the "
            "authority. Among its DNS names must be the node's id; among its names the host of "
            "`client`, for clients. `{node}` stands for the id: `certs/{node}.crt`."
        ),
    ] = ""
    key: Annotated[
        str,
        Meta(
            description="File of the certificate's private key, not encrypted, and not readable "
            "by all users. `{node}` stands for the id."
        ),
    ] = ""
    client_ca: Annotated[
        str,
        Meta(
            description="File of the authorities whose certificates clients may show. Without it, "
            "clients are not asked for one."
        ),
    ] = ""
    crl: Annotated[
        str,
        Meta(
            description="File of revocation lists, one of each authority in `ca` and "
            "`client_ca`. What is on a list is refused."
        ),
    ] = ""
    insecure: Annotated[
        bool,
        Meta(
            description="Permit addresses other than loopback without TLS: everybody on the "
            "network between can read and change everything."
        ),
    ] = False

    @property
    def is_on(self) -> bool:
        """Whether the ports speak TLS."""
        return bool(self.ca)

    def for_node(self, node: str) -> TlsSection:
        """Return the section with the node's id in its file names."""
        return msgspec.structs.replace(
            self,
            certificate=self.certificate.replace("{node}", node),
            key=self.key.replace("{node}", node),
        )
