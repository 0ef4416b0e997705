"""Mutual authentication of two nodes by the cluster secret. Pure: bytes in, bytes out.

    dialer                                   listener
    Hello(version, cluster, ids, kind, nonce, claim) ->
                                          <- Challenge(nonce)
    Proof(mac "dialer") ->
                                          <- Accept(mac "listener", claim, verdict)

Both macs are HMAC-SHA256 under the secret over all that both sides said: the role, the protocol
version, the cluster, both ids, the kind of stream, both nonces and the claims (who a node is:
`election.identity`), each field with its length before it. Fresh nonces from both sides leave
nothing to replay; the role in the mac leaves nothing to reflect. The dialer proves itself first,
so that a stranger who connects gets no mac to guess the secret from, and learns nothing of the
listener but its nonce. Each side judges the other's claim once it is proved; the listener's verdict
is under its mac, so that a dialer may believe a refusal. What follows the handshake is neither
encrypted nor signed: see `docs/peer-protocol.md`.
"""

from __future__ import annotations

import enum
import hmac
import ipaddress
from collections.abc import Callable, Collection

import msgspec

from datapath.errors import DataPathError
from election.identity import Claim, IdentityCode, Verdict
from election.shared_secret import SharedSecret

PROTOCOL_VERSION = 3
NONCE_SIZE_BYTES = 32
MAX_HANDSHAKE_MESSAGE_BYTES = 4096
MAX_NAME_LENGTH = 255
"""Of a cluster name, a node id or a kind; in characters."""
_MAX_REASON_LENGTH = 400

_DIALER = b"dialer"
_LISTENER = b"listener"


Judge = Callable[[str, Claim], Verdict]
"""Says whether the named node, with the claim that it has proved, may have the link."""


class HandshakeError(DataPathError):
    """The two sides do not get together; `str(error)` says why and what to change.

    `code` says which rule of `election.identity` a side that proved itself was refused by, and
    `by_peer` whether the other side refused; `answer` is what a listener still has to send.
    """

    def __init__(
        self, text: str, *, code: IdentityCode = "", by_peer: bool = False, answer: bytes = b""
    ) -> None:
        super().__init__(text)
        self.code = code
        self.by_peer = by_peer
        self.answer = answer


class _Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    pass


class Hello(_Message, frozen=True, tag=1):
    """Dialer: who I am, whom I mean to reach, for which stream, and my nonce."""

    version: int
    cluster: str
    dialer: str
    listener: str
    kind: str
    nonce: bytes
    claim: Claim = Claim()


class Challenge(_Message, frozen=True, tag=2):
    """Listener: I am the one you mean; my nonce."""

    nonce: bytes


class Proof(_Message, frozen=True, tag=3):
    """Dialer: I know the secret."""

    mac: bytes


class Accept(_Message, frozen=True, tag=4):
    """Listener: so do I, this is who I am, and `refusal` "": you may have the link."""

    mac: bytes
    claim: Claim
    code: IdentityCode = ""
    refusal: str = ""


class HandshakeRefusal(_Message, frozen=True, tag=5):
    """Listener: no. Not authenticated, so it is for people to read only."""

    reason: str


_encoder = msgspec.msgpack.Encoder()
_AnyMessage = Hello | Challenge | Proof | Accept | HandshakeRefusal
_decoder: msgspec.msgpack.Decoder[_AnyMessage] = msgspec.msgpack.Decoder(_AnyMessage)


def check_secret(host: str, secret: SharedSecret) -> None:
    """Raise HandshakeError if there is no secret and `host` can be reached from elsewhere."""
    if secret:
        return
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise HandshakeError(
            f"cluster.secret is not set, and the peer address {host} can be reached from other "
            "machines: set cluster.secret (or secret_file) to the same long random string on "
            "every node, or listen on 127.0.0.1"
        )


def may_call_itself(node: str, certified: Collection[str] | None) -> bool:
    """Whether a dialer may be this node: its id is a name in its certificate (decision 30)."""
    return certified is None or node in certified


def proven_secret(
    secrets: Collection[bytes], hello: Hello, listener_nonce: bytes, mac: bytes
) -> bytes | None:
    """Return which of the secrets a dialer has proved to know, or None."""
    for secret in secrets:
        if hmac.compare_digest(mac, _mac(secret, _DIALER, hello, listener_nonce)):
            return secret
    return None


def encode_refusal(reason: str) -> bytes:
    """Encode what a listener answers instead of going on."""
    return _encoder.encode(HandshakeRefusal(reason[:_MAX_REASON_LENGTH]))


