"""`onecopy up --groups N`: a directory with a cluster for each group, written once."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from cluster.config.model import ServiceConfig
from cluster.groups.group_map import check_map
from cluster.up.directory import UpError, Wanted, kept_groups, prepare_config
from cluster.up.groups import GROUPS_MAX, map_of, prepare_groups, slots_of
from tests.support.ports import free_up_port

WANTED = Wanted(
    nodes=1, witnesses=None, port=None, services={}, with_access=False, tls=False, with_etcd=False
)


def wanted(**others: object) -> Wanted:
    return {**WANTED, "port": free_up_port(), **others}  # type: ignore[typeddict-item]


def test_groups_share_secret_token_and_authority_and_nothing_else(tmp_path: Path) -> None:
    data = tmp_path / "data"
    asked = wanted(
        with_access=True, tls=True, services={"s": ServiceConfig(spec="shop:Shop", path="here")}
    )
    configs, is_new = prepare_groups(data, 3, asked)
    assert is_new
    check_map(map_of(configs, 1))
    assert [config.groups.id for config in configs if config.groups] == ["g1", "g2", "g3"]
    keepers = tuple(map(configs[0].url, configs[0].nodes))
    assert [config.groups.first for config in configs if config.groups] == [(), keepers, keepers]
    assert len({config.url("n1") for config in configs}) == 3
    for field in ("secret", "access"):
        assert len({str(getattr(config, field)) for config in configs}) == 1, field
    assert Path(configs[2].tls.ca).resolve() == data / "certs" / "ca.crt"
    assert configs[1].services["s"].path == str(data / "here")
    assert (data / "admin.token").exists()
    again, is_new = prepare_groups(data, 3, {**WANTED, "port": asked["port"]})
    assert not is_new
    assert [config.groups for config in again] == [config.groups for config in configs]


def test_slots_are_shared_out() -> None:
    for groups in range(1, GROUPS_MAX + 1):
        ranges = [slots_of(number, groups) for number in range(groups)]
        assert ranges[0][0] == 0
        assert ranges[-1][1] == 4095
        assert all(one[1] + 1 == other[0] for one, other in pairwise(ranges))


def test_groups_stay_as_many_as_they_were(tmp_path: Path) -> None:
    data, single = tmp_path / "data", tmp_path / "single"
    assert kept_groups(data) == 0
    prepare_groups(data, 2, wanted())
    assert kept_groups(data) == 2
    with pytest.raises(UpError, match="has --groups 2, not 3"):
        prepare_groups(data, 3, WANTED)
    prepare_config(single, **wanted())
    with pytest.raises(UpError, match="without groups"):
        prepare_groups(single, 2, WANTED)
    with pytest.raises(UpError, match="too many"):
        prepare_groups(tmp_path / "new", GROUPS_MAX, wanted(nodes=9))
    with pytest.raises(UpError, match="holds 2 groups"):
        prepare_config(data, **WANTED)


def test_groups_whose_first_file_is_gone_are_not_made_anew(tmp_path: Path) -> None:
    configs, _ = prepare_groups(tmp_path, 2, wanted())
    (tmp_path / "g2" / "n1").mkdir()
    (tmp_path / "g2" / "n1" / "identity.json").touch()
    configs[0].path.unlink()
    with pytest.raises(UpError, match="put that file back"):
        prepare_groups(tmp_path, 2, wanted())
    assert configs[1].path.exists(), "with the secret"


def test_a_group_whose_file_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    """It would have another secret, and an empty directory."""
    configs, _ = prepare_groups(tmp_path, 3, wanted())
    configs[1].path.parent.rename(tmp_path / "g4")
    with pytest.raises(UpError, match=r"no .*/g2/cluster\.toml: put that file back"):
        prepare_groups(tmp_path, 3, WANTED)
    assert not (tmp_path / "g2").exists()


def test_what_could_not_start_leaves_nothing_that_the_next_try_finds(tmp_path: Path) -> None:
    port = 65535 - 200 - 1  # the second group's would be too high
    with pytest.raises(UpError, match="lower --port"):
        prepare_groups(tmp_path, 3, wanted(port=port, with_access=True))
    assert not list(tmp_path.glob("**/*.toml"))
    assert not (tmp_path / "admin.token").exists()
    prepare_groups(tmp_path, 2, wanted())
