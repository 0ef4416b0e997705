"""Ids of leases: etcd's clients' own, beside those of this service."""

from __future__ import annotations

import pytest

from cluster.etcd.answers import MAX_LEASE_ID, compared_lease, shown_lease, stored_lease
from cluster.services.leases import LEASES_SERVICE
from datapath.errors import RejectedError
from datapath.operations import STORE
from tests.support.executing import Primary

NO_IDS = [-1, -(2**63), MAX_LEASE_ID + 1]


@pytest.mark.parametrize("lease", [1, 77, MAX_LEASE_ID])
def test_an_id_comes_back_as_it_was(lease: int) -> None:
    assert shown_lease(stored_lease(lease)) == lease


def test_none_is_none() -> None:
    assert stored_lease(0) == compared_lease(0) == 0


@pytest.mark.parametrize("lease", NO_IDS)
def test_what_cannot_be_an_id_is_a_lease_that_is_not_there(lease: int) -> None:
    primary, stored = Primary(), stored_lease(lease)
    assert primary.call(LEASES_SERVICE, "keep_alive", (stored,)) == [0]
    for service, method, *args in (
        (LEASES_SERVICE, "revoke", stored),
        (LEASES_SERVICE, "look_up", stored),
        (STORE, "put", b"a", b"1", None, False, stored),
    ):
        with pytest.raises(RejectedError) as refused:
            primary.call(service, method, *args)
        assert refused.value.code == "lease_not_found"


def test_comparisons_keep_the_order_of_the_ids() -> None:
    ids = [-(2**63), -1, 0, 1, 77, MAX_LEASE_ID, MAX_LEASE_ID + 1]
    assert sorted(ids, key=compared_lease) == ids
