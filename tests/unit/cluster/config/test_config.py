"""The configuration file: what is accepted, and that each refusal names the field and the fix."""

from __future__ import annotations

import re
import secrets
from pathlib import Path

import msgspec
import pytest

from cluster.config.file import load_config, render_config
from cluster.config.model import (
    ClusterConfig,
    ConfigError,
    LimitsSection,
    NodeConfig,
    Secret,
    TimingSection,
    is_loopback,
    split_address,
)
from cluster.config.tls_section import TlsSection

SECRET = "8f3c1ae07d5b4962c6e1f0937ab45d28"
NODE = """
[nodes.{id}]
client = "127.0.0.1:81{n}"
peer = "127.0.0.1:82{n}"
raft = "127.0.0.1:83{n}"
data = "data/{id}"
"""
THREE = '[cluster]\nname = "demo"\n' + "".join(
    NODE.format(id=f"n{number}", n=f"0{number}") for number in (1, 2, 3)
)

INSECURE = "\n[tls]\ninsecure = true\n"
TLS = '\n[tls]\nca = "ca.crt"\ncertificate = "{node}.crt"\nkey = "{node}.key"\n'


def write(directory: Path, text: str) -> Path:
    path = directory / "cluster.toml"
    path.write_text(text)
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("head", [b"", b"\xef\xbb\xbf"], ids=["plain", "with a byte order mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_files_of_other_editors_are_read(tmp_path: Path, head: bytes, end: str) -> None:
    path = write(tmp_path, "")
    secret = tmp_path / "secret"
    secret.write_bytes(head + SECRET.encode() + end.encode())
    secret.chmod(0o600)
    text = THREE.replace('name = "demo"', 'name = "demo"\nsecret_file = "secret"')
    path.write_bytes(head + text.replace("\n", end).encode())
    config = load_config(path)
    assert list(config.nodes) == ["n1", "n2", "n3"]
    assert bytes(config.secret) == SECRET.encode()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "latin-1"])
def test_another_encoding_is_named(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path, "")
    path.write_bytes(THREE.replace("demo", "d\xe9mo").encode(encoding))
    with pytest.raises(ConfigError, match="UTF-8") as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def refused(directory: Path, text: str) -> ConfigError:
    path = write(directory, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(str(path)), "the file is not named"
    return caught.value


def test_a_plain_file_has_defaults_and_absolute_paths(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, THREE))
    assert config.name == "demo"
    assert config.timing == TimingSection()
    assert config.limits == LimitsSection()
    assert config.data_dir("n2") == (tmp_path / "data/n2").resolve()
    assert config.replicas == ("n1", "n2", "n3")
    assert (config.witnesses, config.warnings, config.secret) == ((), (), b"")
    assert config.nodes["n1"].role == "replica"


def test_every_field_can_be_set(tmp_path: Path) -> None:
    text = THREE.replace('name = "demo"', f'name = "demo"\nsecret = "{SECRET}"')
    text = text.replace("[nodes.n2]", '[nodes.n2]\nrole = "replica"\npriority = 1')
    text = text.replace("[nodes.n3]", '[nodes.n3]\nrole = "witness"')
    text += '[routes.n1.n2]\npeer = "10.0.0.9:1"\n[routes.n2.n1]\nraft = "[::1]:2"\n' + INSECURE
    text += "[timing]\n" + "".join(f"{k} = {v}\n" for k, v in _asdict(TimingSection()).items())
    text += "[limits]\n" + "".join(f"{k} = {v}\n" for k, v in _asdict(LimitsSection()).items())
    config = load_config(write(tmp_path, text))
    assert config.secret == SECRET.encode()
    assert config.replicas == ("n2", "n1"), "priority comes first"
    assert config.witnesses == ("n3",)
    assert config.address("n1", "n2", "peer") == "10.0.0.9:1"
    assert config.address("n1", "n2", "raft") == "127.0.0.1:8302"
    assert config.address("n2", "n1", "raft") == "[::1]:2"
    assert config.address("n3", "n1", "peer") == "127.0.0.1:8201"


