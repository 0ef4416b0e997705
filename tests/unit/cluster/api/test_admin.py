"""From where the cluster itself may be changed, until there are roles."""

from __future__ import annotations

import pytest

from cluster.api.admin import check_admin
from cluster.api.problems import ProblemError


@pytest.mark.parametrize(
    ("remote", "local"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.3.2.1", "127.0.0.1"),
        ("::1", "::1"),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1"),
        ("10.0.0.7", "10.0.0.7"),  # the node's own address, from its own machine
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
def test_from_the_nodes_own_machine(remote: str, local: str) -> None:
    check_admin("loopback", remote, local, {})


@pytest.mark.parametrize(
    ("remote", "local", "headers"),
    [
        ("10.0.0.8", "10.0.0.7", {}),
        ("10.0.0.8", "127.0.0.1", {}),
        ("::ffff:10.0.0.8", "::ffff:10.0.0.7", {}),
        ("2001:db8::8", "2001:db8::7", {}),
        ("10.0.0.8", "10.0.0.7", {"X-Forwarded-For": "127.0.0.1"}),
        ("127.0.0.1", "127.0.0.1", {"X-Forwarded-For": "127.0.0.1"}),
        ("127.0.0.1", "127.0.0.1", {"Forwarded": "for=127.0.0.1"}),
        ("127.0.0.1", "127.0.0.1", {"Via": "1.1 proxy"}),
        (None, None, {}),
        ("", "", {}),
        ("unix", "unix", {}),
    ],
)
def test_not_from_elsewhere(remote: str | None, local: str | None, headers: dict[str, str]) -> None:
    with pytest.raises(ProblemError) as refused:
        check_admin("loopback", remote, local, headers)
    assert refused.value.status == 403
    assert "admin_from" in refused.value.detail
    check_admin("any", remote, local, headers)
