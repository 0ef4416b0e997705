"""`onecopy serve`: one node, in this process."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import platform
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import click

from cluster.cli.config_option import check_configured, config_option
from cluster.config.file import load_config
from cluster.config.model import ConfigError
from cluster.exit_codes import EXIT_REFUSED
from cluster.node.logs import (
    ENVIRONMENT_VARIABLE,
    FORMAT_VARIABLE,
    LEVELS,
    LOG_FORMATS,
    configure_logs,
)
from cluster.node.process import EXIT_FAILED, run_node
from datapath.errors import DataDirectoryError, DataPathError, LogCorruptError, SafetyError
from election.agreement import AgreementDamagedError, AgreementFailedError

PR_SET_PDEATHSIG = 1  # linux/prctl.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
HEAP_KEPT_BYTES = 32 * 1024 * 1024
"""What the allocator keeps of freed memory at most, instead of asking the kernel for it again."""
MAPPED_FROM_BYTES = 8 * 1024 * 1024
"""From here on memory is the kernel's again as soon as it is freed."""

_log = logging.getLogger(__name__)


@click.command()
@config_option("Configuration file of the cluster.")
@click.option("--node", required=True, help="Id of the node to run, from the configuration file.")
@click.option(
    "--log-level",
    type=click.Choice(LEVELS),
    envvar=ENVIRONMENT_VARIABLE,
    default="info",
    show_default=True,
    help=f"Least severe messages to log [env: {ENVIRONMENT_VARIABLE}].",
)
@click.option(
    "--log-format",
    type=click.Choice(LOG_FORMATS),
    envvar=FORMAT_VARIABLE,
    default="text",
    show_default=True,
    help=f"Lines of text, or a JSON object per line [env: {FORMAT_VARIABLE}].",
)
@click.option("--supervised-by", type=int, hidden=True, help="Die with the process of this id.")
def serve(
    path: Path, node: str, log_level: str, log_format: str, supervised_by: int | None
) -> None:
    """Run one node of a cluster until SIGTERM or Ctrl-C.

    The exit code is 78 if the configuration or the data directory does not allow a start:
    restarting it unchanged will not help.
    """
    configure_logs(node, log_level, as_json=log_format == "json")
    _keep_memory()
    if supervised_by is not None:
        _die_with(supervised_by)
    try:
        config = load_config(path)
        check_configured(config, node)
        for warning in config.warnings:
            _log.warning("%s", warning)
        code = _run(run_node(config, node))
    except (
        ConfigError,
        DataDirectoryError,
        LogCorruptError,
        SafetyError,
        AgreementDamagedError,
    ) as error:
        _log.error("%s", error)
        sys.exit(EXIT_REFUSED)
    except (OSError, DataPathError, AgreementFailedError) as error:
        # A busy port, a full disk: what may have passed by the next start.
        _log.error("%s", error)
        sys.exit(EXIT_FAILED)
    sys.exit(code)


def _run(main: Coroutine[Any, Any, int]) -> int:
    """Run on uvloop where there is one (it is not on every platform)."""
    try:
        import uvloop  # noqa: PLC0415 -- not there on every platform
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


def _keep_memory() -> None:
    """Keep what batches of large values are allocated from: new pages cost more than copying."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, HEAP_KEPT_BYTES)
        libc.mallopt(M_MMAP_THRESHOLD, MAPPED_FROM_BYTES)


def _die_with(supervisor: int) -> None:
    """Have the kernel kill this process when its supervisor dies, however that happens (Linux).

    Elsewhere a node outlives a supervisor that was killed outright.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        _log.warning("prctl: %s; this node may outlive onecopy up", os.strerror(ctypes.get_errno()))
    if os.getppid() != supervisor:  # it died before the kernel knew
        sys.exit(f"the supervisor (process {supervisor}) is gone")
