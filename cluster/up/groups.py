"""`onecopy up --groups N`: a cluster for each group below one directory, which share what they can.

DATA/g1, DATA/g2, … are directories as a single cluster has, with one secret, one first token
(DATA/admin.token) and one authority (DATA/certs) for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from cluster.certificates.private_files import write_file
from cluster.client.aio import AsyncClient
from cluster.client.errors import ClientError
from cluster.config.access_section import AccessSection
from cluster.config.groups_section import GroupsSection
from cluster.config.model import ClusterConfig
from cluster.groups.group_map import Group, GroupMap, SlotRange
from cluster.groups.partition import SLOTS
from cluster.services.access_guard import draw_token, hash_line
from cluster.up.directory import (
    CONFIG_NAME,
    DEFAULT_PORT,
    ETCD_PORT,
    PEER_PORT_OFFSET,
    TOKEN_NAME,
    GroupShare,
    UpError,
    Wanted,
    check_ours,
    draw_secret,
    kept_groups,
    make_certificates,
    prepare_config,
    tls_of,
)

GROUPS_MAX = 16
PUBLISH_TIMEOUT_MS = 2000


def prepare_groups(data: Path, groups: int, wanted: Wanted) -> tuple[list[ClusterConfig], bool]:
    """Load the groups kept in `data`, or write new ones, as `prepare_config` does for one cluster.

    Return the configurations, that of the first group first, and whether they are new. Raises as
    `prepare_config`.
    """
    check_ours(data)
    kept = kept_groups(data)
    if (data / CONFIG_NAME).exists():
        raise UpError(f"{data} holds a cluster without groups; choose another --data for --groups")
    if kept not in {0, groups}:
        raise UpError(
            f"the deployment in {data} has --groups {kept}, not {groups}; groups cannot be added "
            "or removed: omit the option to resume it, or choose another --data"
        )
    services = {
        name: msgspec.structs.replace(item, path=f"../{item.path}" if item.path else "")
        for name, item in wanted["services"].items()
    }
    if kept:
        return _kept_configs(data, groups, {**wanted, "services": services}), False
    return _new_configs(data, groups, {**wanted, "services": services}), True


def _kept_configs(data: Path, groups: int, wanted: Wanted) -> list[ClusterConfig]:
    configs: list[ClusterConfig] = []
    for number in range(groups):
        folder = data / f"g{number + 1}"
        if not (folder / CONFIG_NAME).exists():
            raise UpError(f"there is no {folder / CONFIG_NAME}: put that file back")
        config, _ = prepare_config(folder, **wanted)
        configs.append(config)
        wanted = {**wanted, "port": None}  # the option is for the first one
    return configs


def _new_configs(data: Path, groups: int, wanted: Wanted) -> list[ClusterConfig]:
    if left := [node for node in data.glob("g*/n*") if any(node.glob("*"))]:
        raise UpError(
            f"{left[0]} holds data, and there is no {data}/g1/{CONFIG_NAME}: put that file back, "
            "or choose another --data"
        )
    nodes, port = wanted["nodes"] or 3, wanted["port"] or DEFAULT_PORT
    size = nodes + (wanted["witnesses"] or 0)
    if groups * size > PEER_PORT_OFFSET:
        raise UpError(f"{groups * size} nodes are too many: choose fewer --groups or --nodes")
    token = draw_token() if wanted["with_access"] else None
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        if wanted["tls"]:
            make_certificates(data / "certs", [f"n{number + 1}" for number in range(size)])
        if token is not None:
            write_file(data / TOKEN_NAME, f"{token.text}\n".encode())
    except OSError as error:
        raise UpError(f"{error.filename or data}: {error.strerror}") from None
    access = None if token is None else AccessSection(admin_token_hash=hash_line(token))
    scheme, secret = "https" if wanted["tls"] else "http", draw_secret()
    keepers = [f"{scheme}://127.0.0.1:{port + node}" for node in range(nodes)]
    configs: list[ClusterConfig] = []
    for number in reversed(range(groups)):  # with the first one's file the deployment is there
        section = GroupsSection(
            id=f"g{number + 1}",
            slots=(slots_of(number, groups),),
            first=tuple(keepers) if number else (),
        )
        folder = data / section.id
        (folder / CONFIG_NAME).unlink(missing_ok=True)  # of a try that was interrupted
        own: Wanted = {**wanted, "port": port + number * size}
        share = GroupShare(section, secret, tls_of("../certs") if wanted["tls"] else None, access)
        try:
            config, _ = prepare_config(
                folder, **own, share=share, etcd_port=ETCD_PORT + number * size
            )
        except UpError:  # nothing has run yet: another --port must find no trace of this one
            for other in configs:
                other.path.unlink()
            (data / TOKEN_NAME).unlink(missing_ok=True)
            raise
        configs.insert(0, config)
    return configs


def slots_of(number: int, groups: int) -> SlotRange:
    """Return the slots of a group, counted from 0: as many for each."""
    return number * SLOTS // groups, (number + 1) * SLOTS // groups - 1


def map_of(configs: Sequence[ClusterConfig], version: int) -> GroupMap:
    """Return the map of groups with these configurations."""
    owned = [
        Group(section.id, section.slots, tuple(map(config.url, config.nodes)))
        for config in configs
        if (section := config.groups) is not None
    ]
    return GroupMap(version, tuple(owned))


async def publish_groups(configs: Sequence[ClusterConfig], token: str) -> bool:
    """Publish where the groups are, unless that is known; False: nobody can take it now."""
    first = configs[0]
    try:
        async with AsyncClient(
            map(first.url, first.replicas),
            timeout_ms=PUBLISH_TIMEOUT_MS,
            token=token,
            cacert=first.tls.ca,
        ) as client:
            held = (await client.groups()).map
            wanted = map_of(configs, 1 if held is None else held.version + 1)
            if held is None or held.groups != wanted.groups:
                await client.publish_groups(wanted)
            return True
    except ClientError:
        return False