def _asdict(section: msgspec.Struct) -> dict[str, object]:
    return msgspec.structs.asdict(section)


@pytest.mark.parametrize(
    ("old", "new", "field", "says"),
    [
        ("[cluster]", "[clutser]", "clutser", "did you mean 'cluster'"),
        ('name = "demo"', 'nane = "demo"', "cluster.nane", "did you mean 'name'"),
        ('name = "demo"', 'zzz = "demo"', "cluster.zzz", "known are: name, secret"),
        ('name = "demo"', "", "cluster.name", "is missing"),
        ('name = "demo"', "name = 5", "cluster.name", "must be a string, got a whole number"),
        ('name = "demo"', 'name = "a b"', "cluster.name", "letters"),
        ('name = "demo"', 'name = "demo"\nsecret = "short"', "cluster.secret", "at least 16"),
        ("[nodes.n1]", "[nodes.N1]", "nodes.N1", "a-z"),
        ("[nodes.n1]", f"[nodes.{'x' * 32}]", f"nodes.{'x' * 32}", "1 to 31"),
        ("[nodes.n1]", '[nodes.n1]\nrole = "boss"', "nodes.n1.role", "boss"),
        ("[nodes.n1]", "[nodes.n1]\npriority = true", "nodes.n1.priority", "whole number"),
        ("[nodes.n1]", '[nodes.n1]\ncleint = "x"', "nodes.n1.cleint", "did you mean 'client'"),
        ('client = "127.0.0.1:8101"', "", "nodes.n1.client", "is missing"),
        ('data = "data/n1"', "", "nodes.n1.data", "witness needs one"),
        ('data = "data/n1"', 'data = ""', "nodes.n1.data", "directory"),
        ('data = "data/n1"', 'data = "data/n2"', "nodes.n2.data", "nodes.n1.data"),
        ('data = "data/n1"', 'data = "data/n2/x"', "nodes.n2.data", "nodes.n1.data"),
        ('data = "data/n1"', 'data = "data"', "nodes.n2.data", "nodes.n1.data"),
        ("127.0.0.1:8202", "127.0.0.1:8201", "nodes.n2.peer", "nodes.n1.peer"),
        ("127.0.0.1:8202", "127.0.0.1:8202x", "nodes.n2.peer", "1 to 65535"),
        ("127.0.0.1:8202", "0.0.0.0:8202", "nodes.n2.peer", "by other machines"),
        ("127.0.0.1:8202", "10.0.0.1:8202", "nodes.n2.peer", "cluster.secret"),
        ("127.0.0.1:8302", "host.example:8302", "nodes.n2.raft", "cluster.secret"),
        ("[nodes.n1]", '[nodes.n1]\npeer_bind = "0.0.0.0:1"', "nodes.n1.peer_bind",
         "cluster.secret"),
        ("[nodes.n1]", '[nodes.n1]\nclient_bind = "[::]:1"', "nodes.n1.client_bind", "no TLS"),
        ("[nodes.n1]", '[nodes.n1]\nraft_bind = "host"', "nodes.n1.raft_bind", "not host:port"),
        ("[nodes.n1]", '[nodes.n1]\nraft_bind = "127.0.0.1:8101"', "nodes.n1.raft_bind",
         "the port of nodes.n1.client"),
    ],
)  # fmt: skip
def test_each_mistake_is_named(tmp_path: Path, old: str, new: str, field: str, says: str) -> None:
    assert old in THREE
    error = refused(tmp_path, THREE.replace(old, new))
    assert error.field == field
    assert says in error.problem


