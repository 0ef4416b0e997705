"""`[access]` of a configuration file."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class AccessSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[access]`: tokens and roles; in the file of every node, or everybody may do everything."""

    admin_token_hash: Annotated[
        str,
        Meta(
            description="The id and the SHA-256 of the first administrator's token, "
            '`"1f3c9a0b7d2e4f58:9f86d0…"`, as `onecopy token init` prints it. The cluster takes '
            "each such token once: one that was revoked does not come back."
        ),
    ]
    anonymous: Annotated[
        str,
        Meta(
            description="The role of callers without a token. Empty: they may do nothing but ask "
            'for health. `"admin"`: whoever reaches the port may do everything.'
        ),
    ] = ""
    audit_file: Annotated[
        str,
        Meta(
            description="File to which refusals and changes of the cluster, of tokens and of roles "
            "are written, as JSON lines; relative to the configuration file. `{node}` in it is the "
            "node's id. Empty: none."
        ),
    ] = ""
