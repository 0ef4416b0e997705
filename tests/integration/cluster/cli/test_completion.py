"""`onecopy completion`, as real shells use it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.cli.completion import SHELLS
from tests.support.commands import environment

pytestmark = pytest.mark.slow  # a process for each completion

ASK = {
    # What bash does at <TAB>: the function that `complete` has bound fills COMPREPLY.
    "bash": """
source <(onecopy completion bash)
COMP_WORDS=(%s); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
eval "$(complete -p onecopy | sed 's/.*-F \\([^ ]*\\) .*/\\1 onecopy/')"
printf '%%s\\n' "${COMPREPLY[@]}"
""",
    "fish": """
onecopy completion fish | source
complete --do-complete '%s'
""",
    # zsh completes only in its line editor: a terminal of its own, in which <TAB> is pressed.
    "zsh": """
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell 'autoload -U compinit; compinit -u; source <(onecopy completion zsh); echo rea""dy'
zpty -r -m shell line '*ready*'
zpty -n -w shell $'%s\\t'
zpty -r -m shell line '*status*'
print -r -- $line
""",
}


def ask(shell: str, directory: Path, words: str) -> str:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed (apt-get install {shell})")
    command = directory / "onecopy"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m cluster.cli.main "$@"\n')
    command.chmod(0o755)
    done = subprocess.run(
        [program, "-c", ASK[shell] % words],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=True,
        cwd=directory,
        env=environment(PATH=f"{directory}:{os.environ['PATH']}", HOME=str(directory)),
    )
    assert not done.stderr, done.stderr
    return done.stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_a_command_is_completed(shell: str, tmp_path: Path) -> None:
    assert "status" in ask(shell, tmp_path, "onecopy sta")


@pytest.mark.parametrize("shell", ["bash", "fish"])
@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("onecopy finish", "finish-upgrade"),
        ("onecopy member mo", "move"),
        ("onecopy serve --log-f", "--log-format"),
        ("onecopy serve --log-format js", "json"),
        ("onecopy completion fi", "fish"),
    ],
)
def test_subcommands_options_and_values_are_completed(
    shell: str, words: str, wanted: str, tmp_path: Path
) -> None:
    assert wanted in ask(shell, tmp_path, words).split()
