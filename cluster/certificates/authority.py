"""A certificate authority in a directory: makes, renews and revokes a cluster's certificates.

For those who have no authority of their own. All cryptography is the library's; here is only what
a certificate of onecopy contains. The files:

    ca.crt       the authority's certificate; two of them while the authority is being replaced
    ca.key       its private key; ca.old.key the replaced one's
    ca.crl       what it has revoked; a list of each authority
    NAME.crt     the certificate of a node (its id) or a client
    NAME.key     its private key

Keys are on P-256: TLS 1.3 everywhere, and a handshake costs a tenth of one with RSA.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cluster.certificates.facts import (
    CertificateError,
    common_name,
    read_certificates,
    read_lists,
    read_pem,
    utc_now,
)
from cluster.certificates.private_files import PUBLIC_MODE, write_file

CA_DAYS = 3650
LEAF_DAYS = 365
CLOCK_MARGIN = dt.timedelta(minutes=5)
"""How far behind the clock of a machine may be that gets a new certificate."""
_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class Validity(msgspec.Struct, frozen=True):
    """From when until when a certificate counts."""

    not_before: dt.datetime
    not_after: dt.datetime


def valid_for(days: int) -> Validity:
    """Return the time from now on."""
    now = utc_now()
    return Validity(now - CLOCK_MARGIN, now + dt.timedelta(days=days))


class Authority:
    """The authority kept in `directory`. All methods raise CertificateError, and OSError."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    # -- the authority itself

    def create(self, validity: Validity | None = None) -> Path:
        """Make the authority; return its certificate."""
        if self._file("ca.key").exists() or self._file("ca.crt").exists():
            raise CertificateError(
                f"{self.directory} has an authority already; to replace it, use: "
                "onecopy certs rotate"
            )
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self._create(validity or valid_for(CA_DAYS), older=[], lists=[])

    def rotate(self, validity: Validity | None = None) -> Path:
        """Make a new authority that issues from now on; the old one is trusted beside it."""
        authorities, _ = self._load()
        if len(authorities) > 1:
            raise CertificateError(
                f"{self._file('ca.crt')} still holds the authority before this one; when no "
                "certificate of it is in use, drop it with: onecopy certs retire"
            )
        self._file("ca.key").replace(self._file("ca.old.key"))
        return self._create(validity or valid_for(CA_DAYS), authorities, self._lists())

    def retire(self) -> Path:
        """Drop the authority that was replaced: its certificates are trusted no more."""
        authorities, _ = self._load()
        if len(authorities) < 2:
            raise CertificateError("there is no replaced authority to drop")
        issued_by = common_name(authorities[1].subject)
        for name in self.names():
            if read_certificates(self._file(f"{name}.crt"))[0].issuer == authorities[1].subject:
                raise CertificateError(
                    f"{name}.crt was issued by {issued_by}, which would be dropped: renew it "
                    f"first with: onecopy certs renew {name}"
                )
        self._write_authorities(authorities[:1])
        self._write_lists([each for each in self._lists() if each.issuer == authorities[0].subject])
        self._file("ca.old.key").unlink(missing_ok=True)
        return self._file("ca.crt")

    def _create(
        self,
        validity: Validity,
        older: list[x509.Certificate],
        lists: list[x509.CertificateRevocationList],
    ) -> Path:
        key = ec.generate_private_key(ec.SECP256R1())
        name = _named(f"onecopy CA {secrets.token_hex(4)}")
        builder = (
            _builder(name, name, key.public_key(), key.public_key(), validity)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
        )
        certificate = builder.sign(key, hashes.SHA256())
        write_file(self._file("ca.key"), _key_pem(key))
        self._write_authorities([certificate, *older])
        self._write_lists([_revocation_list(name, key, []), *lists])
        return self._file("ca.crt")

    # -- certificates

    def names(self) -> list[str]:
        """Return the nodes and clients that have a certificate here."""
        found = (path.stem for path in self.directory.glob("*.crt"))
        return sorted(name for name in found if name != "ca")

    def issue_node(self, node: str, hosts: Iterable[str], validity: Validity | None = None) -> Path:
        """Make a node's certificate, under its id and for these host names and addresses."""
        names = [_general_name(host) for host in dict.fromkeys((node, *hosts))]
        return self._issue_new(node, names, is_node=True, validity=validity)

    def issue_client(self, name: str, validity: Validity | None = None) -> Path:
        """Make a client's certificate; its common name is what the cluster knows it by."""
        # No DNS name: one that is a node's id would open the links between nodes to it.
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"onecopy:client:{name}")]
        return self._issue_new(name, names, is_node=False, validity=validity)

    def renew(self, name: str, validity: Validity | None = None) -> Path:
        """Make another certificate for the same names, with a new key, by today's authority."""
        path = self._file(f"{name}.crt")
        if name == "ca" or not path.exists():
            known = ", ".join(self.names()) or "none"
            raise CertificateError(f"{path} does not exist; there are certificates for: {known}")
        old = read_certificates(path)[0]
        alternative = old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uses = old.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        is_node = ExtendedKeyUsageOID.SERVER_AUTH in uses
        return self._issue(name, list(alternative), is_node=is_node, validity=validity)

    def revoke(self, name: str) -> Path:
        """Put a certificate on its authority's list; return the list, for `[tls] crl`."""
        path = self._file(f"{name}.crt")
        if name == "ca" or not path.exists():
            raise CertificateError(f"{path} does not exist")
        certificate = read_certificates(path)[0]
        authorities, _ = self._load()
        keys = (self._file("ca.key"), self._file("ca.old.key"))
        for authority, key_path in zip(authorities, keys, strict=False):
            if certificate.issuer == authority.subject:
                self._revoke(certificate, authority.subject, _read_key(key_path))
                return self._file("ca.crl")
        raise CertificateError(f"{path} was not issued by the authority in {self.directory}")

    def _revoke(
        self, certificate: x509.Certificate, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
    ) -> None:
        lists = self._lists()
        entry = (
            x509.RevokedCertificateBuilder()
            .serial_number(certificate.serial_number)
            .revocation_date(utc_now())
            .build()
        )
        known = [item for each in lists if each.issuer == issuer for item in each]
        entries = [item for item in known if item.serial_number != entry.serial_number]
        others = [each for each in lists if each.issuer != issuer]
        self._write_lists([_revocation_list(issuer, key, [*entries, entry]), *others])

    def _issue_new(
        self,
        name: str,
        names: list[x509.GeneralName],
        *,
        is_node: bool,
        validity: Validity | None,
    ) -> Path:
        if not _NAME.fullmatch(name) or name == "ca":
            raise CertificateError(
                f"{name!r} cannot be a certificate's name: use 1 to 63 of A-Z a-z 0-9 . _ -, "
                "other than ca"
            )
        path = self._file(f"{name}.crt")
        if path.exists():
            raise CertificateError(
                f"{path} exists already; to replace it, use: onecopy certs renew {name}"
            )
        return self._issue(name, names, is_node=is_node, validity=validity)

    def _issue(
        self,
        name: str,
        names: list[x509.GeneralName],
        *,
        is_node: bool,
        validity: Validity | None,
    ) -> Path:
        authorities, authority_key = self._load()
        key = ec.generate_private_key(ec.SECP256R1())
        validity = validity or valid_for(LEAF_DAYS)
        last = authorities[0].not_valid_after_utc
        if validity.not_after > last:
            validity = Validity(validity.not_before, last)
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if is_node:
            uses.append(ExtendedKeyUsageOID.SERVER_AUTH)
        builder = (
            _builder(
                _named(name),
                authorities[0].subject,
                key.public_key(),
                authority_key.public_key(),
                validity,
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
        )
        certificate = builder.sign(authority_key, hashes.SHA256())
        path = self._file(f"{name}.crt")
        write_file(self._file(f"{name}.key"), _key_pem(key))
        write_file(path, certificate.public_bytes(Encoding.PEM), mode=PUBLIC_MODE)
        return path

    # -- files

    def _file(self, name: str) -> Path:
        return self.directory / name

    def _load(self) -> tuple[list[x509.Certificate], ec.EllipticCurvePrivateKey]:
        if not self._file("ca.key").exists():
            raise CertificateError(
                f"{self.directory} has no authority (no ca.key); make one with: onecopy certs ca"
            )
        return read_certificates(self._file("ca.crt")), _read_key(self._file("ca.key"))

    def _lists(self) -> list[x509.CertificateRevocationList]:
        path = self._file("ca.crl")
        if not path.exists():
            return []
        return read_lists(path)

    def _write_authorities(self, authorities: list[x509.Certificate]) -> None:
        data = b"".join(each.public_bytes(Encoding.PEM) for each in authorities)
        write_file(self._file("ca.crt"), data, mode=PUBLIC_MODE)

    def _write_lists(self, lists: list[x509.CertificateRevocationList]) -> None:
        data = b"".join(each.public_bytes(Encoding.PEM) for each in lists)
        write_file(self._file("ca.crl"), data, mode=PUBLIC_MODE)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    validity: Validity,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(validity.not_before)
        .not_valid_after(validity.not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False
        )
    )


def _revocation_list(
    issuer: x509.Name, key: ec.EllipticCurvePrivateKey, entries: list[x509.RevokedCertificate]
) -> x509.CertificateRevocationList:
    # As long as the authority: an operator who revokes nothing must not have to renew the list.
    validity = valid_for(CA_DAYS)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer)
        .last_update(validity.not_before)
        .next_update(validity.not_after)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
        )
    )
    for entry in entries:
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(key, hashes.SHA256())


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = read_pem(path, lambda data: load_pem_private_key(data, None), "no private key")
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError(f"{path} holds no key that onecopy certs has made")
    return key


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise CertificateError(
            f"{host!r} is neither a host name in ASCII nor an address"
        ) from error


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )
