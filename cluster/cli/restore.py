"""`onecopy restore`: the first data directory of a new cluster, from a backup."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click
import msgspec

from cluster.cli.backup import open_backup
from cluster.cli.common import fail
from cluster.cli.serve import check_node
from cluster.config.file import load_config
from cluster.config.model import ClusterConfig, ConfigError
from cluster.exit_codes import EXIT_NOT_APPLIED, EXIT_REFUSED, EXIT_STORAGE_FULL
from cluster.terminal import say, show, show_json
from datapath.errors import DataDirectoryError, DiskFullError, StorageError
from datapath.storage.backup import load_backup
from datapath.storage.backup_format import BackupEnd, BackupReader
from datapath.storage.founding import Founded, Founding

EMPTY = "The data directory is as empty as it was."


@click.command()
@click.argument(
    "file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)
)
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    default="cluster.toml",
    show_default=True,
    help="Configuration file of the new cluster.",
)
@click.option("--node", required=True, help="Id of the replica whose data directory is made.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def restore(file: Path, path: Path, node: str, as_json: bool) -> None:
    """Make a new cluster of the backup FILE (- for standard input), offline.

    The data directory of NODE must be empty. Start NODE then, and the other nodes with empty
    directories: they join it. Keys keep their revisions; new ones go on above all that the former
    cluster may have given out.
    """
    os.umask(0o077)  # what is stored is for its user alone
    started = time.monotonic()
    try:
        config = load_config(path)
        check_node(config, node)
        _check_replica(config, node)
    except ConfigError as error:
        fail(str(error), "Nothing was changed.", EXIT_REFUSED)
    try:
        with open_backup(file, "restored") as (reader, view):
            founding = Founding(config.data_dir(node), node)
            try:
                end = load_backup(
                    reader,
                    founding.store,
                    founding.cluster_id,
                    map_size_bytes=config.limits.store_map_size_bytes,
                    on_chunk=lambda items: view.update(items, reader.position),
                )
                header = reader.header
                founded = founding.finish(
                    header.revision,
                    header.epoch,
                    config.limits.store_map_size_bytes,
                    age_s=time.time() - header.created_s,
                )
            finally:
                founding.abort()
    except DataDirectoryError as error:
        fail(str(error), "", EXIT_REFUSED)
    except DiskFullError as error:
        fail(str(error), f"Free space on the disk. {EMPTY}", EXIT_STORAGE_FULL)
    except (StorageError, OSError) as error:
        fail(str(error), EMPTY, EXIT_NOT_APPLIED)
    _report(config, node, reader, founded, end, time.monotonic() - started, as_json=as_json)


def _check_replica(config: ClusterConfig, node: str) -> None:
    if config.nodes[node].role != "replica":
        text = f"{node} is a witness, which holds no data: name one of {', '.join(config.replicas)}"
        raise ConfigError(config.path, f"nodes.{node}.role", text)


def _report(
    config: ClusterConfig,
    node: str,
    reader: BackupReader,
    founded: Founded,
    end: BackupEnd,
    seconds: float,
    *,
    as_json: bool,
) -> None:
    directory = str(config.data_dir(node))
    if as_json:
        fields = msgspec.to_builtins(end) | founded._asdict()
        show_json(fields | {"directory": directory, "seconds": round(seconds, 3)})
        return
    show(
        f"restored revision {founded.kept_index} of cluster {reader.header.cluster} "
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
