"""`onecopy restore`: the first data directory of a new cluster, from a backup or an archive."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

import click
import msgspec

from cluster.archive.restoring import restore_store
from cluster.cli.archive import Point, cluster_option, errors_told, is_url, open_point, progress_of
from cluster.cli.backup_file import open_backup
from cluster.cli.common import report_disk_errors
from cluster.cli.config_option import check_configured, check_same_group, config_option
from cluster.config.file import load_config
from cluster.config.groups_section import group_text
from cluster.config.model import ClusterConfig, ConfigError
from cluster.exit_codes import EXIT_REFUSED
from cluster.terminal import say, show, show_json
from datapath.errors import DataDirectoryError
from datapath.storage.backup import load_backup
from datapath.storage.backup_format import BackupEnd
from datapath.storage.founding import Founded, Founding

EMPTY = "The data directory is as empty as it was."


class Restored(NamedTuple):
    """What was made: the new cluster, its items and digest, and what it was made of."""

    founded: Founded
    end: BackupEnd
    source: str


@click.command()
@click.argument("source", metavar="FILE|URL")
@click.option(
    "--to-revision", type=click.IntRange(1), help="The revision to go back to; of an archive."
)
@click.option(
    "--to-time",
    help="The time to go back to, such as 2026-11-28T09:30:00Z; of an archive.",
)
@cluster_option
@config_option("Configuration file of the new cluster.")
@click.option("--node", required=True, help="Id of the replica whose data directory is made.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def restore(
    source: str,
    to_revision: int | None,
    to_time: str | None,
    cluster_id: str,
    path: Path,
    node: str,
    as_json: bool,
) -> None:
    """Make a new cluster of the backup FILE (- for standard input), offline.

    Or of the archive at URL (file://, s3:// and so on, as in [archive]): of its newest revision, or
    of the one named by --to-revision or --to-time.

    The data directory of NODE must be empty. Start NODE then, and the other nodes with empty
    directories: they join it. Keys keep their revisions; new ones go on above all that the former
    cluster may have given out.
    """
    os.umask(0o077)  # what is stored is for its user alone
    started = time.monotonic()
    if (to_revision, to_time, cluster_id) != (None, None, "") and not is_url(source):
        raise click.UsageError("--to-revision, --to-time and --cluster-id are for an archive's URL")
    if to_revision is not None and to_time is not None:
        raise click.UsageError("give --to-revision or --to-time, not both")
    with report_disk_errors(
        if_full=f"Free space on the disk. {EMPTY}",
        else_=EMPTY,
        refusals=(ConfigError, DataDirectoryError),
        refused_code=EXIT_REFUSED,
    ):
        config = load_config(path)
        check_configured(config, node)
        _check_replica(config, node)
        if is_url(source):
            point = open_point(source, cluster_id, to_revision, to_time)
            made = _from_archive(config, node, point)
        else:
            made = _from_backup(config, node, Path(source))
    _report(config, node, made, time.monotonic() - started, as_json=as_json)


def _from_backup(config: ClusterConfig, node: str, file: Path) -> Restored:
    map_size_bytes = config.limits.store_map_size_bytes
    with open_backup(file, "restored") as (reader, view), _founding(config, node) as founding:
        check_same_group(config, reader.name, reader.header.group)
        end = load_backup(
            reader,
            founding.store,
            founding.cluster_id,
            map_size_bytes=map_size_bytes,
            on_chunk=lambda items: view.update(items, reader.position),
        )
        header = reader.header
        age_s = time.time() - header.created_s
        founded = founding.finish(header.revision, header.epoch, map_size_bytes, age_s=age_s)
    return Restored(founded, end, header.source)


def _from_archive(config: ClusterConfig, node: str, point: Point) -> Restored:
    plan, map_size_bytes = point.plan, config.limits.store_map_size_bytes
    with (
        _founding(config, node) as founding,
        errors_told(),
        progress_of(plan.base.revision, plan.until) as view,
    ):
        made = restore_store(
            point.archive,
            plan,
            founding.store,
            founding.cluster_id,
            map_size_bytes=map_size_bytes,
            check=lambda header: check_same_group(config, "the archive", header.group),
            progress=view,
        )
        age_s = time.time() - point.time_ms / 1000
        founded = founding.finish(made.revision, made.epoch, map_size_bytes, age_s=age_s)
    return Restored(founded, BackupEnd(items=made.items, digest=made.digest), made.source)


def _founding(config: ClusterConfig, node: str) -> Founding:
    return Founding(config.data_dir(node), node, group_text(config.groups))


def _check_replica(config: ClusterConfig, node: str) -> None:
    if config.nodes[node].role != "replica":
        text = f"{node} is a witness, which holds no data: name one of {', '.join(config.replicas)}"
        raise ConfigError(config.path, f"nodes.{node}.role", text)


def _report(
    config: ClusterConfig, node: str, made: Restored, seconds: float, *, as_json: bool
) -> None:
    founded, end = made.founded, made.end
    directory = str(config.data_dir(node))
    if as_json:
        fields = msgspec.to_builtins(end) | founded._asdict()
        show_json(fields | {"directory": directory, "seconds": round(seconds, 3)})
        return
    show(
        f"restored revision {founded.kept_index} of {made.source} "
        f"({end.items:,} items, digest {end.digest}) to {directory} in {seconds:.1f} s"
    )
    say(
        f"The new cluster has the id {founded.cluster_id}. Its revisions go on at "
        f"{founded.next_index}: {founded.next_index - founded.kept_index - 1:,} are left out, so "
        "that none is given out twice."
    )
    say(
        f"Start {node}, then the other nodes with empty data directories: they join it. Nodes of "
        "the former cluster are refused."
    )