@pytest.mark.parametrize(
    ("extra", "field", "says"),
    [
        ('[routes.n1.n9]\npeer = "127.0.0.1:1"', "routes.n1.n9", "no node 'n9'"),
        ('[routes.n9.n1]\npeer = "127.0.0.1:1"', "routes.n9.n1", "no node 'n9'"),
        ('[routes.n1.n1]\npeer = "127.0.0.1:1"', "routes.n1.n1", "itself"),
        ("[routes.n1.n2]", "routes.n1.n2", "give peer"),
        ('[routes.n1.n2]\npeer = "x"', "routes.n1.n2.peer", "host:port"),
        ('[routes.n1.n2]\npeer = "10.0.0.1:1"', "routes.n1.n2.peer", "cluster.secret"),
        ('[routes]\nn1 = "x"', "routes.n1", "table"),
        ('[groups]\nid = "g1"', "groups.slots", "add slots"),
        ('[groups]\nid = "G"\nslots = [[0, 1]]', "groups.id", "1 to 31"),
        ('[groups]\nid = "g"\nslots = [[2, 1]]', "groups.slots", "first and a last slot"),
        ('[groups]\nid = "g"\nslots = [[0, 4096]]', "groups.slots", "from 0 to 4095"),
        ('[groups]\nid = "g"\nslots = [0]', "groups.slots[0]", "must be array"),
        ('[groups]\nid = "g"\nslots = [[0, 1]]\nfirst = ["a:1"]', "groups.first", "URL"),
        ("[timing]\nheartbeat_interval = 5", "timing.heartbeat_interval", "heartbeat_interval_ms"),
        ("[timing]\nheartbeat_interval_ms = 0", "timing.heartbeat_interval_ms", ">= 1"),
        ("[timing]\nheartbeat_interval_ms = 1.5", "timing.heartbeat_interval_ms", "whole number"),
        ("[timing]\nheartbeat_interval_ms = 90", "timing.suspect_after_ms", "below 180"),
        ("[timing]\nsuspect_after_ms = 220", "timing.lease_duration_ms", "below 270"),
        ("[timing]\nlease_duration_ms = 280", "timing.grace_period_ms", "below 328"),
        ("[timing]\nack_timeout_ms = 100", "timing.ack_timeout_ms", "below 150"),
        ("[timing]\nraft_heartbeat_ms = 60", "timing.raft_election_min_ms", "below 180"),
        ("[timing]\nraft_election_max_ms = 160", "timing.raft_election_max_ms", "below 190"),
        ("[timing]\nview_change_timeout_ms = 300", "timing.view_change_timeout_ms", "below 301"),
        ("[limits]\nmin_in_sync = 4", "limits.min_in_sync", "3 replicas"),
        ("[limits]\nmin_in_sync = 0", "limits.min_in_sync", ">= 1"),
        ("[limits]\nmax_inflight_bytes = 5", "limits.max_inflight_bytes", "below 2228224"),
        ("[limits]\nlog_segment_size_bytes = 65536", "limits.log_segment_size_bytes", "below"),
        ("[limits]\nlog_retention_bytes = 65536", "limits.log_retention_bytes", "segment"),
        ("[limits]\nlog_retention_ms = -1", "limits.log_retention_ms", ">= 0"),
        ("[limits]\nstore_map_size_bytes = 1048576", "limits.store_map_size_bytes", "overlay"),
        ("[limits]\nclient_table_bytes = 9999", "limits.client_table_bytes", ">= 4194304"),
        ("[limits]\nsnapshot_rate_bytes_per_s = -1", "limits.snapshot_rate_bytes_per_s", ">= 0"),
    ],
)  # fmt: skip
def test_each_mistake_in_further_sections_is_named(
    tmp_path: Path, extra: str, field: str, says: str
) -> None:
    error = refused(tmp_path, f"{THREE}{extra}\n")
    assert error.field == field
    assert says in error.problem


