"""One authenticated connection between two members.

The dialer sends a greeting with a key of X25519 that was drawn for this connection, the acceptor
answers with its own. Both derive one key per direction from what the two agree on, the cluster
secret and the two greetings (HKDF-SHA-256); while the secret is being changed, the acceptor tries
the two that count on the dialer's proof. From then on every
frame is sealed with AES-256-GCM under a counter, so a frame that is forged, repeated, dropped,
reordered, reflected, or taken from another connection ends the connection. Nothing is parsed but
two small greetings before the peer has proved that it knows the secret.

    dialer                                   acceptor
      Greeting(key, who, to whom, disk, claim) ->
                                          <- Greeting(key, who, to whom, disk, claim)
      sealed Proof                        ->
                                          <- sealed Verdict (empty, or why refused)

With a member of the release before, the keys are derived from the secret and the greetings alone.
No third can bring that about: what each end runs stands in its greeting, and so in the keys.

Who has recorded all that and learns the secret later cannot read it: the private halves of the keys
are gone once they have agreed. (But for links with the release before.)
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Callable
from typing import NamedTuple, Protocol

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256, Hash
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from election.identity import Claim
from election.pysyncobj_adapter import poller as events
from election.pysyncobj_adapter.codec import UNDECODABLE
from election.pysyncobj_adapter.peer_marks import PeerMark
from election.pysyncobj_adapter.poller import Poller
from election.release import Release, own_release, understands
from election.shared_secret import SharedSecret

PROTOCOL = "onecopy-raft-3"
"""Of the greetings. What the keys are derived from, the two releases say."""
KEYS_AGREED_LEVEL = 2
"""Who is of a release without it takes the other's key for a nonce, as in "onecopy-raft-3"."""
_PLAIN_KEYS, _AGREED_KEYS = b"onecopy-raft-3", b"onecopy-raft-4"
MAX_GREETING_BYTES = 2048
MAX_RAFT_FRAME_BYTES = 1024 * 1024
MAX_UNSENT_BYTES = 4 * 1024 * 1024
_READ_BYTES = 64 * 1024
_KEY_BYTES = 32
_LENGTH = struct.Struct(">I")
_COUNTER = struct.Struct(">4xQ")  # a 12-byte nonce for AES-GCM
_WOULD_BLOCK = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR)


class Greeting(msgspec.Struct, frozen=True, array_like=True):
    """The only thing said in the clear."""

    protocol: str
    key: bytes
    sender: str
    target: str
    directory_id: bytes
    claim: Claim = Claim()
    release: Release = Release()


class _Proof(msgspec.Struct, frozen=True, array_like=True, tag="proof"):
    pass


class _Verdict(msgspec.Struct, frozen=True, array_like=True, tag="verdict"):
    refusal: str = ""


class _Keys(NamedTuple):
    seal: AESGCM
    open: AESGCM


class LinkOwner(Protocol):
    """Who is told what happens on a link."""

    def judge(self, greeting: Greeting) -> str:
        """Return why this authenticated peer is refused, or an empty string."""

    def on_open(self, link: RaftLink) -> None:
        """Note that both sides have accepted each other (the owner may still close the link)."""

    def on_frame(self, link: RaftLink, data: bytes) -> None:
        """Take one authentic frame."""

    def on_closed(self, link: RaftLink) -> None:
        """Note that the link is gone. Called once, also if it never opened."""


