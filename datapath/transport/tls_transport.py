"""TLS for one connection: a transport over a plain one, handshake and records by `ssl`.

That of an event loop asks, copies and looks several times for each record; here what comes in is
one call of OpenSSL a record, and so is what goes out. Nothing is kept here beyond a turn of the
event loop: what the other side does not take waits in the plain transport, whose bounds count.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Iterable
from typing import Any, cast
from weakref import WeakKeyDictionary

from datapath.tls_records import MAX_RECORD_BYTES

_PIECE_BYTES = 16 * MAX_RECORD_BYTES  # what is encrypted before it goes to the plain transport

SMALL_BYTES = 4096
"""What comes, or goes, in larger pieces waits for no others."""
BATCH_MAX = 256
"""Of how many connections something small waits at most."""


class _Batch:
    """Small records of one event loop's connections: decrypted together, and encrypted together.

    OpenSSL and Python push each other out of the caches of a core: where they take turns with each
    request, both take twice as long. So what comes in a turn of the loop waits for its end, is
    decrypted, then passed on, and then the answers are encrypted. The first that comes in a turn
    does not wait: a connection alone is as fast as without this.
    """

    def __init__(self) -> None:
        self.received: list[TlsTransport] = []
        """Connections on which something small has come."""
        self.unsent: list[TlsTransport] = []
        """Connections that have written something small, while `collects`."""
        self.has_begun = False
        """Whether something has come in this turn of the loop: who is the first calls `begin`."""
        self.collects = False
        """Whether what is written now goes out in a moment, with what others write."""

    def begin(self) -> None:
        """Begin a turn: pass on at its end what has waited."""
        self.has_begun = True
        asyncio.get_running_loop().call_soon(self._end)

    def _end(self) -> None:
        self.has_begun = False
        self.pass_on()

    def pass_on(self) -> None:
        """Pass on all that waits, and send what it is answered with."""
        received, self.received = self.received, []
        self.collects = True
        try:
            TlsTransport.receive_all([each for each in received if each.waits])
        finally:
            self.collects = False
            unsent, self.unsent = self.unsent, []
            TlsTransport.send_all(unsent)


_batches: WeakKeyDictionary[asyncio.AbstractEventLoop, _Batch] = WeakKeyDictionary()


class TlsTransport(asyncio.Transport, asyncio.Protocol):
    """Both ends of the encryption: the plain transport's protocol, and another's transport.

    `make_protocol` is called when the handshake is done. Contexts must ask for TLS 1.3.
    """

    __slots__ = (
        "_batch", "_end", "_error", "_has_ended", "_incoming", "_is_closing", "_is_open",
        "_make_protocol", "_outgoing", "_plain", "_protocol", "_read", "_receive", "_unsent",
        "_write", "ready", "waits",
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
        loop = asyncio.get_running_loop()
        self._batch = _batches.setdefault(loop, _Batch())
        self.waits = False
        """Whether something has come that waits in the batch."""
        self._unsent = b""  # waits there, too
        self.ready: asyncio.Future[None] = loop.create_future()
        """Done with the handshake. Raises ssl.SSLError, or ConnectionError."""

    # -- the plain transport's protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake."""
        self._plain = cast("asyncio.Transport", transport)
        self._shake_hands()

    def data_received(self, data: bytes) -> None:
        """Pass on what has come: at once, or with what others receive in this turn of the loop."""
        if self._is_closing or self._has_ended:
            return
        self._incoming.write(data)
        batch = self._batch
        if not self._is_open:
            self._shake_hands()
        elif len(data) > SMALL_BYTES:
            self.receive_all((self,))
        elif not batch.has_begun:
            batch.begin()
            self.receive_all((self,))
        elif not self.waits:
            self.waits = True
            batch.received.append(self)
            if len(batch.received) >= BATCH_MAX:
                batch.pass_on()

    @staticmethod
    def receive_all(transports: Iterable[TlsTransport]) -> None:
        """Decrypt all that has come on some connections, then pass it on. Raises nothing.

        Nothing is passed on where that is half a record, or the connection fails.
        """
        decrypted: list[tuple[TlsTransport, bytes]] = []
        for each in transports:
            each.waits = False
            if each._is_closing:
                continue
            try:
                data = each._read(MAX_RECORD_BYTES)
                if each._incoming.pending or not data:
                    data, each._has_ended = each._read_on(data)
            except ssl.SSLWantReadError:  # half a record, or none of data
                continue
            except ssl.SSLError as error:
                each._fail(error)
                continue
            decrypted.append((each, data))
        for each, data in decrypted:
            try:
                if data and not each._is_closing:
                    each._receive(data)
                if each._has_ended and not each._is_closing and not each._protocol.eof_received():
                    each.close()
            except Exception as error:  # noqa: BLE001 -- others wait for their turn, whatever it is
                asyncio.get_running_loop().call_exception_handler(
                    {
                        "message": "a connection is closed: its protocol has failed",
                        "exception": error,
                        "transport": each,
                        "protocol": each._protocol,
                    }
                )
                each._fail(error)

    def _receive_waiting(self) -> None:
        if self.waits:
            self.receive_all((self,))

    def _read_on(self, first: bytes) -> tuple[bytes, bool]:
        """Return all that has come, and whether that was the last."""
        records = [first]
        with contextlib.suppress(ssl.SSLWantReadError):  # what is left is half a record
            while records[-1] and self._incoming.pending:
                records.append(self._read(MAX_RECORD_BYTES))
        return b"".join(records), not records[-1]

    def eof_received(self) -> bool:
        """Close: what ends without a word of TLS may have been cut short by anybody."""
        self._receive_waiting()
        if not self._has_ended:
            self.close()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the protocol, or who waits for the handshake."""
        self._receive_waiting()
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
            self.receive_all((self,))

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
        if self._unsent:
            self.send_all((self,))
        elif self._batch.collects and 0 < len(data) <= SMALL_BYTES and isinstance(data, bytes):
            self._unsent = data
            self._batch.unsent.append(self)
            return
        self._encrypt(data)

    @staticmethod
    def send_all(transports: Iterable[TlsTransport]) -> None:
        """Encrypt what waits on some connections, then send it."""
        for each in transports:
            data, each._unsent = each._unsent, b""
            if data and not each._is_closing:
                try:
                    each._write(data)
                except ssl.SSLError as error:
                    each._fail(error)
        for each in transports:
            if not each._is_closing and (data := each._outgoing.read()):
                each._plain.write(data)

    def _encrypt(self, data: bytes | bytearray | memoryview) -> None:
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
        self.send_all((self,))
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
        """Pass on nothing for now, but what has come in this turn of the loop: `SMALL_BYTES`."""
        self._plain.pause_reading()

    def resume_reading(self) -> None:
        """Pass on what comes."""
        self._plain.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set between which sizes of what waits the protocol is asked to pause and go on."""
        self._plain.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Return how much waits to be sent, in bytes."""
        return len(self._unsent) + self._plain.get_write_buffer_size()

    def can_write_eof(self) -> bool:
        """Whether one way can be closed alone: nobody needs it."""
        return False
