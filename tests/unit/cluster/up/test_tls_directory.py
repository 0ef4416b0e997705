"""What `onecopy up --tls` writes is what its nodes start with."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from cluster.certificates.node_tls import NodeTls
from cluster.up.directory import UpError, prepare_config
from tests.support.ports import free_up_port


def test_each_node_of_a_new_cluster_has_certificates_that_pass(tmp_path: Path) -> None:
    data = tmp_path / "data"
    port = free_up_port()
    config, is_new = prepare_config(data, nodes=2, witnesses=1, port=port, tls=True)
    assert is_new
    assert config.url("n1") == f"https://127.0.0.1:{port}"
    for node in config.nodes:
        tls = NodeTls(config, node)
        assert (tls.load_warnings, tls.warnings()) == ((), ())
    for key in (data / "certs").glob("*.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    again, is_new = prepare_config(data, nodes=None, witnesses=None, port=None, tls=True)
    assert (again.tls, is_new) == (config.tls, False)


def test_a_cluster_without_tls_gets_none_afterwards(tmp_path: Path) -> None:
    port = free_up_port()
    prepare_config(tmp_path / "data", nodes=1, witnesses=0, port=port)
    with pytest.raises(UpError, match="has no TLS"):
        prepare_config(tmp_path / "data", nodes=None, witnesses=None, port=None, tls=True)
