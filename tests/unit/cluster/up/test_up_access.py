"""`onecopy up --access`: the first token is drawn, private, and only its hash is configured."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.config.file import load_config
from cluster.config.model import ConfigError
from cluster.services.access_guard import principal_of
from cluster.up.directory import TOKEN_NAME, UpError, prepare_config
from tests.support.ports import free_up_port


def test_a_new_cluster_has_a_token_that_its_owner_alone_can_read(tmp_path: Path) -> None:
    data = tmp_path / "data"
    config, is_new = prepare_config(
        data, nodes=1, witnesses=0, port=free_up_port(), with_access=True
    )
    assert is_new
    token = (data / TOKEN_NAME).read_text().strip()
    assert (data / TOKEN_NAME).stat().st_mode & 0o077 == 0
    assert token not in (data / "cluster.toml").read_text()
    principal = principal_of(token)
    assert principal is not None
    assert config.access is not None
    assert config.access.admin_token_hash == f"{principal.token}:{principal.digest.hex()}"


def test_a_cluster_without_access_control_is_not_given_it_silently(tmp_path: Path) -> None:
    data, port = tmp_path / "data", free_up_port()
    prepare_config(data, nodes=1, witnesses=0, port=port)
    with pytest.raises(UpError, match="onecopy token init"):
        prepare_config(data, nodes=1, witnesses=0, port=port, with_access=True)


@pytest.mark.parametrize(
    ("lines", "field"),
    [
        ("", "access.admin_token_hash"),
        ('admin_token_hash = "oct_0123456789abcdef_x"', "access.admin_token_hash"),
        (f'admin_token_hash = "{16 * "0"}:{64 * "0"}"\nanonymous = "Guest"', "access.anonymous"),
        (f'admin_token_hash = "{16 * "0"}:{64 * "0"}"\nrole = "x"', "access.role"),
    ],
)
def test_a_wrong_section_is_refused_by_field(tmp_path: Path, lines: str, field: str) -> None:
    data = tmp_path / "data"
    prepare_config(data, nodes=1, witnesses=0, port=free_up_port())
    path = data / "cluster.toml"
    path.write_text(f"{path.read_text()}\n[access]\n{lines}\n")
    with pytest.raises(ConfigError) as found:
        load_config(path)
    assert found.value.field == field
    assert "oct_" not in str(found.value)
