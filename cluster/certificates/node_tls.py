"""A node's certificates as it uses them: loaded, checked, and taken up anew while it runs.

A set of files is used only as a whole and only after it has passed every check, a handshake with
itself among them: a file that is half copied, or a certificate that does not belong to the key,
leaves a running node with what it had.
"""

from __future__ import annotations

import contextlib
import ssl
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from cluster.certificates.facts import (
    EXPIRY_WARNING_DAYS,
    CertificateError,
    CertificateFacts,
    dns_names,
    facts_of,
    read_certificates,
    read_lists,
    read_pem,
    utc_now,
)
from cluster.certificates.hosts import hosts_of
from cluster.config.model import ClusterConfig, ConfigError
from cluster.config.tls_section import TlsSection

_MAX_HANDSHAKE_FLIGHTS = 8


class Credentials(msgspec.Struct, frozen=True):
    """One set of files, checked. `warnings` are sentences for the operator."""

    serving: ssl.SSLContext
    dialing: ssl.SSLContext
    listening: ssl.SSLContext
    own: CertificateFacts
    authority: CertificateFacts
    lists: tuple[x509.CertificateRevocationList, ...]
    warnings: tuple[str, ...]


def load_credentials(config: ClusterConfig, node: str) -> Credentials:
    """Load and check the node's files of `[tls]`. Raises ConfigError, which names the field."""
    tls = config.tls.for_node(node)
    checks = _Checks(config, node, tls)
    chain, authorities = checks.chain(), checks.certificates("ca")
    checks.own_certificate(chain[0])
    checks.key(chain[0])
    if tls.client_ca:
        checks.certificates("client_ca")
    lists = checks.lists(authorities) if tls.crl else []
    try:
        credentials = Credentials(
            serving=_serving(tls),
            dialing=_between_nodes(tls, ssl.PROTOCOL_TLS_CLIENT),
            listening=_between_nodes(tls, ssl.PROTOCOL_TLS_SERVER),
            own=facts_of(chain[0]),
            authority=min(map(facts_of, authorities), key=lambda each: each.not_after),
            lists=tuple(lists),
            warnings=tuple(checks.warnings),
        )
    except (OSError, ValueError) as error:  # ssl's own complaints about the files
        checks.refuse("certificate", f"{tls.certificate} cannot be used: {error}")
    problem = _shake_hands_with_itself(credentials, node)
    if problem:
        checks.refuse(
            "certificate",
            f"{tls.certificate} would be refused by the other nodes ({problem}): it must be "
            f"issued by an authority in {tls.ca}, for servers and clients, and not be revoked",
        )
    return credentials


