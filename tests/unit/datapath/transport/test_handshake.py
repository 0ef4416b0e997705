"""What the handshake proves, and to whom. Both machines run for real, joined by plain variables."""

from __future__ import annotations

import secrets
from collections.abc import Collection

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapath.transport.handshake import (
    MAX_HANDSHAKE_MESSAGE_BYTES,
    NONCE_SIZE_BYTES,
    PROTOCOL_VERSION,
    Accept,
    Challenge,
    DialerHandshake,
    HandshakeError,
    Hello,
    ListenerHandshake,
    Proof,
    check_secret,
    encode_refusal,
)
from election.identity import ACCEPTED, Addresses, Claim, Verdict
from election.shared_secret import SharedSecret

encode = msgspec.msgpack.encode
CLAIM_OF_N1 = Claim("c1", "data of n1", "i1", Addresses("n1:1", "n1:2", "n1:3"))
CLAIM_OF_N2 = Claim("c1", "data of n2", "i2", Addresses("n2:1", "n2:2", "n2:3"))


def nonce() -> bytes:
    return secrets.token_bytes(NONCE_SIZE_BYTES)


def dialer(
    *,
    secret: bytes = b"s3cret",
    cluster: str = "demo",
    me: str = "n1",
    to: str = "n2",
    kind: str = "replicate",
    own_nonce: bytes = b"",
    verdict: Verdict = ACCEPTED,
) -> DialerHandshake:
    return DialerHandshake(
        cluster=cluster,
        secret=secret,
        dialer=me,
        listener=to,
        kind=kind,
        nonce=own_nonce or nonce(),
        claim=CLAIM_OF_N1,
        judge=lambda _peer, _claim: verdict,
    )


def listener(
    *,
    secret: bytes = b"s3cret",
    also: tuple[bytes, ...] = (),
    cluster: str = "demo",
    me: str = "n2",
    verdict: Verdict = ACCEPTED,
    certified: Collection[str] | None = None,
) -> ListenerHandshake:
    return ListenerHandshake(
        cluster=cluster,
        secrets=(secret, *also),
        node_id=me,
        kinds=("replicate", "request"),
        nonce=nonce(),
        claim=CLAIM_OF_N2,
        judge=lambda _peer, _claim: verdict,
        certified=certified,
    )


def run(one: DialerHandshake, other: ListenerHandshake) -> list[bytes]:
    """Carry the messages between the two; return all of them."""
    said = [one.start()]
    while not one.done:
        said.append(other.receive(said[-1]))
        said.append(one.receive(said[-1]))
    return said


def test_two_nodes_with_the_same_secret_get_together() -> None:
    one, other = dialer(), listener()
    run(one, other)
    assert one.done
    assert other.done
    assert (other.peer, other.kind) == ("n1", "replicate")
    assert (one.peer_claim, other.peer_claim) == (CLAIM_OF_N2, CLAIM_OF_N1)


def test_a_listener_tells_nothing_of_itself_before_the_dialer_has_proved_itself() -> None:
    said = run(dialer(), listener())
    assert b"data of n2" not in said[1]
    assert b"data of n2" in said[3]


SECOND = Verdict("second", "two processes run as node n1")


def test_a_refusal_after_the_proof_is_one_that_the_dialer_may_believe() -> None:
    one, other = dialer(), listener(verdict=SECOND)
    proof = one.receive(other.receive(one.start()))
    with pytest.raises(HandshakeError, match="two processes") as refused:
        other.receive(proof)
    assert not other.done
    with pytest.raises(HandshakeError, match="n2 refused the link: 'two processes") as told:
        one.receive(refused.value.answer)
    assert (told.value.code, told.value.by_peer) == ("second", True)
    assert not one.done


def test_a_dialer_judges_who_answers_too() -> None:
    one, other = dialer(verdict=SECOND), listener()
    proof = one.receive(other.receive(one.start()))
    with pytest.raises(HandshakeError, match="two processes") as refused:
        one.receive(other.receive(proof))
    assert (refused.value.code, refused.value.by_peer) == ("second", False)
    assert not one.done


@pytest.mark.parametrize("field", ["claim", "code", "refusal"])
def test_the_listeners_proof_covers_its_claim_and_its_verdict(field: str) -> None:
    one, other = dialer(), listener()
    accept = msgspec.msgpack.decode(
        other.receive(one.receive(other.receive(one.start()))), type=Accept
    )
    changed = {"claim": CLAIM_OF_N1, "code": "second", "refusal": "go away"}[field]
    with pytest.raises(HandshakeError, match="does not know the cluster secret"):
        one.receive(encode(msgspec.structs.replace(accept, **{field: changed})))