class RaftLink:
    """A connection; `peer` is the member at the other end, once (for a dialer: as) known."""

    def __init__(
        self,
        owner: LinkOwner,
        poller: Poller,
        sock: socket.socket,
        *,
        secret: SharedSecret,
        me: str,
        directory_id: bytes,
        peer: str | None,
        now: float,
        claim: Claim = Claim(),  # noqa: B008 -- frozen
        release: Release = own_release(""),  # noqa: B008 -- frozen
    ) -> None:
        """Start the handshake on a non-blocking socket: dial if `peer` is given, else accept.

        The socket of a dialer may still be connecting.
        """
        self.peer = peer or ""
        self.dialed = peer is not None
        self.is_open = False
        self.is_introduced = False  # the peer has said what it remembers of this member
        self.told: PeerMark | None = None  # what this member has told of itself on this link
        self.told_at = float("-inf")
        self.token = 0
        self.closed = False
        self.refusal = ""
        self.since = self.last_read_at = self.last_sent_at = now
        self.peer_greeting: Greeting | None = None
        self._owner = owner
        self._poller = poller
        self._socket = sock
        self._fd = sock.fileno()
        self._secret = secret
        self._me = me
        self._key: X25519PrivateKey | None = X25519PrivateKey.generate()
        key = self._key.public_key().public_bytes_raw()
        self._greeting = Greeting(PROTOCOL, key, me, self.peer, directory_id, claim, release)
        self._connecting = self.dialed
        self._keys: list[_Keys] = []  # one; at an acceptor before the proof, one a secret
        self._sent_frames = self._read_frames = 0
        self._unread = bytearray()
        self._unsent = bytearray()
        self._watched = 0
        self._on_plain: Callable[[bytes], None] = self._on_greeting
        self._watch()
        if self.dialed:
            self._write(msgspec.msgpack.encode(self._greeting))

    def send(self, data: bytes, now: float) -> None:
        """Seal and send one frame on an open link; a link that cannot keep up is closed."""
        if self.closed or not self._keys:
            return
        self.last_sent_at = now
        nonce = _COUNTER.pack(self._sent_frames)
        self._sent_frames += 1
        self._write(self._keys[0].seal.encrypt(nonce, data, None))

    def close(self) -> None:
        """Close, and drop whatever has been received but not yet handled. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._unread.clear()
        self._poller.unsubscribe(self._fd)
        self._socket.close()
        self._owner.on_closed(self)

    # Bytes in and out.

    def _watch(self) -> None:
        mask = events.READ | events.ERROR
        if self._unsent or self._connecting:
            mask |= events.WRITE
        if mask != self._watched:
            self._watched = mask
            self._poller.subscribe(self._fd, self._on_event, mask)

    def _write(self, frame: bytes) -> None:
        had_unsent = bool(self._unsent)
        self._unsent += _LENGTH.pack(len(frame)) + frame
        if len(self._unsent) > MAX_UNSENT_BYTES:
            self.close()
        elif not self._connecting and not had_unsent:
            self._flush()

    def _flush(self) -> None:
        try:
            while self._unsent:
                sent = self._socket.send(self._unsent)
                del self._unsent[:sent]
        except OSError as error:
            if error.errno not in _WOULD_BLOCK:
                self.close()
                return
        self._watch()

    def _on_event(self, _descr: int, mask: int) -> None:
        if self._connecting:
            if self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self.close()
                return
            if not mask & events.WRITE:
                return
            self._connecting = False
        if mask & events.WRITE:
            self._flush()
        if not self.closed and mask & (events.READ | events.ERROR):
            self._read()

    def _read(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
        except OSError as error:
            if error.errno not in _WOULD_BLOCK:
                self.close()
            return
        if not data:
            self.close()
            return
        self._unread += data
        while not self.closed:
            if len(self._unread) < _LENGTH.size:
                return
            (length,) = _LENGTH.unpack_from(self._unread)
            if length > (MAX_RAFT_FRAME_BYTES if self._keys else MAX_GREETING_BYTES):
                self.close()
                return
            end = _LENGTH.size + length
            if len(self._unread) < end:
                return
            frame = bytes(self._unread[_LENGTH.size : end])
            del self._unread[:end]
            self._on_frame(frame)

    def _on_frame(self, frame: bytes) -> None:
        if self._keys:
            opened = self._unseal(frame)
            if opened is None:
                self.close()
                return
            frame = opened
            self._read_frames += 1
        if self.is_open:
            self._owner.on_frame(self, frame)
            return
        try:
            self._on_plain(frame)
        except UNDECODABLE:
            self.close()

    def _unseal(self, frame: bytes) -> bytes | None:
        """Return what a frame holds, and keep to the keys that open it; None: none does."""
        nonce = _COUNTER.pack(self._read_frames)
        for keys in self._keys:
            with contextlib.suppress(InvalidTag):
                frame = keys.open.decrypt(nonce, frame, None)
                self._keys = [keys]
                return frame
        return None

    # The handshake.

    def _on_greeting(self, data: bytes) -> None:
        theirs = msgspec.msgpack.decode(data, type=Greeting)
        expected_sender = self.peer if self.dialed else theirs.sender
        if (
            theirs.protocol != PROTOCOL
            or theirs.target != self._me
            or theirs.sender != expected_sender
            or len(theirs.key) != _KEY_BYTES
            or not theirs.claim.is_usable
            or not theirs.release.is_usable
        ):
            self.close()
            return
        agreed = self._agree(theirs)
        if agreed is None:
            self.close()
            return
        self.peer_greeting = theirs
        if self.dialed:
            mine = msgspec.msgpack.encode(self._greeting)
            self._derive_keys(agreed, (self._secret.current,), mine, data)
            self._on_plain = self._on_verdict
            self.send(msgspec.msgpack.encode(_Proof()), self.since)
            return
        self.peer = theirs.sender
        self._greeting = msgspec.structs.replace(self._greeting, target=theirs.sender)
        mine = msgspec.msgpack.encode(self._greeting)
        self._write(mine)
        self._derive_keys(agreed, self._secret.accepted, data, mine)
        self._on_plain = self._on_proof

    def _agree(self, theirs: Greeting) -> bytes | None:
        """Return what both ends alone know, and forget the own part of it; None: anybody knows.

        It is empty where one of the two releases cannot agree on anything (decision 36).
        """
        key, self._key = self._key, None
        assert key is not None
        if not all(understands(g.release, KEYS_AGREED_LEVEL) for g in (self._greeting, theirs)):
            return b""
        try:
            return key.exchange(X25519PublicKey.from_public_bytes(theirs.key))
        except ValueError:  # the other end's is one of the few that agree with all on the same
            return None

    def _derive_keys(
        self,
        agreed: bytes,
        secrets: tuple[bytes, ...],
        dialer_greeting: bytes,
        acceptor_greeting: bytes,
    ) -> None:
        transcript = Hash(SHA256())
        for greeting in (dialer_greeting, acceptor_greeting):
            transcript.update(_LENGTH.pack(len(greeting)) + greeting)
        salt = transcript.finalize()
        for secret in secrets:
            info = _AGREED_KEYS if agreed else _PLAIN_KEYS
            keys = HKDF(SHA256(), 64, salt, info).derive(agreed + secret)
            dialer, acceptor = AESGCM(keys[:32]), AESGCM(keys[32:])
            own = _Keys(dialer, acceptor) if self.dialed else _Keys(acceptor, dialer)
            self._keys.append(own)

    def _on_proof(self, data: bytes) -> None:
        msgspec.msgpack.decode(data, type=_Proof)
        assert self.peer_greeting is not None
        refusal = self._owner.judge(self.peer_greeting)
        self.send(msgspec.msgpack.encode(_Verdict(refusal)), self.since)
        if refusal:
            self.refusal = refusal
            self.close()
        elif not self.closed:
            self._opened()

    def _on_verdict(self, data: bytes) -> None:
        assert self.peer_greeting is not None
        refusal = ascii(msgspec.msgpack.decode(data, type=_Verdict).refusal)[1:-1]
        self.refusal = refusal or self._owner.judge(self.peer_greeting)
        if self.refusal:
            self.close()
        else:
            self._opened()

    def _opened(self) -> None:
        self.is_open = True
        self._owner.on_open(self)
