"""--cacert, --cert and --key: where they come from, and what they change."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cluster.certificates.authority import Authority
from cluster.cli.common import TlsFiles, client_options, open_endpoints, tls_files
from cluster.cli.main import main


@click.command()
@client_options
def probe(endpoints: str, timeout_ms: int, no_discover: bool, as_json: bool) -> None:
    """Print the endpoints and the files."""
    click.echo(" ".join((*open_endpoints(endpoints), *tls_files())))


@pytest.fixture
def files(tmp_path: Path) -> TlsFiles:
    authority = Authority(tmp_path)
    authority.create()
    authority.issue_client("a")
    return TlsFiles(*(str(tmp_path / name) for name in ("ca.crt", "a.crt", "a.key")))


def test_with_an_authority_https_is_what_is_not_said(files: TlsFiles) -> None:
    runner = CliRunner()
    result = runner.invoke(probe, ["--cacert", files.cacert])
    assert result.output.startswith("https://127.0.0.1:8101 https://127.0.0.1:8102 ")
    result = runner.invoke(probe, ["--cacert", files.cacert, "--endpoints", "a:1,http://b:2"])
    assert result.output.split() == ["https://a:1", "http://b:2", files.cacert]
    assert runner.invoke(probe, ["--endpoints", "a:1"]).output.split() == ["http://a:1"]


def test_they_may_stand_in_the_environment(files: TlsFiles) -> None:
    names = ("ONECOPY_CACERT", "ONECOPY_CERT", "ONECOPY_KEY")
    result = CliRunner().invoke(
        probe, ["--endpoints", "a:1"], env=dict(zip(names, files, strict=True))
    )
    assert result.output.split() == ["https://a:1", *files]


def test_what_does_not_belong_together_is_a_wrong_command_line(files: TlsFiles) -> None:
    runner = CliRunner()
    for options, words in (
        (["--cert", files.cert], "cert and key belong together"),
        (["--cert", files.cert, "--key", files.cacert], "cert or key"),
        (["--cacert", files.key], "cacert"),
        (["--cacert", "no such file"], "does not exist"),
    ):
        result = runner.invoke(main, ["get", "a", *options])
        assert (result.exit_code, words in result.output) == (2, True), result.output
        assert "PRIVATE" not in result.output