class _Checks:
    """Each says in one sentence what is wrong with a file, and what to do."""

    def __init__(self, config: ClusterConfig, node: str, tls: TlsSection) -> None:
        self.warnings: list[str] = []
        self._config = config
        self._node = node
        self._tls = tls

    def refuse(self, field: str, problem: str) -> NoReturn:
        raise ConfigError(self._config.path, f"tls.{field}", problem)

    def certificates(self, field: str) -> list[x509.Certificate]:
        path = Path(getattr(self._tls, field))
        try:
            return read_certificates(path)
        except CertificateError as error:
            self.refuse(field, f"{error}; {self._advice(field)}")

    def chain(self) -> list[x509.Certificate]:
        return self.certificates("certificate")

    def _advice(self, field: str) -> str:
        step = {"ca": "ca", "client_ca": "ca", "crl": "ca"}.get(field, f"node {self._node}")
        return f"make it with: onecopy certs {step}"

    def own_certificate(self, certificate: x509.Certificate) -> None:
        path, now, facts = self._tls.certificate, utc_now(), facts_of(certificate)
        renew = f"renew it with: onecopy certs renew {self._node}"
        if facts.not_after < now:
            self.refuse("certificate", f"{path} expired at {_text(facts.not_after)}; {renew}")
        if facts.not_before > now:
            self.refuse(
                "certificate",
                f"{path} is not valid before {_text(facts.not_before)}; set this machine's clock, "
                f"which says {_text(now)}, or {renew}",
            )
        if self._node not in dns_names(certificate):
            known = ", ".join(dns_names(certificate)) or "none"
            self.refuse(
                "certificate",
                f"{path} is not {self._node}'s: its DNS names are {known}, and the node's id must "
                f"be among them; make it with: onecopy certs node {self._node}",
            )
        host = hosts_of(self._config, self._node)[0]
        if not {host, f"*.{host.partition('.')[2]}"} & set(facts.names):
            self.warnings.append(
                f"{path} is not for {host}, the host of nodes.{self._node}.client: clients that "
                "connect to that address will refuse it"
            )

    def key(self, certificate: x509.Certificate) -> None:
        path = Path(self._tls.key)
        try:
            mode = path.stat().st_mode
            key = read_pem(path, lambda data: load_pem_private_key(data, None), "no private key")
        except (CertificateError, OSError) as error:
            text = (
                str(error) if isinstance(error, CertificateError) else f"{path}: {error.strerror}"
            )
            self.refuse("key", f"{text} that can be used; it must be PEM, and not encrypted")
        if mode & (stat.S_IROTH | stat.S_IWOTH):
            self.refuse("key", f"{path} can be read by every user; run: chmod 600 {path}")
        if key.public_key() != certificate.public_key():
            self.refuse(
                "key",
                f"{path} is not the key of {self._tls.certificate}: copy both from where they "
                "were made",
            )

    def lists(self, authorities: list[x509.Certificate]) -> list[x509.CertificateRevocationList]:
        path = Path(self._tls.crl)
        try:
            found = read_lists(path)
        except CertificateError as error:
            self.refuse("crl", f"{error}; {self._advice('crl')}")
        now = utc_now()
        clients = self.certificates("client_ca") if self._tls.client_ca else []
        for authority in (*authorities, *clients):
            own = [each for each in found if each.issuer == authority.subject]
            if not own:
                self.refuse(
                    "crl",
                    f"{path} has no list of {facts_of(authority).subject}, so that none of its "
                    "certificates could be used; add its list",
                )
            if all(each.next_update_utc and each.next_update_utc < now for each in own):
                self.refuse(
                    "crl",
                    f"the list of {facts_of(authority).subject} in {path} has expired: replace it "
                    "by a new one of that authority",
                )
        return found


def _context(protocol: int, tls: TlsSection) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # A key that is encrypted was refused before: nothing may ask for a password here.
    context.load_cert_chain(tls.certificate, tls.key, password="")
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        # A session that is resumed is not verified again: not after a revocation either.
        context.num_tickets = 0
    return context


def _trust(context: ssl.SSLContext, authorities: str, crl: str) -> None:
    context.load_verify_locations(authorities)
    if crl:
        context.load_verify_locations(crl)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF


def _serving(tls: TlsSection) -> ssl.SSLContext:
    context = _context(ssl.PROTOCOL_TLS_SERVER, tls)
    context.set_alpn_protocols(["http/1.1"])
    if tls.client_ca:
        _trust(context, tls.client_ca, tls.crl)
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def _between_nodes(tls: TlsSection, protocol: int) -> ssl.SSLContext:
    context = _context(protocol, tls)
    _trust(context, tls.ca, tls.crl)
    context.verify_mode = ssl.CERT_REQUIRED
    context.hostname_checks_common_name = False
    return context


