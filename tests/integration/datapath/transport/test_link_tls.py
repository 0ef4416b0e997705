"""Links under TLS: which certificate opens one, and that what crosses is not to be read."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from cluster.certificates.authority import Authority, Validity
from cluster.certificates.facts import utc_now
from cluster.certificates.node_tls import NodeTls
from cluster.config.file import load_config
from cluster.config.model import ConfigError
from datapath.transport.dialer import Dialer
from datapath.transport.listener import PeerListener
from datapath.transport.tls import LinkTls
from election.shared_secret import SharedSecret
from tests.integration.datapath.transport.link_helpers import (
    Recorder,
    make_dialer,
    make_listener,
    until,
)

DAY = dt.timedelta(days=1)


class Site:
    """An authority, and a configuration of the nodes n1 and n2 that uses it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = Authority(directory / "certs")
        self.authority.create()

    def tls(self, node: str, *, certificate_of: str = "") -> NodeTls:
        """Return the node's certificates, or those of a file of another name."""
        name = certificate_of or "{node}"
        lines = ["[cluster]", 'name = "demo"', '[tls]\nca = "certs/ca.crt"\ncrl = "certs/ca.crl"']
        lines += [f'certificate = "certs/{name}.crt"', f'key = "certs/{name}.key"']
        for place, each in enumerate(("n1", "n2")):
            lines += [f"[nodes.{each}]", f'data = "{each}"']
            for port, channel in enumerate(("client", "peer", "raft"), 1 + 10 * place):
                lines.append(f'{channel} = "127.0.0.1:{port}"')
        path = self.directory / f"{node}.toml"
        path.write_text("\n".join(lines))
        return NodeTls(load_config(path), node)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path)
    for node in ("n1", "n2"):
        made.authority.issue_node(node, ["127.0.0.1"])
    return made


class Ends:
    """A dialer and a listener, each with what it was told."""

    def __init__(self, near_tls: LinkTls | None, far_tls: LinkTls | None) -> None:
        self.near, self.far = Recorder(), Recorder()
        self.far_tls, self.near_tls = far_tls, near_tls
        self.listener: PeerListener
        self.dialer: Dialer


@contextlib.asynccontextmanager
async def ends(
    near_tls: LinkTls | None, far_tls: LinkTls | None, **options: object
) -> AsyncIterator[Ends]:
    found = Ends(near_tls, far_tls)
    found.listener = make_listener(found.far, tls=far_tls)
    await found.listener.start()
    found.dialer = make_dialer(
        found.near, found.listener.port, tls=near_tls, dial_timeout_ms=30_000, **options
    )
    found.dialer.start()
    try:
        yield found
    finally:
        await found.dialer.stop()
        await found.listener.stop()


async def test_a_link_opens_between_nodes_of_the_authority(site: Site) -> None:
    async with ends(site.tls("n1"), site.tls("n2")) as found:
        await until(lambda: found.near.up == 1 and found.far.up == 1)
        found.near.link.send(b"large" * 100_000)
        await until(lambda: found.far.frames)
        assert found.far.frames == [b"large" * 100_000]
        assert found.near.link.certificate


@pytest.mark.parametrize("dialled", [False, True])
async def test_a_node_shows_a_certificate_of_its_own_id(site: Site, dialled: bool) -> None:
    """n3 has a certificate of the cluster, knows the secret, and is not who it says it is."""
    site.authority.issue_node("n3", ["127.0.0.1"])
    other = _unchecked(site, "n3")
    near, far = (site.tls("n1"), other) if dialled else (other, site.tls("n2"))
    async with ends(near, far) as found:
        words = ("not valid for 'n2'",) if dialled else ("not for node", "n3")
        await until(lambda: all(word in found.dialer.problem for word in words))
        assert found.near.opened == found.far.opened == []


@pytest.mark.parametrize("whose", ["foreign", "expired", "not yet valid", "client", "revoked"])
async def test_other_certificates_open_no_link(site: Site, tmp_path: Path, whose: str) -> None:
    now = utc_now()
    match whose:
        case "foreign":
            (tmp_path / "other").mkdir()
            stranger = Site(tmp_path / "other")
            stranger.authority.issue_node("n1", [])
            near: LinkTls = _Mixed(stranger.tls("n1"), site.tls("n1"))
        case "expired":
            site.authority.renew("n1", Validity(now - 2 * DAY, now - DAY))
            near = _unchecked(site, "n1")
        case "not yet valid":
            site.authority.renew("n1", Validity(now + DAY, now + 2 * DAY))
            near = _unchecked(site, "n1")
        case "client":
            (site.authority.directory / "n1.crt").unlink()
            site.authority.issue_client("n1")
            near = _unchecked(site, "n1")
        case _:
            near = site.tls("n1")
            site.authority.revoke("n1")
    async with ends(near, site.tls("n2")) as found:
        await until(lambda: found.dialer.problem)
        assert found.near.opened == found.far.opened == []