class _State(enum.Enum):
    START = enum.auto()
    WAIT = enum.auto()
    DONE = enum.auto()
    FAILED = enum.auto()


class DialerHandshake:
    """The dialer's side: send `start()`, then each answer to `receive`, until `done`.

    `nonce` is 32 fresh random bytes. A failed handshake cannot be used again. `peer_claim` may be
    believed when `done`.
    """

    def __init__(
        self,
        *,
        cluster: str,
        secret: bytes,
        dialer: str,
        listener: str,
        kind: str,
        nonce: bytes,
        claim: Claim,
        judge: Judge,
    ) -> None:
        _check_nonce(nonce)
        self.peer_claim = Claim()
        self._secret = secret
        self._judge = judge
        self._hello = Hello(PROTOCOL_VERSION, cluster, dialer, listener, kind, nonce, claim)
        self._listener_nonce = b""
        self._state = _State.START

    @property
    def done(self) -> bool:
        """Whether both sides have proved themselves."""
        return self._state is _State.DONE

    def start(self) -> bytes:
        """Return the Hello to send."""
        return _encoder.encode(self._hello)

    def receive(self, data: bytes) -> bytes:
        """Take the listener's answer; return what to send next, b"" when done.

        Raises HandshakeError: refused (by either side), not understood, out of order, or a wrong
        proof.
        """
        state, self._state = self._state, _State.FAILED
        match state, _decode(data):
            case _, HandshakeRefusal(reason=reason):
                told = ascii(reason[:_MAX_REASON_LENGTH])
                raise HandshakeError(f"{self._hello.listener} refused the link: {told}")
            case _State.START, Challenge(nonce=nonce):
                _check_nonce(nonce)
                self._listener_nonce = nonce
                self._state = _State.WAIT
                mac = _mac(self._secret, _DIALER, self._hello, nonce)
                return _encoder.encode(Proof(mac))
            case _State.WAIT, Accept() as accept:
                expected = _mac(self._secret, _LISTENER, self._hello, self._listener_nonce, accept)
                if not hmac.compare_digest(accept.mac, expected):
                    raise HandshakeError(
                        f"{self._hello.listener} does not know the cluster secret: cluster.secret "
                        "must be the same on every node"
                    )
                self._take_verdicts(accept)
                self._state = _State.DONE
                return b""
            case _, message:
                raise HandshakeError(f"unexpected {type(message).__name__} from the listener")

    def _take_verdicts(self, accept: Accept) -> None:
        _check_claim(accept.claim)
        self.peer_claim = accept.claim
        if accept.code:
            told = ascii(accept.refusal[:_MAX_REASON_LENGTH])
            raise HandshakeError(
                f"{self._hello.listener} refused the link: {told}", code=accept.code, by_peer=True
            )
        verdict = self._judge(self._hello.listener, accept.claim)
        if verdict.code:
            raise HandshakeError(verdict.reason, code=verdict.code)