def test_an_oversized_claim_is_refused() -> None:
    hello = msgspec.msgpack.decode(dialer().start(), type=Hello)
    long = msgspec.structs.replace(hello, claim=Claim(data_id="x" * 301))
    with pytest.raises(HandshakeError, match="too long"):
        listener().receive(encode(long))


def test_a_hello_of_version_1_is_told_which_version_is_spoken() -> None:
    old = msgspec.msgpack.encode([1, 1, "demo", "n1", "n2", "replicate", nonce()])
    with pytest.raises(HandshakeError, match="same version on every node"):
        listener().receive(old)


def test_without_a_secret_the_same_messages_flow() -> None:
    one, other = dialer(secret=b""), listener(secret=b"")
    assert len(run(one, other)) == 5
    assert other.done


@pytest.mark.parametrize("used", [b"the old one", b"the new one"])
def test_of_two_secrets_the_dialer_may_use_either(used: bytes) -> None:
    one, other = dialer(secret=used), listener(secret=b"the new one", also=(b"the old one",))
    run(one, other)
    assert (one.done, other.done) == (True, True)


def test_a_dialer_believes_no_listener_that_knows_only_the_next_secret() -> None:
    one, other = dialer(secret=b"the old one"), listener(secret=b"the new one")
    challenge = other.receive(one.start())
    with pytest.raises(HandshakeError, match="does not know n2's cluster secret"):
        other.receive(one.receive(challenge))


@pytest.mark.parametrize("names", [(), ("n3",), ("*",), ("N1",), ("n1.example",), ("n11", "n")])
def test_a_certificate_of_another_name_is_refused_at_the_first_word(names: tuple[str]) -> None:
    other = listener(certified=names)
    with pytest.raises(HandshakeError, match=r"not for node .*n1.*\[tls\] certificate"):
        other.receive(dialer(me="n1").start())
    assert not other.done


def test_a_certificate_may_have_other_names_too() -> None:
    one, other = dialer(me="n1"), listener(certified=("db1.example", "n1"))
    run(one, other)
    assert (one.done, other.done) == (True, True)


def test_a_dialer_with_another_secret_is_refused_and_told_what_to_change() -> None:
    one, other = dialer(secret=b"wrong"), listener()
    proof = one.receive(other.receive(one.start()))
    with pytest.raises(HandshakeError, match=r"cluster\.secret"):
        other.receive(proof)
    assert not other.done
    with pytest.raises(HandshakeError, match=r"n2 refused .*cluster\.secret"):
        one.receive(encode_refusal("n1 does not know the cluster.secret"))
    assert not one.done


def test_a_listener_that_does_not_know_the_secret_is_refused_though_it_accepts_everyone() -> None:
    one = dialer()
    one.receive(encode(Challenge(nonce())))
    with pytest.raises(HandshakeError, match="does not know the cluster secret"):
        one.receive(encode(Accept(secrets.token_bytes(32), CLAIM_OF_N2)))
    assert not one.done


def test_a_recorded_handshake_is_worth_nothing_to_a_replaying_dialer() -> None:
    hello, _, proof, _, _ = run(dialer(), listener())
    other = listener()
    other.receive(hello)
    with pytest.raises(HandshakeError, match="secret"):
        other.receive(proof)


def test_a_recorded_handshake_is_worth_nothing_to_a_replaying_listener() -> None:
    _, challenge, _, accept, _ = run(dialer(), listener())
    one = dialer()
    one.receive(challenge)
    with pytest.raises(HandshakeError, match="secret"):
        one.receive(accept)


def test_a_dialer_does_not_take_its_own_proof_for_the_listeners() -> None:
    one = dialer()
    proof = msgspec.msgpack.decode(one.receive(encode(Challenge(nonce()))), type=Proof)
    with pytest.raises(HandshakeError, match="does not know the cluster secret"):
        one.receive(encode(Accept(proof.mac, CLAIM_OF_N2)))


def test_a_listener_does_not_take_the_proof_that_it_drew_from_itself_as_a_dialer() -> None:
    """Reflection: a stranger dials n2, is dialled by n2, and passes n2's words back to it."""
    target, dialled_by_n2 = listener(me="n2"), dialer(me="n2", to="n1")
    greeting = dialer(me="n1", to="n2", secret=b"unknown")
    challenge = target.receive(greeting.start())
    proof = dialled_by_n2.receive(challenge)
    with pytest.raises(HandshakeError, match="secret"):
        target.receive(proof)


