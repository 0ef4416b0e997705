"""What etcd's gateway says of this service's own errors."""

from __future__ import annotations

import pytest

from cluster.api.problems import CODES, ProblemError
from cluster.etcd.errors import OF_CODES, RESOURCE_EXHAUSTED, from_problem


def test_each_code_is_one_that_exists() -> None:
    made_elsewhere = {"key_not_found", "lease_exists"}  # by services, for this gateway alone
    assert set(OF_CODES) - made_elsewhere <= set(CODES)


@pytest.mark.parametrize("code", sorted(CODES))
def test_each_problem_has_an_answer(code: str) -> None:
    error = from_problem(ProblemError(code, "a detail"))
    assert error.status >= 400
    assert error.message.startswith(("etcdserver: ", "onecopy: ", "Not Found", "Method Not"))


def test_a_full_disk_is_etcds_full_space() -> None:
    error = from_problem(ProblemError("storage_full", "the disk is full"))
    assert (error.code, error.message) == (
        RESOURCE_EXHAUSTED,
        "etcdserver: mvcc: database space exceeded",
    )