def test_a_file_without_replicas_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, '[cluster]\nname = "x"\n').field == "nodes"
    witness = THREE.replace("client =", 'role = "witness"\nclient =')
    assert "replica" in refused(tmp_path, witness).problem


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    assert "not TOML" in refused(tmp_path, "[cluster").problem
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "absent")
    with pytest.raises(ConfigError, match="directory"):
        load_config(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_config(tmp_path / "binary")


def test_the_secret_can_stand_in_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"  {SECRET}\n")
    (tmp_path / "secret").chmod(0o600)
    text = THREE.replace('name = "demo"', 'name = "demo"\nsecret_file = "secret"')
    config = load_config(write(tmp_path, text))
    assert (config.secret, config.warnings) == (SECRET.encode(), ())
    both = text.replace("secret_file", f'secret = "{SECRET}"\nsecret_file')
    assert "not both" in refused(tmp_path, both).problem
    (tmp_path / "secret").unlink()
    assert refused(tmp_path, text).field == "cluster.secret_file"


def test_a_secret_that_everyone_can_read_is_warned_about(tmp_path: Path) -> None:
    path = write(tmp_path, THREE.replace('"demo"', f'"demo"\nsecret = "{SECRET}"'))
    assert load_config(path).warnings == ()
    path.chmod(0o644)
    assert f"chmod 600 {path}" in load_config(path).warnings[0]


def test_the_secret_is_never_shown(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, THREE.replace('"demo"', f'"demo"\nsecret = "{SECRET}"')))
    for shown in (repr(config), str(config.secret), f"{config.secret}", repr(config.secret)):
        assert SECRET not in shown
    assert bytes(config.secret) == SECRET.encode()


def test_a_secret_lets_nodes_listen_beyond_loopback(tmp_path: Path) -> None:
    text = INSECURE + THREE.replace("127.0.0.1:8202", "10.0.0.1:8202")
    load_config(write(tmp_path, text.replace('"demo"', f'"demo"\nsecret = "{SECRET}"')))
    client = INSECURE + THREE.replace("127.0.0.1:8102", "10.0.0.1:8102")
    load_config(write(tmp_path, client))  # the client's port needs no secret


def test_an_even_number_of_voters_is_warned_about(tmp_path: Path) -> None:
    text = THREE + NODE.format(id="n4", n="04")
    assert "4 nodes vote" in load_config(write(tmp_path, text)).warnings[0]


def test_nodes_on_different_hosts_may_use_the_same_path(tmp_path: Path) -> None:
    text = THREE.replace('"demo"', f'"demo"\nsecret = "{SECRET}"').replace("data/n2", "data/n1")
    text = text.replace("127.0.0.1:8202", "10.0.0.2:8202")
    load_config(write(tmp_path, text + INSECURE))


