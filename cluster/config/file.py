"""The cluster's one configuration file: TOML in, frozen structs out, every error explained.

`load_config` is strict. Every `ConfigError` names the file, the field (`nodes.n1.client`) and what
to write instead. What is legal but doubtful is kept as a sentence in `ClusterConfig.warnings`.
"""

from __future__ import annotations

import codecs
import difflib
import re
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from cluster.config.access_section import AccessSection
from cluster.config.api_section import ApiSection
from cluster.config.archive_section import ArchiveSection
from cluster.config.checks import check_config
from cluster.config.groups_section import GroupsSection
from cluster.config.model import (
    ClusterConfig,
    ClusterSection,
    ConfigError,
    LimitsSection,
    NodeConfig,
    Route,
    Secret,
    ServiceConfig,
    TimingSection,
)
from cluster.config.tls_section import TlsSection
from datapath.service import SERVICE_NAME_PATTERN

SECRET_MIN_BYTES = 16
SECRETS_MAX = 2
NAME_PATTERN = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
ROLE_PATTERN = "[a-z][a-z0-9_-]{0,30}"

StructT = TypeVar("StructT", bound=msgspec.Struct)


def load_config(path: Path | str) -> ClusterConfig:
    """Read and check the file. Raises ConfigError; touches nothing but the file and the secret."""
    path = Path(path).absolute()
    tree = _read_toml(path)
    sections = (
        "cluster", "nodes", "routes", "timing", "limits", "api", "tls", "access", "archive",
        "services", "groups",
    )  # fmt: skip
    _refuse_unknown(path, "", tree, sections)
    cluster = _convert(path, "cluster", tree.get("cluster", {}), ClusterSection)
    nodes = {
        node: _convert(path, f"nodes.{node}", item, NodeConfig)
        for node, item in _table(path, "nodes", tree).items()
    }
    routes: dict[str, dict[str, Route]] = {
        source: {
            target: _convert(path, f"routes.{source}.{target}", item, Route)
            for target, item in _table(path, f"routes.{source}", targets, "").items()
        }
        for source, targets in _table(path, "routes", tree).items()
    }
    warnings: list[str] = []
    source, found = _read_secrets(path, cluster, warnings)
    config = ClusterConfig(
        path=path,
        name=cluster.name,
        secrets=found,
        secret_source=source,
        secret_field="cluster.secret_file" if cluster.secret_file else "cluster.secret",
        nodes={
            node: msgspec.structs.replace(item, data=_absolute(path, f"nodes.{node}", item.data))
            for node, item in nodes.items()
        },
        routes=routes,
        timing=_convert(path, "timing", tree.get("timing", {}), TimingSection),
        limits=_convert(path, "limits", tree.get("limits", {}), LimitsSection),
        api=_convert(path, "api", tree.get("api", {}), ApiSection),
        access=_read_access(path, tree),
        archive=(
            _convert(path, "archive", tree["archive"], ArchiveSection)
            if "archive" in tree
            else None
        ),
        groups=(
            _convert(path, "groups", tree["groups"], GroupsSection) if "groups" in tree else None
        ),
        tls=_read_tls(path, tree),
        services=_read_services(path, tree),
        reads=cluster.reads,
    )
    warnings += check_config(config)
    return msgspec.structs.replace(config, warnings=tuple(warnings))


def _read_access(path: Path, tree: Any) -> AccessSection | None:
    if "access" not in tree:
        return None
    access = _convert(path, "access", tree["access"], AccessSection)
    if not re.fullmatch("[0-9a-f]{16}:[0-9a-f]{64}", access.admin_token_hash):
        problem = (
            "must be the id and the SHA-256 of a token, never the token itself; make one with: "
            "onecopy token init admin.token"
        )
        raise ConfigError(path, "access.admin_token_hash", problem)
    if access.anonymous and not re.fullmatch(ROLE_PATTERN, access.anonymous):
        problem = "must be the name of a role: 1 to 31 of a-z, 0-9, '_' and '-'"
        raise ConfigError(path, "access.anonymous", problem)
    if access.audit_file:
        file = str((path.parent / access.audit_file).resolve())
        access = msgspec.structs.replace(access, audit_file=file)
    return access