async def test_plain_text_and_tls_tell_each_other(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    async with ends(None, site.tls("n2")) as found:
        await until(lambda: "speaks TLS only" in found.dialer.problem)
        await until(lambda: "refused: this port speaks TLS only" in caplog.text)
    async with ends(site.tls("n1"), None) as found:
        await until(lambda: "it answers without TLS: [tls]" in found.dialer.problem)
        await until(lambda: "speaks TLS to this port" in caplog.text)


async def test_a_revoked_certificates_open_link_can_be_closed(site: Site) -> None:
    far_tls = site.tls("n2")
    async with ends(site.tls("n1"), far_tls) as found:
        await until(lambda: found.far.up == 1)
        assert not far_tls.is_revoked(found.far.link.certificate)
        site.authority.revoke("n1")
        assert far_tls.take_up(load_config(site.directory / "n2.toml"))
        assert far_tls.is_revoked(found.far.link.certificate)


async def test_an_authority_is_replaced_under_open_ports(site: Site) -> None:
    near_tls, far_tls = site.tls("n1"), site.tls("n2")
    steps: tuple[Callable[[], object], ...] = (
        site.authority.rotate,
        lambda: site.authority.renew("n1"),
        lambda: site.authority.renew("n2"),
        site.authority.retire,
    )
    for step in steps:
        step()
        for node, tls in (("n1", near_tls), ("n2", far_tls)):
            assert tls.take_up(load_config(site.directory / f"{node}.toml")), tls.problem
            async with ends(near_tls, far_tls) as found:
                await until(lambda: found.near.up == 1)


async def test_bad_files_leave_a_node_what_it_had(site: Site) -> None:
    tls = site.tls("n2")
    before = tls.dialing
    site.authority.issue_client("other")
    key = site.authority.directory / "n2.key"
    key.write_bytes((site.authority.directory / "other.key").read_bytes())
    assert not tls.take_up(load_config(site.directory / "n2.toml"))
    assert "tls.key" in tls.problem
    assert "PRIVATE" not in tls.problem
    assert tls.dialing is before


async def test_two_secrets_are_accepted_while_it_is_changed() -> None:
    old, new = b"the old secret of 2026", b"the new secret of 2027"
    theirs = SharedSecret(old)
    far = Recorder()
    listener = make_listener(far, secret=theirs)
    await listener.start()
    try:
        for mine, accepted in (
            (SharedSecret(old), (old, new)),
            (SharedSecret(new, old), (old, new)),
            (SharedSecret(new), (new, old)),
        ):
            theirs.replace(*accepted)
            dialer = make_dialer(Recorder(), listener.port, secret=mine, dial_timeout_ms=30_000)
            dialer.start()
            opened = len(far.opened)
            await until(lambda: len(far.opened) > opened)  # noqa: B023
            await dialer.stop()
        theirs.replace(new)
        dialer = make_dialer(Recorder(), listener.port, secret=SharedSecret(old))
        dialer.start()
        await until(lambda: "secret" in dialer.problem)
        await dialer.stop()
    finally:
        await listener.stop()


def _past() -> Validity:
    return Validity(utc_now() - 2 * DAY, utc_now() - DAY)


def _future() -> Validity:
    return Validity(utc_now() + DAY, utc_now() + 2 * DAY)


def _write(site: Site, name: str, data: bytes) -> None:
    (site.authority.directory / name).write_bytes(data)


def _swap(site: Site, one: str, other: str) -> None:
    for end in ("crt", "key"):
        _write(site, f"{one}.{end}", (site.authority.directory / f"{other}.{end}").read_bytes())


def _swap_key(site: Site) -> None:
    _write(site, "n1.key", (site.authority.directory / "n2.key").read_bytes())


def _other_list(site: Site) -> None:
    other = Authority(site.directory / "elsewhere")
    other.create()
    _write(site, "ca.crl", (other.directory / "ca.crl").read_bytes())


class _Mixed:
    """Dials with the certificates of one set, and trusts what another trusts."""

    def __init__(self, own: NodeTls, trusting: NodeTls) -> None:
        self.dialing = own.dialing
        self.dialing.load_verify_locations(trusting._config.tls.ca)
        self.dialing.load_verify_locations(trusting._config.tls.crl)
        self.listening = own.listening


def _unchecked(site: Site, name: str) -> LinkTls:
    """Use a certificate that a node's own start would refuse."""
    tls = site.tls("n2")  # a set that passes
    for context in (tls.dialing, tls.listening):
        directory = site.authority.directory
        context.load_cert_chain(directory / f"{name}.crt", directory / f"{name}.key")
    return tls


@pytest.mark.parametrize(
    ("field", "spoil", "words"),
    [
        ("certificate", lambda s: s.authority.renew("n1", _past()), "expired at .* certs renew n1"),
        ("certificate", lambda s: s.authority.renew("n1", _future()), "not valid before"),
        ("certificate", lambda s: s.authority.revoke("n1"), "revoked"),
        ("certificate", lambda s: _write(s, "n1.crt", b""), "no PEM certificate"),
        ("certificate", lambda s: _swap(s, "n1", "n2"), "n1.crt is not n1's: .* n2"),
        ("ca", lambda s: (s.authority.directory / "ca.crt").unlink(), "cannot be read"),
        ("key", lambda s: _write(s, "n1.key", b"garbage"), "no private key"),
        ("key", lambda s: (s.authority.directory / "n1.key").chmod(0o644), "chmod 600"),
        ("key", _swap_key, "is not the key of"),
        ("crl", lambda s: _write(s, "ca.crl", b""), "no PEM revocation list"),
        ("crl", _other_list, "has no list of onecopy CA"),
    ],
)
def test_a_node_does_not_start_with_files_that_others_would_refuse(
    site: Site, field: str, spoil: object, words: str
) -> None:
    assert callable(spoil)
    spoil(site)
    with pytest.raises(ConfigError, match=words) as caught:
        site.tls("n1")
    assert caught.value.field == f"tls.{field}"
    assert "PRIVATE KEY" not in str(caught.value)


def test_what_expires_soon_is_told(site: Site) -> None:
    assert site.tls("n1").warnings() == ()
    now = utc_now()
    site.authority.renew("n1", Validity(now - DAY, now + 5 * DAY))
    (told,) = site.tls("n1").warnings()
    assert "expires in 5 days" in told
    assert "onecopy certs renew n1" in told