class ListenerHandshake:
    """The listener's side: `receive` each message and send what it returns, until `done`.

    `secrets` are those by which a dialer may prove itself. `kinds` are the streams served; `nonce`
    is 32 fresh random bytes, never used before.
    `certified` are the names in the dialer's certificate; None: the connection has no TLS.
    `peer`, `kind` and `peer_claim` may be believed only when `done`.
    """

    def __init__(
        self,
        *,
        cluster: str,
        secrets: Collection[bytes],
        node_id: str,
        kinds: Collection[str],
        nonce: bytes,
        claim: Claim,
        judge: Judge,
        certified: Collection[str] | None = None,
    ) -> None:
        _check_nonce(nonce)
        self._cluster = cluster
        self._certified = certified
        self._secrets = secrets
        self._node_id = node_id
        self._kinds = kinds
        self._nonce = nonce
        self._claim = claim
        self._judge = judge
        self._hello: Hello | None = None
        self._state = _State.START

    @property
    def done(self) -> bool:
        """Whether both sides have proved themselves."""
        return self._state is _State.DONE

    @property
    def peer(self) -> str:
        """The dialer's node id; "" before its Hello."""
        return self._hello.dialer if self._hello else ""

    @property
    def peer_claim(self) -> Claim:
        """What the dialer says of itself; empty before its Hello."""
        return self._hello.claim if self._hello else Claim()

    @property
    def kind(self) -> str:
        """The kind of stream asked for; "" before the Hello."""
        return self._hello.kind if self._hello else ""

    def receive(self, data: bytes) -> bytes:
        """Take the dialer's message; return the answer to send.

        Raises HandshakeError: answer with its `answer`, or if that is empty with
        `encode_refusal(str(error))`, and close.
        """
        state, self._state = self._state, _State.FAILED
        match state, _decode(data):
            case _State.START, Hello() as hello:
                self._check_hello(hello)
                self._hello = hello
                self._state = _State.WAIT
                return _encoder.encode(Challenge(self._nonce))
            case _State.WAIT, Proof(mac=mac) if self._hello is not None:
                hello = self._hello
                secret = proven_secret(self._secrets, hello, self._nonce, mac)
                if secret is None:
                    raise HandshakeError(
                        f"{hello.dialer!a} does not know {self._node_id}'s cluster secret: "
                        "cluster.secret must be the same on every node"
                    )
                verdict = self._judge(hello.dialer, hello.claim)
                answer = self._accept(hello, verdict, secret)
                if verdict.code:
                    raise HandshakeError(verdict.reason, code=verdict.code, answer=answer)
                self._state = _State.DONE
                return answer
            case _, message:
                raise HandshakeError(f"unexpected {type(message).__name__} from the dialer")

    def _accept(self, hello: Hello, verdict: Verdict, secret: bytes) -> bytes:
        refusal = verdict.reason[:_MAX_REASON_LENGTH]
        accept = Accept(b"", self._claim, verdict.code, refusal)
        mac = _mac(secret, _LISTENER, hello, self._nonce, accept)
        return _encoder.encode(msgspec.structs.replace(accept, mac=mac))

    def _check_hello(self, hello: Hello) -> None:
        if hello.version != PROTOCOL_VERSION:
            raise HandshakeError(
                f"{self._node_id} speaks peer protocol {PROTOCOL_VERSION}, not {hello.version}: "
                "run the same version on every node"
            )
        if hello.cluster != self._cluster:
            raise HandshakeError(
                f"{self._node_id} belongs to cluster {self._cluster!r}, not "
                f"{hello.cluster[:MAX_NAME_LENGTH]!a}: check cluster.name and the peer address"
            )
        if hello.listener != self._node_id:
            raise HandshakeError(
                f"this is {self._node_id}, not {hello.listener[:MAX_NAME_LENGTH]!a}: "
                "check the nodes' peer addresses and the routes"
            )
        if not 0 < len(hello.dialer) <= MAX_NAME_LENGTH:
            raise HandshakeError(f"a node id has 1 to {MAX_NAME_LENGTH} characters")
        if not may_call_itself(hello.dialer, self._certified):
            names = ", ".join(sorted(self._certified or ())) or "no name"
            raise HandshakeError(
                f"the certificate shown is for {names[:MAX_NAME_LENGTH]!a}, not for node "
                f"{hello.dialer!a}: [tls] certificate must be that of the node itself"
            )
        if hello.kind not in self._kinds:
            raise HandshakeError(
                f"{self._node_id} has no streams of kind {hello.kind[:MAX_NAME_LENGTH]!a}"
            )
        _check_nonce(hello.nonce)
        _check_claim(hello.claim)


def _decode(data: bytes) -> _AnyMessage:
    if len(data) > MAX_HANDSHAKE_MESSAGE_BYTES:
        raise HandshakeError(f"a handshake message has at most {MAX_HANDSHAKE_MESSAGE_BYTES} bytes")
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise HandshakeError(
            "not a peer handshake message: is the other side a onecopy peer port?"
        ) from error


def _check_nonce(nonce: bytes) -> None:
    if len(nonce) != NONCE_SIZE_BYTES:
        raise HandshakeError(f"a nonce has {NONCE_SIZE_BYTES} bytes, not {len(nonce)}")


def _check_claim(claim: Claim) -> None:
    if not claim.is_usable:
        raise HandshakeError("a field of the claim is too long")


def _mac(
    secret: bytes, role: bytes, hello: Hello, listener_nonce: bytes, accept: Accept | None = None
) -> bytes:
    verdict = []
    if accept is not None:
        verdict = [_encoder.encode((accept.claim, accept.code, accept.refusal))]
    mac = hmac.new(secret, b"onecopy peer handshake", "sha256")
    for field in (
        role,
        str(hello.version).encode(),
        hello.cluster.encode(),
        hello.dialer.encode(),
        hello.listener.encode(),
        hello.kind.encode(),
        hello.nonce,
        listener_nonce,
        _encoder.encode(hello.claim),
        *verdict,
    ):
        # The length keeps ("ab", "c") and ("a", "bc") apart.
        mac.update(len(field).to_bytes(4, "big"))
        mac.update(field)
    return mac.digest()
