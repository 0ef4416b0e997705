"""The option that names the configuration file, for the commands that read one.

Apart from `cluster.cli.common`, which loads the client: `serve` needs none of that.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cluster.config.groups_section import refusal_of_data
from cluster.config.model import ClusterConfig, ConfigError


def config_option(help_text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return `--config`, given to the command as `path`."""
    return click.option(
        "--config",
        "path",
        type=click.Path(path_type=Path),
        default="cluster.toml",
        show_default=True,
        help=help_text,
    )


def check_configured(config: ClusterConfig, node: str) -> None:
    """Raise ConfigError if the configuration has no such node."""
    if node in config.nodes:
        return
    known = ", ".join(config.nodes)
    raise ConfigError(config.path, f"nodes.{node}", f"no such node; the nodes: {known}")


def check_same_group(config: ClusterConfig, what: str, held: str) -> None:
    """G1: raise ConfigError unless `what`, which is of the group `held`, is of this one's."""
    if refused := refusal_of_data(config.groups, what, held):
        raise ConfigError(config.path, "groups", refused)
