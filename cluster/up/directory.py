"""Where `onecopy up` keeps a cluster: its configuration, written once, resumed ever after."""

from __future__ import annotations

import errno
import os
import secrets
import socket
import stat
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypedDict

import msgspec

from cluster.certificates.authority import Authority
from cluster.certificates.hosts import LOOPBACK_HOSTS
from cluster.certificates.private_files import write_file
from cluster.config.access_section import AccessSection
from cluster.config.checks import LISTENING_CHANNELS
from cluster.config.file import load_config, render_config, render_services
from cluster.config.groups_section import GroupsSection
from cluster.config.model import (
    ClusterConfig,
    NodeConfig,
    ServiceConfig,
    split_address,
)
from cluster.config.tls_section import TlsSection
from cluster.services.access_guard import draw_token, hash_line

CONFIG_NAME = "cluster.toml"
TOKEN_NAME = "admin.token"  # noqa: S105 -- the name of a file
DEFAULT_PORT = 8101
PEER_PORT_OFFSET = 100
RAFT_PORT_OFFSET = 200
ETCD_PORT = 2379
"""The first port for clients of etcd, as etcd has it."""
REPLICAS_MAX = 9


def tls_of(folder: str) -> TlsSection:
    """Return the section that names the files of an authority, in a folder."""
    return TlsSection(
        ca=f"{folder}/ca.crt",
        certificate=f"{folder}/{{node}}.crt",
        key=f"{folder}/{{node}}.key",
        client_ca=f"{folder}/ca.crt",
        crl=f"{folder}/ca.crl",
    )


class Wanted(TypedDict):
    """What `prepare_config` is asked for."""

    nodes: int | None
    witnesses: int | None
    port: int | None
    services: Mapping[str, ServiceConfig]
    with_access: bool
    tls: bool
    with_etcd: bool


class GroupShare(msgspec.Struct, frozen=True):
    """What a new cluster's file says beside its nodes; paths are relative to its directory.

    `section`: its group's, if there are several.
    """

    section: GroupsSection | None
    secret: str
    tls: TlsSection | None = None
    access: AccessSection | None = None


class UpError(Exception):
    """`onecopy up` cannot start. `str(error)` says what to do."""


def prepare_config(
    data: Path,
    *,
    nodes: int | None,
    witnesses: int | None,
    port: int | None,
    services: Mapping[str, ServiceConfig] | None = None,
    with_access: bool = False,
    tls: bool = False,
    with_etcd: bool = False,
    share: GroupShare | None = None,
    etcd_port: int = ETCD_PORT,
) -> tuple[ClusterConfig, bool]:
    """Load the cluster kept in `data`, or write a new one; return it, and whether it is new.

    None is "as it is", or the default for a new one (three replicas from port 8101). `services`
    (paths relative to `data`) are added to what a kept cluster has. Raises UpError where it has
    another shape, or a service by another class; ConfigError where its file is broken. `tls`: a
    new one gets an authority and certificates, in `data`/certs. `with_access`: a new one has access
    control, and the first administrator's token in TOKEN_NAME. `with_etcd`: it serves etcd's
    clients, from `etcd_port` on. `share`: it is one of several groups, whose certificates and token
    are made elsewhere.
    """
    path = data / CONFIG_NAME
    check_ours(data)
    if n_groups := kept_groups(data):
        raise UpError(f"{data} holds {n_groups} groups: omit --groups to resume them")
    if path.exists():
        config = load_config(path)
        _check_shape(config, nodes=nodes, witnesses=witnesses, port=port)
        if tls and not config.tls.is_on:
            raise UpError(
                f"the cluster in {data} has no TLS; to add it, stop the cluster, make certificates "
                "with `onecopy certs` and name them in [tls] of its configuration file"
            )
        if with_etcd and not all(item.etcd for item in config.nodes.values()):
            raise UpError(
                f"the cluster in {data} does not serve etcd's clients: add an address such as "
                f'etcd = "127.0.0.1:{ETCD_PORT}" to each node in {path}; or choose another --data'
            )
        if with_access and config.access is None:
            raise UpError(
                f"the cluster in {data} has no access control: run `onecopy token init FILE`, and "
                f"add the lines that it prints to {path}; or choose another --data"
            )
        return _add_services(config, services or {}), False
    first_etcd = etcd_port if with_etcd else 0
    sections = _new_nodes(nodes or 3, witnesses or 0, port or DEFAULT_PORT, first_etcd)
    if taken := [node for node in sections if any((data / node).glob("*"))]:
        raise UpError(
            f"{data} holds {', '.join(taken)} and no {CONFIG_NAME}: this is the data of another "
            "cluster. Put that file back, or choose another --data"
        )
    token = draw_token() if with_access and share is None else None
    access = None if token is None else AccessSection(admin_token_hash=hash_line(token))
    said = share or GroupShare(None, draw_secret(), tls_of("certs") if tls else None, access)
    text = render_config(
        "local", said.secret, sections, services, said.tls, said.access, said.section
    )
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        if tls and share is None:
            make_certificates(data / "certs", sections)
        if token is not None:
            write_file(data / TOKEN_NAME, f"{token.text}\n".encode())
        write_file(path, text.encode())
    except OSError as error:
        raise _unusable(data, error) from None
    config = load_config(path)
    try:
        check_ports(config)
    except UpError:
        if share is None:
            (data / TOKEN_NAME).unlink(missing_ok=True)
        path.unlink()  # nothing has run yet: another --port must find no trace of this one
        raise
    return config, True