def test_what_up_writes_can_be_read_back(tmp_path: Path) -> None:
    nodes = {
        "n1": NodeConfig(client="[::1]:1", peer="[::1]:2", raft="[::1]:3", data='a "b" \\ ü\x7f'),
        "n2": NodeConfig(
            role="witness", client="h:1", peer="h:2", raft="h:3", data="n2", priority=0
        ),
    }
    config = load_config(
        write(tmp_path, render_config("local", SECRET, nodes, tls=TlsSection(insecure=True)))
    )
    assert config.secret == SECRET.encode()
    for node, item in nodes.items():
        data = str((tmp_path / item.data).resolve())
        assert config.nodes[node] == msgspec.structs.replace(item, data=data)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:1", ("127.0.0.1", 1)),
        ("[::1]:65535", ("::1", 65535)),
        ("n1.example-host.org:80", ("n1.example-host.org", 80)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert split_address(text) == address


@pytest.mark.parametrize(
    "text",
    ["", "host", "host:", ":80", "host:0", "host:65536", "host:٣", "host:-1", "::1:80", "[::1]",
     "[x]:80", "1.2.3:80", "1.2.3.456:80", "a b:80", "[::]:80", "0.0.0.0:80", "host:+80", "-h:8"],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        split_address(text)


def test_an_address_with_a_scheme_is_not_taken_for_ipv6() -> None:
    with pytest.raises(ValueError, match="is not host:port"):
        split_address("https://host:80")


def test_what_is_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1")))
    assert not any(map(is_loopback, ("10.0.0.1:1", "[fd00::1]:1", "localhost.example:1")))


def test_a_secret_is_bytes() -> None:
    assert isinstance(Secret(b"x"), bytes)
    assert ClusterConfig.__struct_config__.frozen


WEAK = ("passwordpassword", "0123456789abcdef0123456789abcdef", "a" * 64, "our cluster's secret")


@pytest.mark.parametrize("weak", WEAK)
@pytest.mark.parametrize("place", ["127.0.0.1:8101", "127.0.0.1:8202", "127.0.0.1:8303"])
def test_a_weak_secret_is_refused_where_an_address_is_not_loopback(
    tmp_path: Path, weak: str, place: str
) -> None:
    local = THREE.replace('"demo"', f'"demo"\nsecret = "{weak}"')
    load_config(write(tmp_path, local))
    error = refused(tmp_path, local.replace(place, f"10.0.0.1:{place.split(':')[1]}"))
    assert error.field == "cluster.secret"
    assert "openssl rand -hex 32" in str(error)
    assert weak not in str(error)
    (tmp_path / "weak").write_text(weak)
    in_file = local.replace(f'secret = "{weak}"', 'secret_file = "weak"')
    error = refused(tmp_path, in_file.replace(place, f"10.0.0.1:{place.split(':')[1]}"))
    assert error.field == "cluster.secret_file"


def test_a_drawn_secret_is_taken_anywhere(tmp_path: Path) -> None:
    text = THREE.replace('"demo"', f'"demo"\nsecret = "{secrets.token_hex(32)}"')
    load_config(write(tmp_path, text.replace("127.0.0.1", "10.0.0.1") + INSECURE))


@pytest.mark.parametrize(
    ("place", "field"),
    [("127.0.0.1:8101", "nodes.n1.client"), ("127.0.0.1:8202", "nodes.n2.peer")],
)
def test_plain_text_beyond_loopback_must_be_asked_for(
    tmp_path: Path, place: str, field: str
) -> None:
    text = THREE.replace('"demo"', f'"demo"\nsecret = "{secrets.token_hex(32)}"')
    text = text.replace(place, f"10.0.0.1:{place.split(':')[1]}")
    error = refused(tmp_path, text)
    assert (error.field, "insecure = true" in error.problem) == (field, True)
    assert not load_config(write(tmp_path, text + INSECURE)).tls.is_on
    config = load_config(write(tmp_path, text + TLS))
    assert config.tls.for_node("n2").certificate == str(tmp_path / "n2.crt")
    assert config.url("n1").startswith("https://")


@pytest.mark.parametrize("missing", ["ca", "certificate", "key"])
def test_half_of_tls_is_refused(tmp_path: Path, missing: str) -> None:
    lines = [line for line in TLS.splitlines() if not line.startswith(f"{missing} ")]
    error = refused(tmp_path, THREE + "\n".join(lines))
    assert (error.field, "is missing" in error.problem) == (f"tls.{missing}", True)


def test_two_secrets_count_while_it_is_changed(tmp_path: Path) -> None:
    old, new = secrets.token_hex(32), secrets.token_hex(32)
    (tmp_path / "secret").write_text(f"{new}\n {old} \n\n")
    text = THREE.replace('name = "demo"', 'name = "demo"\nsecret_file = "secret"')
    config = load_config(write(tmp_path, text))
    assert config.secrets == (new.encode(), old.encode())
    assert config.secret == new.encode()
    (tmp_path / "secret").write_text(f"{new}\n{old}\n{old}\n")
    assert "3 lines" in refused(tmp_path, text).problem
    (tmp_path / "secret").write_text(f"{new}\nshort\n")
    assert "at least 16" in refused(tmp_path, text).problem


def test_hosts_and_origins_are_read(tmp_path: Path) -> None:
    text = THREE + '\n[api]\nhosts = ["kv.example"]\norigins = ["https://tools.example"]\n'
    config = load_config(write(tmp_path, text))
    assert config.api.hosts == ("kv.example",)
    assert config.api.origins == ("https://tools.example",)
    assert "hosts" in refused(tmp_path, text.replace("hosts", "host")).problem
