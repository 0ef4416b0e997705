"""Which node the client asks next."""

from __future__ import annotations

import pytest

from cluster.client_endpoints import PENALTY_MAX_S, Endpoints, normalize_endpoint

A, B, C = "http://a:1", "http://b:1", "http://c:1"


def test_the_first_given_is_asked_first_and_again() -> None:
    endpoints = Endpoints([A, B])
    assert [endpoints.pick(0), endpoints.pick(1)] == [A, A]


def test_one_that_failed_is_avoided_and_longer_each_time() -> None:
    endpoints = Endpoints([A, B])
    endpoints.failed(A, 0)
    assert endpoints.pick(0.05) == B
    assert endpoints.pick(0.11) == A
    endpoints.failed(A, 0.11)
    assert endpoints.pick(0.25) == B
    assert endpoints.pick(0.32) == A
    for moment in range(100):
        endpoints.failed(A, moment)
    assert endpoints.pick(99 + PENALTY_MAX_S - 0.1) == B
    assert endpoints.pick(99 + PENALTY_MAX_S) == A


def test_when_all_have_failed_the_first_to_be_free_is_asked() -> None:
    endpoints = Endpoints([A, B])
    endpoints.failed(A, 0)
    endpoints.failed(B, 0.01)
    assert not endpoints.has_fresh(0.02)
    assert endpoints.pick(0.02) == A
    assert endpoints.has_fresh(0.105)


def test_the_primary_is_learned_and_preferred() -> None:
    endpoints = Endpoints([A])
    endpoints.learn({"n1": "a:1", "n2": "b:1"}, "n2")
    assert (endpoints.urls, endpoints.pick(0)) == ((A, B), B)
    assert endpoints.url_of("n2") == B
    endpoints.prefer_node("n1")
    assert endpoints.pick(0) == A
    endpoints.prefer_node("n9")
    assert endpoints.pick(0) == A


def test_an_unreachable_primary_is_not_preferred_again_until_it_answers() -> None:
    endpoints = Endpoints([A])
    endpoints.learn({"n1": "a:1", "n2": "b:1"}, "n2")
    endpoints.failed(B, 0)
    endpoints.worked(A)
    endpoints.learn({"n1": "a:1", "n2": "b:1"}, "n2")
    assert endpoints.pick(100) == A
    endpoints.worked(B)
    assert endpoints.pick(100) == B


def test_given_endpoints_stay_and_learned_ones_go() -> None:
    endpoints = Endpoints([A])
    endpoints.learn({"n2": "b:1"}, "n2")
    endpoints.learn({"n3": "c:1"}, "")
    assert endpoints.urls == (A, C)
    assert endpoints.pick(0) == A


def test_nothing_is_learned_behind_https() -> None:
    endpoints = Endpoints(["https://proxy"])
    endpoints.learn({"n1": "a:1"}, "n1")
    assert endpoints.urls == ("https://proxy",)


def test_endpoints_are_written_in_one_way() -> None:
    assert normalize_endpoint(" a:1 ") == A
    assert normalize_endpoint("http://a:1/") == A
    assert normalize_endpoint("https://[::1]:1") == "https://[::1]:1"
    for wrong in ("", "http://", "ftp://a", "http://a/b", "http://a?x", "http://u@a", "a b"):
        with pytest.raises(ValueError, match="is no endpoint"):
            normalize_endpoint(wrong)
