"""`onecopy recover`: a new cluster of what is left when a majority of the nodes is lost."""

from __future__ import annotations

from pathlib import Path

import click

from cluster.bulk.progress import ProgressView
from cluster.cli.common import UNCHANGED, report_disk_errors
from cluster.cli.config_option import check_same_group, config_option
from cluster.config.file import load_config
from cluster.config.model import ClusterConfig, ConfigError
from cluster.recovery.examination import Examination, RecoveryError, examine
from cluster.recovery.making import Made, make
from cluster.recovery.report import age_s, plan, report
from cluster.terminal import printable, show
from datapath.storage.founding import check_empty


@click.command()
@click.argument(
    "directories",
    nargs=-1,
    required=True,
    metavar="DIRECTORY…",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)
@config_option("Configuration file of the new cluster; read with --node.")
@click.option(
    "--node", help="Replica of that file that begins the new cluster; its `data` must be empty."
)
@click.option("--yes", is_flag=True, help="Make the new cluster. Without it, nothing is changed.")
def recover(directories: tuple[Path, ...], path: Path, node: str | None, yes: bool) -> None:
    """Make a new cluster of the data that is left, when a majority of the nodes is lost for good.

    DIRECTORY… are the data directories of all nodes that are left, witnesses included; no process
    may use them. Each is read and checked, and none is changed: the data of the one that goes
    furthest is copied. Nodes of the old cluster cannot take part in the new one.
    """
    if yes and node is None:
        raise click.UsageError("--yes needs --node, the replica that begins the new cluster")
    with report_disk_errors(
        if_full=f"Free space there, and run it again. {UNCHANGED}",
        else_=UNCHANGED,
        refusals=(RecoveryError, ConfigError),
    ):
        target = None if node is None else _target(path, node, directories)
        with examine(directories) as found:
            if target is not None:
                best = found.best
                check_same_group(target[0], str(best.path), best.identity.group)
            for line in report(found):
                show(printable(line))
            age = age_s(found.best)
            show(plan(found, age))
            if target is None or node is None or not yes:
                show(
                    "\nDry run: nothing was changed. To make the new cluster, run this again "
                    "with --config FILE --node ID --yes"
                )
                return
            made = _make(found, target, node, age)
    _tell(made, path, node)


def _target(path: Path, node: str, sources: tuple[Path, ...]) -> tuple[ClusterConfig, Path]:
    """Return the configuration, and where the new data goes.

    Raises ConfigError or DataDirectoryError.
    """
    config = load_config(path)
    if node not in config.replicas:
        known = ", ".join(config.replicas)
        raise ConfigError(path, f"nodes.{node}", f"no such replica; the replicas: {known}")
    target = config.data_dir(node)
    if any(target.resolve() == source.resolve() for source in sources):
        raise ConfigError(
            path,
            f"nodes.{node}.data",
            f"{target} is one of the directories to recover from, which stay as they are: name a "
            "new, empty one",
        )
    check_empty(target)
    return config, target


def _make(found: Examination, target: tuple[ClusterConfig, Path], node: str, age: float) -> Made:
    config, place = target
    with ProgressView("recovered", None) as view:
        return make(
            found.best,
            place,
            node,
            config.limits.store_map_size_bytes,
            age,
            lambda done, total: view.update(done, 0, f" of {total:,}"),
        )


def _tell(made: Made, path: Path, node: str) -> None:
    founded = made.founded
    show(
        f"\nMade cluster {founded.cluster_id}: revision {founded.kept_index} of the old one, with "
        f"digest {made.digest}.\n"
        f"It goes on at revision {founded.next_index} and epoch {founded.next_epoch}.\n"
        "Next:\n"
        f"  1. onecopy serve --config {path} --node {node}\n"
        "  2. Start the other nodes of that file with empty data directories: they join.\n"
        "  3. Keep the old directories until you have seen your data; no node may start on them."
    )