def _shake_hands_with_itself(credentials: Credentials, node: str) -> str:
    """Connect the dialling end to the listening end in memory; return why they refuse, or ""."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        credentials.dialing.wrap_bio(to_client, to_server, server_hostname=node),
        credentials.listening.wrap_bio(to_server, to_client, server_side=True),
    )
    for _ in range(_MAX_HANDSHAKE_FLIGHTS):
        for end in ends:
            try:
                with contextlib.suppress(ssl.SSLWantReadError):
                    end.do_handshake()
            except ssl.SSLCertVerificationError as error:
                return error.verify_message
            except ssl.SSLError as error:
                return error.reason or str(error)
    return ""


def _text(moment: object) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def signature_of(paths: Iterable[Path]) -> tuple[object, ...]:
    """Return what changes when one of these files does."""
    found: list[object] = []
    for path in paths:
        try:
            now = path.stat()
        except OSError as error:
            found.append(error.errno)
        else:
            found.append((now.st_ino, now.st_mtime_ns, now.st_size))
    return tuple(found)


class NodeTls:
    """The files that a running node uses, now; `take_up` looks at them again.

    New connections get the new certificates, those that are open go on. A new revocation list
    counts for open connections too: see `is_revoked`.
    """

    def __init__(self, config: ClusterConfig, node: str) -> None:
        """Load the files. Raises ConfigError."""
        self._config = config
        self._node = node
        self._now = load_credentials(config, node)
        self.problem = ""
        """Why newer files are not used, or ""."""

    @property
    def serving(self) -> ssl.SSLContext:
        """For a client's new connection."""
        return self._now.serving

    @property
    def dialing(self) -> ssl.SSLContext:
        """For a link to another node, whose id is the server's name."""
        return self._now.dialing

    @property
    def listening(self) -> ssl.SSLContext:
        """For a link from another node, which must show a certificate."""
        return self._now.listening

    @property
    def load_warnings(self) -> tuple[str, ...]:
        """What was doubtful about the files when they were loaded."""
        return self._now.warnings

    def take_up(self, config: ClusterConfig) -> bool:
        """Use the files as they are now, if they pass; return whether they do (see `problem`)."""
        try:
            self._now = load_credentials(config, self._node)
        except (OSError, ValueError) as error:  # ConfigError is one
            self.problem = str(error)
            return False
        self._config = config
        self.problem = ""
        return True

    def signature(self) -> tuple[object, ...]:
        """Return what changes when one of the files does."""
        tls = self._config.tls.for_node(self._node)
        names = (tls.ca, tls.certificate, tls.key, tls.client_ca, tls.crl)
        return signature_of(Path(name) for name in names if name)

    def is_revoked(self, certificate: bytes) -> bool:
        """Whether a certificate (DER) that was accepted before is on a list by now."""
        if not self._now.lists:
            return False
        try:
            shown = x509.load_der_x509_certificate(certificate)
        except ValueError:  # OpenSSL takes some that this library does not
            return False
        serial = shown.serial_number
        return any(
            each.issuer == shown.issuer
            and each.get_revoked_certificate_by_serial_number(serial) is not None
            for each in self._now.lists
        )

    # -- what operators are told

    @property
    def description(self) -> str:
        """What is in use, for the log."""
        own = self._now.own
        return f"certificate {own.serial} of {own.issuer}, until {_text(own.not_after)}"

    def warnings(self) -> tuple[str, ...]:
        """Return sentences for `status` and the log: what expires soon, what is not used."""
        now = utc_now()
        told = []
        for what, facts in (("certificate", self._now.own), ("authority", self._now.authority)):
            days = facts.days_left(now)
            if days < EXPIRY_WARNING_DAYS:
                when = f"expires in {days:.0f} days" if days >= 0 else "has expired"
                path = self._config.tls.for_node(self._node)
                file = path.certificate if what == "certificate" else path.ca
                step = f"renew {self._node}" if what == "certificate" else "rotate"
                told.append(
                    f"{self._node}: the {what} in {file} {when} ({_text(facts.not_after)}): "
                    f"replace it (onecopy certs {step})"
                )
        if self.problem:
            told.append(f"{self._node}: changed files of [tls] are not used: {self.problem}")
        return tuple(told)

    def numbers(self) -> dict[str, float]:
        """Return numbers for metrics."""
        return {
            "tls_certificate_expiry_timestamp_seconds": self._now.own.not_after.timestamp(),
            "tls_authority_expiry_timestamp_seconds": self._now.authority.not_after.timestamp(),
            "tls_files_rejected": float(bool(self.problem)),
        }
