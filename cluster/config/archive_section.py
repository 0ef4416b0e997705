"""`[archive]` of a configuration file."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class ArchiveSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[archive]`: keeps the committed log outside the cluster, for `onecopy restore`."""

    url: Annotated[
        str,
        Meta(
            description='Where to: `"file:///var/backups/onecopy"`, a directory that every replica '
            'reaches, or `"s3://bucket/prefix"` (`gs://`, `az://`), which needs `pip install '
            '"onecopy[archive]"`. Credentials and endpoint come from the environment: '
            "`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL`."
        ),
    ]
    piece_interval_ms: Annotated[
        int,
        Meta(
            ge=100,
            le=3_600_000,
            description="How often the primary archives what has committed; no object is written "
            "while nothing has. What is newer is lost with the cluster.",
        ),
    ] = 10_000
    base_interval_ms: Annotated[
        int,
        Meta(
            ge=1000,
            le=2_592_000_000,
            description="How often the whole state is archived. A restore replays the log from "
            "the last one before the point.",
        ),
    ] = 86_400_000
    max_log_bytes: Annotated[
        int,
        Meta(
            ge=65536,
            le=2**46,
            description="Bytes of log that each replica holds while they are not archived. Above "
            "it they are dropped: the archive has a gap, and begins anew with the whole state. At "
            "least `limits.log_retention_bytes`.",
        ),
    ] = 1_073_741_824
