"""`onecopy completion`: what a shell needs to complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from cluster.terminal import show

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_ONECOPY_COMPLETE"
"""Set by the script when it asks this program for completions."""


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script for SHELL.

    Try it with `source <(onecopy completion bash)`.
    """
    found = get_completion_class(shell)
    assert found is not None  # click has all of SHELLS
    show(found(context.find_root().command, {}, "onecopy", VARIABLE).source())
