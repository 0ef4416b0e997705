"""`onecopy up`: the command line around `cluster.up.supervisor`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cluster.certificates.facts import CertificateError
from cluster.cli.common import fail
from cluster.config.model import ConfigError
from cluster.exit_codes import EXIT_NOT_APPLIED
from cluster.terminal import say
from cluster.up.directory import (
    REPLICAS_MAX,
    TOKEN_NAME,
    UpError,
    Wanted,
    check_ports,
    kept_groups,
    prepare_config,
)
from cluster.up.display import open_view
from cluster.up.groups import GROUPS_MAX, prepare_groups
from cluster.up.services import read_services
from cluster.up.supervisor import run_up, sole_runner


@click.command()
@click.option(
    "--nodes",
    type=click.IntRange(1, REPLICAS_MAX),
    help="Number of replicas in a new cluster [default: 3].",
)
@click.option(
    "--witness",
    "witnesses",
    type=click.IntRange(0, REPLICAS_MAX),
    help="Number of witnesses, which vote and hold no data [default: 0].",
)
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default="data",
    show_default=True,
    help="Directory of the cluster. If it holds one, that is resumed.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help="First HTTP port; peer and raft ports are 100 and 200 higher [default: 8101].",
)
@click.option(
    "--access",
    "with_access",
    is_flag=True,
    help="A new cluster has access control: the first token is drawn, shown, and kept in "
    "DATA/admin.token.",
)
@click.option(
    "--tls",
    is_flag=True,
    help="Encrypt a new cluster, with an authority of its own in DATA/certs.",
)
@click.option(
    "--etcd",
    "with_etcd",
    is_flag=True,
    help="Serve etcd's clients too (its HTTP/JSON gateway), on ports from 2379 on.",
)
@click.option(
    "--service",
    "services",
    multiple=True,
    metavar="NAME=MODULE:CLASS",
    help="Run this class as the service NAME; the module is here or installed. May be repeated.",
)
@click.option(
    "--groups",
    type=click.IntRange(1, GROUPS_MAX),
    help="Number of groups, which divide the keys; each has --nodes and --witness of its own "
    "[default: 1, no groups].",
)
@click.option("--no-restart", is_flag=True, help="Do not restart a node that exits.")
def up(
    nodes: int | None,
    witnesses: int | None,
    data: Path,
    port: int | None,
    with_access: bool,
    tls: bool,
    with_etcd: bool,
    services: tuple[str, ...],
    groups: int | None,
    no_restart: bool,
) -> None:
    """Run a cluster of real processes on this machine until Ctrl-C. The data is kept.

    A node that is killed is restarted after a second. The logs are in DATA/logs, the configuration
    is DATA/cluster.toml. With --groups these are in DATA/g1, DATA/g2, …
    """
    try:
        wanted = Wanted(
            nodes=nodes,
            witnesses=witnesses,
            port=port,
            tls=tls,
            services=read_services(services, data),
            with_access=with_access,
            with_etcd=with_etcd,
        )
        n_groups = kept_groups(data) if groups is None else groups
        if n_groups > 1:
            configs, is_new = prepare_groups(data, n_groups, wanted)
        else:
            config, is_new = prepare_config(data, **wanted)
            configs = [config]
        with sole_runner(data):
            for config in configs:
                check_ports(config)
            for warning in configs[0].warnings:
                say(f"{click.style('warning:', fg='yellow')} {warning}")
            what = "cluster" if len(configs) == 1 else f"{len(configs)} groups"
            say(f"new {what} in {data}" if is_new else f"resuming the {what} in {data}")
            if is_new and configs[0].access is not None:
                file = data / TOKEN_NAME
                say(f"the first administrator's token, kept in {file}: {file.read_text().strip()}")
            view = open_view()
            try:
                code = run_up(configs, data, view, restart=not no_restart)
            finally:
                view.close()
    except (CertificateError, ConfigError, UpError) as error:
        fail(str(error), "", EXIT_NOT_APPLIED)
    except OSError as error:
        fail(f"{error.filename or data}: {error.strerror}", "", EXIT_NOT_APPLIED)
    sys.exit(code)
