"""What nodes and clients share of TLS. Clients read record by record, as `tls_transport` does."""

from __future__ import annotations

import re
import ssl
from typing import Any, Self, cast

MAX_RECORD_BYTES = 16 * 1024
"""What a record of TLS holds at most (RFC 8446, 5.1)."""
_CONTEXT = re.compile(r" ssl:(?:<[^>]*>|default)")


class RecordReader(ssl.SSLObject):
    """The end of a connection that reads no more at once than a record holds.

    uvloop asks for 256 KiB at each read, and `ssl` allocates as much first. What is that large
    the allocator mostly maps, shrinks and unmaps again: 9 us, ten times what the record costs. A
    read returns one record at most. And uvloop reads until there is nothing more: where that can
    be seen, OpenSSL is not asked, whose answer costs as much as a record.
    """

    @classmethod
    def _create(cls, incoming: ssl.MemoryBIO, *args: Any, **options: Any) -> Self:
        """Make one, as a context does; its methods are those of C, without a frame of Python."""
        made: Any = super()._create(incoming, *args, **options)  # type: ignore[misc]
        read, pending = made._sslobj.read, made._sslobj.pending

        def read_record(size_bytes: int = MAX_RECORD_BYTES, buffer: Any = None) -> Any:
            if not incoming.pending and not incoming.eof and not pending():
                raise ssl.SSLWantReadError
            if buffer is not None:
                return read(size_bytes, buffer)
            return read(min(size_bytes, MAX_RECORD_BYTES))

        made.read, made.write, made.pending = read_record, made._sslobj.write, pending
        return cast("Self", made)


def read_by_record(context: ssl.SSLContext) -> ssl.SSLContext:
    """Let the connections of a context be read so; return it."""
    context.sslobject_class = RecordReader
    return context


def without_context(text: str) -> str:
    """Return an error of aiohttp's without what it says of a context, such as its address."""
    return _CONTEXT.sub("", text)