@pytest.mark.parametrize("field", ["dialer", "kind", "nonce", "claim"])
def test_the_proof_covers_what_the_hello_says(field: str) -> None:
    one, other = dialer(), listener()
    other_values = {"dialer": "n3", "kind": "request", "nonce": nonce(), "claim": CLAIM_OF_N2}
    other_value = other_values[field]
    hello = msgspec.msgpack.decode(one.start(), type=Hello)
    changed = msgspec.structs.replace(hello, **{field: other_value})
    proof = one.receive(other.receive(encode(changed)))
    with pytest.raises(HandshakeError, match="secret"):
        other.receive(proof)


def test_fields_of_the_proof_cannot_run_into_each_other() -> None:
    """("n1", "n2") and ("n", "1n2") have the same bytes in a row, but not the same proof."""
    shared = nonce()
    macs = []
    for me, to in (("n1", "n2"), ("n", "1n2")):
        one = dialer(secret=b"s", me=me, to=to, kind="k", own_nonce=shared)
        macs.append(one.receive(encode(Challenge(shared))))
    assert macs[0] != macs[1]


def test_a_wrong_route_is_named_at_both_ends() -> None:
    one, other = dialer(to="n2"), listener(me="n3")
    with pytest.raises(HandshakeError, match="this is n3, not 'n2'") as caught:
        other.receive(one.start())
    with pytest.raises(HandshakeError, match=r"n2 refused the link: .*this is n3"):
        one.receive(encode_refusal(str(caught.value)))


def test_another_cluster_is_refused_even_with_the_same_secret() -> None:
    with pytest.raises(HandshakeError, match=r"cluster 'demo', not 'other'.*cluster\.name"):
        listener().receive(dialer(cluster="other").start())


def test_another_protocol_version_is_refused() -> None:
    hello = msgspec.msgpack.decode(dialer().start(), type=Hello)
    newer = msgspec.structs.replace(hello, version=PROTOCOL_VERSION + 1)
    with pytest.raises(HandshakeError, match="same version on every node"):
        listener().receive(encode(newer))


def test_an_unknown_stream_is_refused() -> None:
    with pytest.raises(HandshakeError, match="has no streams of kind 'gossip'"):
        listener().receive(dialer(kind="gossip").start())


@pytest.mark.parametrize("name", ["", "n" * 256])
def test_an_unusable_node_id_is_refused(name: str) -> None:
    with pytest.raises(HandshakeError, match="1 to 255"):
        listener().receive(dialer(me=name).start())


def test_a_short_nonce_is_refused_on_both_sides() -> None:
    hello = msgspec.msgpack.decode(dialer().start(), type=Hello)
    with pytest.raises(HandshakeError, match="32 bytes"):
        listener().receive(encode(msgspec.structs.replace(hello, nonce=b"1")))
    with pytest.raises(HandshakeError, match="32 bytes"):
        dialer().receive(encode(Challenge(b"")))


def test_messages_out_of_order_end_it() -> None:
    other = listener()
    with pytest.raises(HandshakeError, match="unexpected Proof"):
        other.receive(encode(Proof(b"")))
    with pytest.raises(HandshakeError, match="unexpected Hello"):
        other.receive(dialer().start())
    with pytest.raises(HandshakeError, match="unexpected Accept"):
        dialer().receive(encode(Accept(b"", CLAIM_OF_N2)))


def test_a_second_try_takes_a_new_handshake() -> None:
    """Else a stranger could guess proofs against one nonce."""
    one, other = dialer(), listener()
    proof = one.receive(other.receive(one.start()))
    with pytest.raises(HandshakeError):
        other.receive(encode(Proof(b"guess")))
    with pytest.raises(HandshakeError, match="unexpected"):
        other.receive(proof)


@given(st.binary(max_size=200))
def test_garbage_is_an_error_and_nothing_else(data: bytes) -> None:
    with pytest.raises(HandshakeError):
        listener().receive(data)
    with pytest.raises(HandshakeError):
        dialer().receive(data)


def test_an_oversized_message_is_not_even_parsed() -> None:
    with pytest.raises(HandshakeError, match="at most 4096 bytes"):
        listener().receive(b"\x91" * (MAX_HANDSHAKE_MESSAGE_BYTES + 1))


def test_a_refusal_cannot_write_control_characters_into_our_log() -> None:
    with pytest.raises(HandshakeError) as caught:
        dialer().receive(encode_refusal("no\n2026 INFO all is well \x1b[2J" + "x" * 5000))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_no_secret_is_allowed_on_loopback(host: str) -> None:
    check_secret(host, SharedSecret(b""))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "db.example.com", ""])
def test_no_secret_is_refused_elsewhere_with_the_field_and_the_fix(host: str) -> None:
    with pytest.raises(HandshakeError, match=r"cluster\.secret is not set.*127\.0\.0\.1"):
        check_secret(host, SharedSecret(b""))
    check_secret(host, SharedSecret(b"something"))
