"""The authority in a directory: what it issues, and that a step done wrong changes nothing."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509

from cluster.certificates.authority import Authority
from cluster.certificates.facts import CertificateError, facts_of, read_certificates
from cluster.cli.main import main


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority(tmp_path / "certs")
    made.create()
    return made


def files(authority: Authority) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in authority.directory.iterdir()}


def revoked(authority: Authority) -> set[int]:
    text = (authority.directory / "ca.crl").read_bytes()
    end = b"-----END X509 CRL-----\n"
    lists = [x509.load_pem_x509_crl(part + end) for part in text.split(end)[:-1]]
    return {entry.serial_number for each in lists for entry in each}


def test_a_node_gets_a_certificate_for_its_id_and_its_hosts(authority: Authority) -> None:
    path = authority.issue_node("n1", ["10.0.0.1", "db1.example"])
    found = facts_of(read_certificates(path)[0])
    assert found.kind == "node"
    assert found.names == ("n1", "db1.example", "10.0.0.1")
    read_certificates(path)[0].verify_directly_issued_by(
        read_certificates(authority.directory / "ca.crt")[0]
    )


def test_a_client_named_like_a_node_gets_no_name_that_opens_links(authority: Authority) -> None:
    found = facts_of(read_certificates(authority.issue_client("n1"))[0])
    assert (found.kind, found.subject, found.names) == ("client", "n1", ())


def test_keys_are_their_owners_alone(authority: Authority) -> None:
    authority.issue_node("n1", [])
    for key in authority.directory.glob("*.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_what_is_renewed_keeps_its_names_and_gets_a_new_key(authority: Authority) -> None:
    path = authority.issue_node("n1", ["db1.example"])
    old, old_key = facts_of(read_certificates(path)[0]), path.with_suffix(".key").read_bytes()
    authority.renew("n1")
    new = facts_of(read_certificates(path)[0])
    assert (new.names, new.kind, new.subject) == (old.names, old.kind, old.subject)
    assert new.serial != old.serial
    assert path.with_suffix(".key").read_bytes() != old_key


def test_no_certificate_outlives_its_authority(authority: Authority) -> None:
    last = read_certificates(authority.directory / "ca.crt")[0].not_valid_after_utc
    runner = CliRunner()
    result = runner.invoke(
        main, ["certs", "client", "a", "--days", "36500", "--dir", str(authority.directory)]
    )
    assert result.exit_code == 0, result.output
    found = read_certificates(authority.directory / "a.crt")[0]
    assert found.not_valid_after_utc == last


@pytest.mark.parametrize("name", ["ca", "../n1", "", "a/b", ".hidden", "x" * 64])
def test_a_name_that_is_no_file_name_is_refused(authority: Authority, name: str) -> None:
    before = files(authority)
    with pytest.raises(CertificateError):
        authority.issue_client(name)
    assert files(authority) == before


def test_what_exists_is_not_replaced_by_accident(authority: Authority) -> None:
    authority.issue_node("n1", [])
    before = files(authority)
    steps: tuple[Callable[[], object], ...] = (
        authority.create,
        lambda: authority.issue_node("n1", []),
        lambda: authority.issue_client("n1"),
        authority.retire,
        lambda: authority.renew("n2"),
        lambda: authority.revoke("n2"),
    )
    for step in steps:
        with pytest.raises(CertificateError):
            step()
    assert files(authority) == before


def test_an_authority_is_replaced_in_steps_that_leave_all_trusted(authority: Authority) -> None:
    path = authority.issue_node("n1", [])
    authority.rotate()
    new, old = read_certificates(authority.directory / "ca.crt")
    read_certificates(path)[0].verify_directly_issued_by(old)
    with pytest.raises(CertificateError, match="renew n1"):
        authority.retire()
    with pytest.raises(CertificateError, match="retire"):
        authority.rotate()
    authority.renew("n1")
    authority.retire()
    assert read_certificates(authority.directory / "ca.crt") == [new]
    read_certificates(path)[0].verify_directly_issued_by(new)
    assert not (authority.directory / "ca.old.key").exists()


def test_certificates_of_the_replaced_authority_can_still_be_revoked(authority: Authority) -> None:
    serials = set()
    for name in ("n1", "n2"):
        path = authority.issue_node(name, [])
        serials.add(read_certificates(path)[0].serial_number)
    authority.revoke("n1")
    authority.rotate()
    authority.revoke("n2")
    authority.revoke("n2")  # twice is once
    assert revoked(authority) == serials


def test_the_commands_say_what_to_do(tmp_path: Path) -> None:
    runner = CliRunner()
    result = runner.invoke(main, ["certs", "client", "a", "--dir", str(tmp_path / "none")])
    assert (result.exit_code, "onecopy certs ca" in result.stderr) == (1, True)
    result = runner.invoke(main, ["certs", "node", "--config", str(tmp_path / "none.toml")])
    assert (result.exit_code, "none.toml" in result.stderr) == (1, True)
