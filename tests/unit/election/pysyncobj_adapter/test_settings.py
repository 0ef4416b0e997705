"""The adapter's settings: what cannot work is refused, and the secret stays secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from election.pysyncobj_adapter.settings import AgreementSettings, host_and_port
from election.shared_secret import SharedSecret


def settings(**changes: Any) -> AgreementSettings:
    fields: dict[str, Any] = {
        "node_id": "n1",
        "bind_address": "127.0.0.1:1",
        "members": {"n1": "127.0.0.1:1"},
        "directory": Path("raft"),
        "secret": SharedSecret(b"the secret"),
    }
    return AgreementSettings(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"secret": SharedSecret(b"")}, "secret"),
        ({"node_id": "n2"}, "n2"),
        ({"heartbeat_interval_ms": 50}, "heartbeat_interval_ms"),
        ({"election_max_ms": 150}, "election_max_ms"),
        ({"leader_fallback_ms": 300}, "leader_fallback_ms"),
        ({"connection_timeout_ms": 300}, "connection_timeout_ms"),
        ({"compaction_entries": 1}, "compaction_entries"),
        ({"dial_interval_ms": 0}, "dial_interval_ms"),
        ({"bind_address": "nowhere"}, "nowhere"),
        ({"routes": {"n2": "host:99999"}}, "host:99999"),
    ],
)
def test_what_cannot_work_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        settings(**changes)


def test_the_secret_does_not_stand_in_logs() -> None:
    assert "the secret" not in repr(settings())


def test_an_ipv6_host_may_stand_in_brackets() -> None:
    assert host_and_port("[::1]:80") == ("::1", 80)
    assert host_and_port("localhost:80") == ("localhost", 80)