def kept_groups(data: Path) -> int:
    """Return how many groups a directory has; 0: it is no deployment of several."""
    if not (data / "g1" / CONFIG_NAME).exists():
        return 0
    return sum(1 for _ in data.glob(f"g*/{CONFIG_NAME}"))


def check_ours(data: Path) -> None:
    """Refuse a directory that another user may have prepared, or that leads out of itself.

    What stands there is run: addresses, the secret, and where data and logs are written. So it must
    be this user's own, unwritable to others, and without links to elsewhere. Raises UpError.
    """
    if not data.exists() and not data.is_symlink():
        return
    try:
        root = data.resolve(strict=True)
        places = [data, root]
        for folder, folders, files in os.walk(root, onerror=_raise):
            places += [Path(folder, name) for name in (*folders, *files)]
        for place in places:
            _check_place(place, root)
    except OSError as error:
        raise _unusable(data, error) from None


def _check_place(place: Path, root: Path) -> None:
    found = place.lstat()
    if found.st_uid != os.geteuid():
        raise UpError(
            f"{place} belongs to another user (id {found.st_uid}), who could change what runs "
            "here; choose another --data, or take ownership: chown -R"
        )
    if stat.S_ISLNK(found.st_mode):
        if place.resolve() != root and not place.resolve().is_relative_to(root):
            raise UpError(
                f"{place} is a symbolic link to outside of {root}; replace it by its target, or "
                f"set the node's `data` in {CONFIG_NAME} to that directory"
            )
    elif found.st_mode & 0o022:
        raise UpError(f"{place} can be changed by other users; run: chmod go-w {place}")


def _unusable(data: Path, error: OSError) -> UpError:
    advice = (
        "make it readable and writable for this user"
        if isinstance(error, PermissionError)
        else "choose another --data for a new cluster"
    )
    return UpError(f"{error.filename or data}: {error.strerror}; {advice}")


def _raise(error: OSError) -> None:
    raise error


def check_ports(config: ClusterConfig) -> None:
    """Raise UpError if one of the cluster's addresses is in use."""
    for node, item in config.nodes.items():
        for channel in LISTENING_CHANNELS:
            address: str = getattr(item, channel)
            if not address:
                continue
            try:
                _bind(address)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    problem = "is in use (another onecopy up?)"
                else:
                    problem = f"cannot be used: {error.strerror}"
                raise UpError(
                    f"{address} ({channel} address of {node}) {problem}; stop the process that "
                    "uses it, or choose another address: with --port for a new cluster, in "
                    f"nodes.{node}.{channel} of {config.path} for an existing one"
                ) from None


def _bind(address: str) -> None:
    host, port = split_address(address)
    family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        probe.bind(where)
        probe.listen()


def make_certificates(directory: Path, nodes: Iterable[str]) -> None:
    """Make what is missing: an earlier run may have been interrupted in the middle."""
    authority = Authority(directory)
    if not (directory / "ca.key").exists():
        authority.create()
    has = authority.names()
    for node in nodes:
        if node not in has:
            authority.issue_node(node, LOOPBACK_HOSTS)


def _add_services(config: ClusterConfig, services: Mapping[str, ServiceConfig]) -> ClusterConfig:
    """Add those services to a kept cluster's file that are not in it."""
    path = config.path
    added = {name: item for name, item in services.items() if name not in config.services}
    for name in services.keys() - added.keys():
        kept, asked = config.services[name], services[name]
        folder = str((path.parent / asked.path).resolve()) if asked.path else ""
        if (kept.spec, kept.path) != (asked.spec, folder):
            where = f" in {kept.path}" if kept.path else ""
            raise UpError(
                f"the cluster in {path.parent} has --service {name}={kept.spec}{where}; omit the "
                f"option to resume it, or change [services.{name}] in {path}"
            )
    if not added:
        return config
    text = path.read_text(encoding="utf-8-sig") + render_services(added)
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        problem = f"[services.{next(iter(added))}] cannot be added to {path} ({error})"
        raise UpError(f"{problem}; add it by hand and omit --service") from None
    write_file(path, text.encode())
    return load_config(path)


def draw_secret() -> str:
    """Return a new cluster's secret."""
    return secrets.token_hex(32)


def _new_nodes(nodes: int, witnesses: int, port: int, etcd_port: int = 0) -> dict[str, NodeConfig]:
    last = port + nodes + witnesses - 1
    if nodes + witnesses > PEER_PORT_OFFSET or last + RAFT_PORT_OFFSET > 65535:
        raise UpError(
            f"ports {port} to {last + RAFT_PORT_OFFSET} are needed; choose a lower --port"
        )
    sections: dict[str, NodeConfig] = {}
    for number in range(nodes + witnesses):
        node = f"n{number + 1}"
        sections[node] = NodeConfig(
            role="replica" if number < nodes else "witness",
            client=f"127.0.0.1:{port + number}",
            peer=f"127.0.0.1:{port + number + PEER_PORT_OFFSET}",
            raft=f"127.0.0.1:{port + number + RAFT_PORT_OFFSET}",
            etcd=f"127.0.0.1:{etcd_port + number}" if etcd_port else "",
            data=node,
        )
    return sections


def _check_shape(
    config: ClusterConfig, *, nodes: int | None, witnesses: int | None, port: int | None
) -> None:
    first = next(iter(config.nodes.values())).client
    wanted = (
        ("--nodes", nodes, len(config.replicas)),
        ("--witness", witnesses, len(config.witnesses)),
        ("--port", port, split_address(first)[1]),
    )
    for option, asked, kept in wanted:
        if asked is not None and asked != kept:
            raise UpError(
                f"the cluster in {config.path.parent} has {option} {kept}, not {asked}; omit the "
                "option to resume it, or choose another --data for a new cluster"
            )
