"""What stands in a certificate, for people and for the checks at a node's start."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

EXPIRY_WARNING_DAYS = 14

_CRL_END = b"-----END X509 CRL-----\n"
_T = TypeVar("_T")


class CertificateError(Exception):
    """A certificate, key or directory of them cannot be used. `str(error)` says what to do."""


class CertificateFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One certificate. Times are UTC; `names` are its DNS names and IP addresses, as text.

    `kind`: "ca", "node" (a server and a client), "client", or "server".
    """

    subject: str
    issuer: str
    kind: str
    serial: str
    names: tuple[str, ...]
    not_before: dt.datetime
    not_after: dt.datetime

    def days_left(self, now: dt.datetime) -> float:
        """Return the days until it expires; negative once it has."""
        return (self.not_after - now).total_seconds() / 86400


def utc_now() -> dt.datetime:
    """Return the time of day, by which certificates are valid or not."""
    return dt.datetime.now(dt.UTC)


def read_certificates(path: Path) -> list[x509.Certificate]:
    """Return the certificates of a PEM file, at least one. Raises CertificateError."""
    return read_pem(path, x509.load_pem_x509_certificates, "no PEM certificate")


def read_lists(path: Path) -> list[x509.CertificateRevocationList]:
    """Return the revocation lists of a PEM file. Raises CertificateError."""

    def parse(data: bytes) -> list[x509.CertificateRevocationList]:
        parts = data.split(_CRL_END)[:-1]
        if not parts:
            raise ValueError
        return [x509.load_pem_x509_crl(part + _CRL_END) for part in parts]

    return read_pem(path, parse, "no PEM revocation list")


def read_pem(path: Path, parse: Callable[[bytes], _T], what: str) -> _T:
    """Return what `parse` makes of a file. Raises CertificateError that names the file."""
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise CertificateError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        # The parser's message may quote the file.
        raise CertificateError(f"{path} holds {what}") from error


def facts_of(certificate: x509.Certificate) -> CertificateFacts:
    """Return what stands in a certificate."""
    return CertificateFacts(
        subject=common_name(certificate.subject),
        issuer=common_name(certificate.issuer),
        kind=_kind_of(certificate),
        serial=f"{certificate.serial_number:x}",
        names=(*dns_names(certificate), *map(str, _alternative(certificate, x509.IPAddress))),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
    )


def dns_names(certificate: x509.Certificate) -> tuple[str, ...]:
    """Return the DNS names among the certificate's alternative names."""
    return tuple(map(str, _alternative(certificate, x509.DNSName)))


def common_name(name: x509.Name) -> str:
    """Return the common name, or the whole name where there is none."""
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else name.rfc4514_string()


def _alternative(
    certificate: x509.Certificate, kind: type[x509.DNSName | x509.IPAddress]
) -> list[object]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return list(found.value.get_values_for_type(kind))


def _kind_of(certificate: x509.Certificate) -> str:
    extensions = certificate.extensions
    try:
        if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return "ca"
    except x509.ExtensionNotFound:
        pass
    try:
        uses = set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return "node"  # for any purpose
    serves = ExtendedKeyUsageOID.SERVER_AUTH in uses
    asks = ExtendedKeyUsageOID.CLIENT_AUTH in uses
    return "node" if serves and asks else "server" if serves else "client"
