"""TLS for one connection: a transport over a plain one, handshake and records by `ssl`.

That of an event loop asks, copies and looks several times for each record; here what comes in is
one call of OpenSSL a record, and so is what goes out. Nothing is kept here: what the other side
does not take waits in the plain transport, whose bounds count, and what it sends goes on at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Any, cast

from datapath.tls_records import MAX_RECORD_BYTES

_PIECE_BYTES = 16 * MAX_RECORD_BYTES  # what is encrypted before it goes to the plain transport


class TlsTransport(asyncio.Transport, asyncio.Protocol):
    """Both ends of the encryption: the plain transport's protocol, and another's transport.

    `make_protocol` is called when the handshake is done. Contexts must ask for TLS 1.3.
    """

    __slots__ = (
        "_end", "_error", "_has_ended", "_incoming", "_is_closing", "_is_open", "_make_protocol",
        "_outgoing", "_plain", "_protocol", "_read", "_receive", "_write", "ready",
    )  # fmt: skip

    def __init__(
        self,
        context: ssl.SSLContext,
        make_protocol: Callable[[], asyncio.BaseProtocol],
        server_hostname: str | None = None,
    ) -> None:
        """`server_hostname`: whom the certificate must name, for the end that connects."""
        super().__init__()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._end = context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=context.protocol == ssl.PROTOCOL_TLS_SERVER,
            server_hostname=server_hostname,
        )
        own: Any = self._end
        self._read, self._write = own._sslobj.read, own._sslobj.write  # no frame of Python each
        self._make_protocol = make_protocol
        self._plain: asyncio.Transport = cast("asyncio.Transport", None)  # from connection_made on
        self._protocol: asyncio.Protocol = cast("asyncio.Protocol", None)  # from the handshake on
        self._receive: Callable[[bytes], None] = cast("Any", None)
        self._is_open = False  # the handshake is done
        self._is_closing = False
        self._has_ended = False  # the other side has said that it sends no more
        self._error: Exception | None = None
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done with the handshake. Raises ssl.SSLError, or ConnectionError."""

    # -- the plain transport's protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake."""
        self._plain = cast("asyncio.Transport", transport)
        self._shake_hands()

    def data_received(self, data: bytes) -> None:
        """Decrypt what has come, and pass it on in one piece."""
        incoming = self._incoming
        if self._is_closing or self._has_ended:
            return
        incoming.write(data)
        if not self._is_open:
            self._shake_hands()
            return
        try:
            decrypted = self._read(MAX_RECORD_BYTES)
            if incoming.pending or not decrypted:
                decrypted, self._has_ended = self._read_on(decrypted)
        except ssl.SSLWantReadError:  # half a record, or none of data
            decrypted = b""
        except ssl.SSLError as error:
            self._fail(error)
            return
        if decrypted:
            self._receive(decrypted)
        if self._has_ended and not self._is_closing and not self._protocol.eof_received():
            self.close()

    def _read_on(self, first: bytes) -> tuple[bytes, bool]:
        """Return all that has come, and whether that was the last."""
        records = [first]
        with contextlib.suppress(ssl.SSLWantReadError):  # what is left is half a record
            while records[-1] and self._incoming.pending:
                records.append(self._read(MAX_RECORD_BYTES))
        return b"".join(records), not records[-1]

    def eof_received(self) -> bool:
        """Close: what ends without a word of TLS may have been cut short by anybody."""
        if not self._has_ended:
            self.close()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the protocol, or who waits for the handshake."""
        self._is_closing = True
        if self._is_open:
            self._protocol.connection_lost(self._error or exc)
        elif not self.ready.done():
            self.ready.set_exception(exc or ConnectionResetError("the other side has gone"))

    def pause_writing(self) -> None:
        """Tell the protocol that the other side takes nothing for now."""
        if self._is_open:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Tell it that the other side has taken most."""
        if self._is_open:
            self._protocol.resume_writing()

    def _shake_hands(self) -> None:
        if self.ready.done():  # nobody waits for it any more
            return
        try:
            self._end.do_handshake()
        except ssl.SSLWantReadError:
            self._send()
            return
        except ssl.SSLError as error:
            self._send()  # the alert says why
            self._is_closing = True
            self._plain.close()
            self.ready.set_exception(error)
            return
        self._send()
        self._extra = {
            "ssl_object": self._end,
            "sslcontext": self._end.context,
            "peercert": self._end.getpeercert(),
        }
        self._is_open = True
        self.ready.set_result(None)
        self.set_protocol(self._make_protocol())
        self._protocol.connection_made(self)
        if self._incoming.pending:  # it came with the end of the handshake
            self.data_received(b"")

    def _send(self) -> None:
        if self._outgoing.pending:
            self._plain.write(self._outgoing.read())

    def _fail(self, error: Exception) -> None:
        self._error = error
        self.abort()

    # -- the protocol's transport

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Let another protocol go on."""
        self._protocol = cast("asyncio.Protocol", protocol)
        self._receive = self._protocol.data_received

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol."""
        return self._protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what is known of the encryption, or else of the plain transport."""
        if name in self._extra:
            return self._extra[name]
        return self._plain.get_extra_info(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send data, and before it what OpenSSL has to say, such as new keys."""
        if self._is_closing:
            return
        try:
            if 0 < len(data) <= MAX_RECORD_BYTES:
                self._write(data)
            else:
                self._write_records(memoryview(data).cast("B"))
        except ssl.SSLError as error:
            self._fail(error)
            return
        self._plain.write(self._outgoing.read())

    def _write_records(self, data: memoryview) -> None:
        for start in range(0, len(data), MAX_RECORD_BYTES):
            self._write(data[start : start + MAX_RECORD_BYTES])
            if self._outgoing.pending >= _PIECE_BYTES:
                self._send()

    def close(self) -> None:
        """Say that no more comes, send what waits, and close."""
        if self._is_closing:
            return
        self._is_closing = True
        with contextlib.suppress(ssl.SSLError):  # the other side has not said so, most often
            self._end.unwrap()
        self._send()
        self._plain.close()

    def abort(self) -> None:
        """Close at once."""
        self._is_closing = True
        self._plain.abort()

    def is_closing(self) -> bool:
        """Whether it is closed, or will be."""
        return self._is_closing or self._plain.is_closing()

    def is_reading(self) -> bool:
        """Whether data is passed on."""
        return self._plain.is_reading()

    def pause_reading(self) -> None:
        """Pass on nothing for now."""
        self._plain.pause_reading()

    def resume_reading(self) -> None:
        """Pass on what comes."""
        self._plain.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set between which sizes of what waits the protocol is asked to pause and go on."""
        self._plain.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Return how much waits to be sent, in bytes."""
        return self._plain.get_write_buffer_size()

    def can_write_eof(self) -> bool:
        """Whether one way can be closed alone: nobody needs it."""
        return False
