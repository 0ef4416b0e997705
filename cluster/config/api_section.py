"""The section `[api]` of a configuration file."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

AdminFrom = Literal["loopback", "any"]


class ApiSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[api]`: which requests the HTTP API accepts."""

    admin_from: Annotated[
        AdminFrom,
        Meta(
            description="From where nodes may be removed and the primary handed over. "
            '`"loopback"`: only from the node\'s own machine, and not through a proxy; '
            '`"any"`: from wherever the port can be reached.'
        ),
    ] = "loopback"
    hosts: Annotated[
        tuple[str, ...],
        Meta(
            description="Host names, without ports, by which clients reach nodes besides the "
            '`client` addresses: of a proxy or load balancer. `["*"]`: any name.'
        ),
    ] = ()
    origins: Annotated[
        tuple[str, ...],
        Meta(
            description="Origins of web pages from elsewhere that may use the API (CORS), as "
            'browsers write them: `"https://tools.example"`.'
        ),
    ] = ()