def _read_tls(path: Path, tree: Any) -> TlsSection:
    """Return the section, its paths absolute; the files are looked at when a node starts."""
    tls = _convert(path, "tls", tree.get("tls", {}), TlsSection)
    files = {
        field: str(path.parent / name)
        for field in ("ca", "certificate", "key", "client_ca", "crl")
        if (name := getattr(tls, field))
    }
    return msgspec.structs.replace(tls, **files)


def _read_services(path: Path, tree: Any) -> dict[str, ServiceConfig]:
    services = {}
    for name, item in _table(path, "services", tree).items():
        section = f"services.{name}"
        if not re.fullmatch(SERVICE_NAME_PATTERN, name):
            problem = "a name is 1 to 31 of a-z, 0-9, '_' and '-', beginning with a letter"
            raise ConfigError(path, section, problem)
        service = _convert(path, section, item, ServiceConfig)
        if service.path:
            folder = str((path.parent / service.path).resolve())
            service = msgspec.structs.replace(service, path=folder)
        services[name] = service
    return services


def render_config(
    name: str,
    secret: str,
    nodes: Mapping[str, NodeConfig],
    services: Mapping[str, ServiceConfig] | None = None,
    tls: TlsSection | None = None,
    access: AccessSection | None = None,
    groups: GroupsSection | None = None,
) -> str:
    """Return the text of a configuration file, timing and limits at their defaults."""
    lines = ["# Written by onecopy up. Every field: docs/configuration.md.", "[cluster]"]
    lines += [f"name = {_literal(name)}", f"secret = {_literal(secret)}"]
    for node, item in nodes.items():
        lines += ["", f"[nodes.{node}]"]
        for field, value in msgspec.structs.asdict(item).items():
            if value not in {None, ""}:
                lines.append(f"{field} = {_literal(value)}")
    if tls is not None:
        lines += ["", "[tls]"]
        fields = msgspec.structs.asdict(tls).items()
        lines += [f"{field} = {_literal(value)}" for field, value in fields if value]
    if groups is not None:
        lines += ["", "[groups]"]
        fields = msgspec.structs.asdict(groups).items()
        lines += [f"{field} = {_literal(value)}" for field, value in fields if value]
    if access is not None:
        lines += ["", "[access]", f"admin_token_hash = {_literal(access.admin_token_hash)}"]
    return "\n".join(lines) + "\n" + render_services(services or {})


def render_services(services: Mapping[str, ServiceConfig]) -> str:
    """Return the sections of services, bounds and rights at their defaults."""
    lines: list[str] = []
    for name, item in services.items():
        lines += ["", f"[services.{name}]", f"class = {_literal(item.spec)}"]
        if item.path:
            lines.append(f"path = {_literal(item.path)}")
    return "".join(f"{line}\n" for line in lines)


def _literal(value: object) -> str:
    # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
    return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")


