"""The documentation says what the code has: fields, defaults, options, exit codes."""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import get_args, get_type_hints

import click
import msgspec
import pytest

from cluster import exit_codes
from cluster.cli.main import COMMANDS, main
from cluster.config.access_section import AccessSection
from cluster.config.api_section import ApiSection
from cluster.config.archive_section import ArchiveSection
from cluster.config.file import load_config
from cluster.config.groups_section import GroupsSection
from cluster.config.model import (
    ClusterSection,
    LimitsSection,
    NodeConfig,
    Route,
    ServiceConfig,
    TimingSection,
)
from cluster.config.tls_section import TlsSection

COMMON = {
    *("as_json", "endpoints", "no_discover", "timeout_ms", "token_file"),
    *("tls_cacert", "tls_cert", "tls_key"),
}
DOCS = Path(__file__).resolve().parents[3] / "docs"
SECTIONS: dict[str, type[msgspec.Struct]] = {
    "[cluster]": ClusterSection,
    "[nodes.ID]": NodeConfig,
    "[routes.A.B]": Route,
    "[timing]": TimingSection,
    "[limits]": LimitsSection,
    "[services.NAME]": ServiceConfig,
    "[tls]": TlsSection,
    "[api]": ApiSection,
    "[access]": AccessSection,
    "[archive]": ArchiveSection,
    "[groups]": GroupsSection,
}


def rows_of(section: type[msgspec.Struct]) -> list[tuple[str, str, str]]:
    """What the table of a section must show."""
    hints = get_type_hints(section, include_extras=True)
    rows = []
    for field in msgspec.structs.fields(section):
        meta = next(item for item in get_args(hints[field.name]) if isinstance(item, msgspec.Meta))
        if field.required:
            default = "required"
        elif field.default in {"", None, ()}:
            default = ""
        else:
            shown = f'"{field.default}"' if isinstance(field.default, str) else field.default
            default = f"`{shown}`"
        rows.append((f"`{field.encode_name}`", default, str(meta.description)))
    return rows


@pytest.mark.parametrize("name", SECTIONS)
def test_each_section_of_the_configuration_is_documented(name: str) -> None:
    text = (DOCS / "configuration.md").read_text()
    part = text.split(f"## `{name}`\n")[1].split("\n## ")[0]
    table = [line for line in part.splitlines() if line.startswith("| `")]
    shown = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in table]
    assert shown == rows_of(SECTIONS[name])


def test_the_example_file_loads(tmp_path: Path) -> None:
    text = (DOCS / "configuration.md").read_text()
    example = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)[0]
    (tmp_path / "cluster.toml").write_text(example)
    (tmp_path / "cluster.secret").write_text(secrets.token_hex(32))
    (tmp_path / "cluster.secret").chmod(0o600)
    assert load_config(tmp_path / "cluster.toml").warnings == ()


def test_each_command_and_option_is_documented() -> None:
    text = (DOCS / "cli.md").read_text()
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        part = text.split(f"## `onecopy {name}")[1].split("\n## ")[0]
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                where = text if parameter.name in COMMON else part
                assert any(f"`{option}" in where for option in parameter.opts), (name, parameter)


def test_each_exit_code_is_documented() -> None:
    text = (DOCS / "cli.md").read_text()
    for name, code in vars(exit_codes).items():
        if name.startswith("EXIT_"):
            assert f"\n| {code} |" in text, name