_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
        if data.startswith(_UTF_16):
            raise ConfigError(path, "", "is UTF-16; save it as UTF-8")
        return tomllib.loads(data.decode("utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(path, "", "no such file; name the file with --config") from None
    except OSError as error:
        raise ConfigError(path, "", f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(path, "", f"is not UTF-8 (byte {error.start})") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(path, "", f"is not TOML: {error}") from error


def _table(path: Path, field: str, tree: Any, key: str | None = None) -> dict[str, Any]:
    """Return the table `field` names: `tree[field]`, or `tree` itself where `key` is ""."""
    value = tree if key == "" else tree.get(field, {})
    if not isinstance(value, dict):
        raise ConfigError(path, field, f"must be a table, [{field}.…], not {_kind(value)}")
    return value


def _kind(value: object) -> str:
    names = {str: "a string", bool: "a boolean", int: "a number", float: "a number with a fraction"}
    return names.get(type(value), "a list" if isinstance(value, list) else "a table")


def _refuse_unknown(
    path: Path, section: str, item: Mapping[str, Any], known: tuple[str, ...]
) -> None:
    for field in item:
        if field in known:
            continue
        close = difflib.get_close_matches(field, known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"known are: {', '.join(known)}"
        name = f"{section}.{field}" if section else field
        raise ConfigError(path, name, f"unknown field; {hint}")


def _convert(path: Path, section: str, item: Any, kind: type[StructT]) -> StructT:
    if not isinstance(item, dict):
        raise ConfigError(path, section, f"must be a table, [{section}], not {_kind(item)}")
    _refuse_unknown(path, section, item, kind.__struct_encode_fields__)
    for field in msgspec.structs.fields(kind):
        name = field.encode_name
        if field.required and name not in item:
            raise ConfigError(path, f"{section}.{name}", f"is missing; {_example(name)}")
    try:
        return msgspec.convert(item, kind)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$")
        raise ConfigError(path, section + place.rstrip("`"), _plain(problem)) from error


def _plain(problem: str) -> str:
    """Say a msgspec complaint ("Expected `int` >= 1, got `str`") as an instruction."""
    problem = problem.replace(" | null", "").replace("`", "")
    for kind, words in {"int": "a whole number", "str": "a string", "object": "a table"}.items():
        problem = re.sub(rf"\b{kind}\b", words, problem)
    problem = problem.replace("Invalid enum value", "unknown value")
    return re.sub(r"^Expected ", "must be ", problem)


def _example(field: str) -> str:
    examples = {
        "name": 'add [cluster] name = "demo"',
        "admin_token_hash": "make one with: onecopy token init admin.token",
        "client": 'add client = "127.0.0.1:8101"',
        "peer": 'add peer = "127.0.0.1:8201"',
        "raft": 'add raft = "127.0.0.1:8301"',
        "class": 'add class = "myshop.service:Shop"',
        "id": 'add id = "g1"',
        "slots": "add slots = [[0, 2047]]",
        "url": 'add url = "file:///var/backups/onecopy"',
        "data": 'add data = "data/n1" (a witness needs one too)',
    }
    return examples[field]


def _absolute(path: Path, section: str, data: str) -> str:
    if not data or "\0" in data:
        raise ConfigError(path, f"{section}.data", 'must name a directory, say data = "data/n1"')
    return str((path.parent / data).resolve())


def _read_secrets(
    path: Path, cluster: ClusterSection, warnings: list[str]
) -> tuple[Path, tuple[Secret, ...]]:
    """Return the file that holds the secrets, and them."""
    if not re.fullmatch(NAME_PATTERN, cluster.name):
        problem = f"{cluster.name!r} must be 1 to 64 letters, digits, '.', '_', '-'"
        raise ConfigError(path, "cluster.name", problem)
    if cluster.secret and cluster.secret_file:
        raise ConfigError(path, "cluster.secret_file", "give secret or secret_file, not both")
    if cluster.secret_file:
        field, source = "cluster.secret_file", path.parent / cluster.secret_file
        try:
            text = source.read_bytes().removeprefix(codecs.BOM_UTF8)
        except OSError as error:
            problem = f"{source} cannot be read: {error.strerror}"
            raise ConfigError(path, field, problem) from error
    elif cluster.secret:
        field, source, text = "cluster.secret", path, cluster.secret.encode()
    else:
        return path, ()
    secrets = tuple(Secret(line.strip()) for line in text.splitlines() if line.strip())
    _check_lengths(path, field, secrets)
    if source.stat().st_mode & stat.S_IROTH:
        warnings.append(
            f"{source} holds the secret and is readable by everyone: chmod 600 {source}"
        )
    return source, secrets


def _check_lengths(path: Path, field: str, secrets: tuple[Secret, ...]) -> None:
    if len(secrets) > SECRETS_MAX:
        problem = f"holds {len(secrets)} lines; give one secret, or two while it is being changed"
        raise ConfigError(path, field, problem)
    shortest = min(map(len, secrets), default=0)
    if shortest < SECRET_MIN_BYTES:
        problem = (
            f"the secret is {shortest} bytes long and must be at least {SECRET_MIN_BYTES}; "
            "make one with: openssl rand -hex 32"
        )
        raise ConfigError(path, field, problem)
