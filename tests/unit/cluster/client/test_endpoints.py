"""Which node the client asks next."""

from __future__ import annotations

import pytest

from cluster.client.endpoints import LEARNED_MAX, PENALTY_MAX_S, Endpoints, normalize_endpoint

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
    endpoints.learn({"n1": "a:1", "n2": "b:1"}, "n2", A)
    endpoints.proved(B)
    assert (endpoints.urls, endpoints.pick(0)) == ((A, B), B)
    assert endpoints.url_of("n2") == B
    endpoints.prefer_node("n1")
    assert endpoints.pick(0) == A
    endpoints.prefer_node("n9")
    assert endpoints.pick(0) == A


def test_an_unreachable_primary_is_not_preferred_again_until_it_answers() -> None:
    endpoints = Endpoints([A])
    endpoints.learn({"n1": "a:1", "n2": "b:1"}, "n2", A)
    endpoints.proved(B)
    endpoints.failed(B, 0)
    endpoints.worked(A)
    endpoints.learn({"n1": "a:1", "n2": "b:1"}, "n2", A)
    endpoints.proved(B)
    assert endpoints.pick(100) == A
    endpoints.worked(B)
    assert endpoints.pick(100) == B


def test_given_endpoints_stay_and_learned_ones_go() -> None:
    endpoints = Endpoints([A])
    endpoints.learn({"n1": "a:1", "n2": "b:1"}, "n2", A)
    endpoints.proved(B)
    endpoints.learn({"n1": "a:1", "n3": "c:1"}, "", A)
    endpoints.proved(C)
    assert endpoints.urls == (A, C)
    assert endpoints.pick(0) == A


def test_a_learned_address_is_used_only_once_it_is_proved() -> None:
    endpoints = Endpoints([A])
    endpoints.learn({"n1": "a:1", "n2": "b:1"}, "n2", A)
    endpoints.failed(A, 0)
    assert (endpoints.urls, endpoints.unproved) == ((A,), (B,))
    assert endpoints.pick(0.01) == A
    assert not endpoints.has_fresh(0.01)
    endpoints.prefer_node("n2")
    endpoints.worked(B)
    assert endpoints.pick(1) == A
    assert endpoints.url_of("n2") == B
    endpoints.proved(B)
    assert (endpoints.urls, endpoints.unproved) == ((A, B), ())
    assert endpoints.pick(1) == B, "it is the primary"


def test_a_learned_address_of_another_cluster_is_left() -> None:
    endpoints = Endpoints([A])
    endpoints.learn({"n1": "a:1", "n2": "b:1"}, "n2", A)
    endpoints.proved(B)
    endpoints.disown(B)
    assert (endpoints.urls, endpoints.pick(0)) == ((A,), A)
    endpoints.disown(A)
    assert endpoints.urls == (A,), "what was given stays, and every call says what is wrong"


def test_whoever_was_given_other_addresses_stays_behind_them() -> None:
    proxy = Endpoints(["http://proxy:80"])
    proxy.learn({"n1": "a:1", "n2": "b:1"}, "n1", "http://proxy:80")
    assert (proxy.urls, proxy.unproved, proxy.url_of("n1")) == (("http://proxy:80",), (), None)
    both = Endpoints(["http://proxy:80", A])
    both.learn({"n1": "a:1", "n2": "b:1"}, "n1", "http://proxy:80")
    assert not both.unproved
    both.learn({"n1": "a:1", "n2": "b:1"}, "n1", A)
    assert both.unproved == (B,)


@pytest.mark.parametrize("given", ["http://localhost:1", "http://127.0.0.1:1", "http://[::1]:1"])
@pytest.mark.parametrize("advertised", ["localhost:1", "127.0.0.1:1", "[::1]:1"])
def test_this_machine_has_several_names(given: str, advertised: str) -> None:
    endpoints = Endpoints([given])
    endpoints.learn({"n1": advertised, "n2": "127.0.0.1:2"}, "n1", given)
    assert "http://127.0.0.1:2" in endpoints.unproved
    elsewhere = Endpoints([given])
    elsewhere.learn({"n1": "localhost.example:1", "n2": "127.0.0.1:2"}, "n1", given)
    assert not elsewhere.unproved


def test_nodes_of_https_are_learned_by_https() -> None:
    endpoints = Endpoints(["https://a:1", "b:1"], scheme="https")
    endpoints.learn({"n1": "a:1", "n3": "c:1"}, "n1", "https://a:1")
    assert endpoints.urls == ("https://a:1", "https://b:1")
    assert endpoints.unproved == ("https://c:1",)


def test_nothing_is_learned_of_two_schemes_or_if_told_not_to() -> None:
    for endpoints in (Endpoints(["https://a:1", A]), Endpoints([A], discover=False)):
        endpoints.learn({"n1": "a:1", "n2": "b:1"}, "n1", endpoints.urls[0])
        assert not endpoints.learns
        assert not endpoints.unproved


def test_what_is_learned_is_bounded_and_what_is_no_address_is_left_out() -> None:
    endpoints = Endpoints([A])
    endpoints.learn({"n1": "a:1", "n2": "not an address", "n3": "c:1"}, "n1", A)
    assert endpoints.unproved == (C,)
    many = {f"n{number}": f"host{number}:1" for number in range(1000)} | {"n0": "a:1"}
    endpoints.learn(many, "n1", A)
    assert len(endpoints.unproved) < LEARNED_MAX


def test_endpoints_are_written_in_one_way() -> None:
    assert normalize_endpoint(" a:1 ") == A
    assert normalize_endpoint("http://a:1/") == A
    assert normalize_endpoint("HTTP://a:1") == A
    assert normalize_endpoint("https://[::1]:1") == "https://[::1]:1"
    for wrong in (
        "",
        "http://",
        "ftp://a",
        "http://a/b",
        "http://a?x",
        "http://u@a",
        "a b",
        "a:0",
        "a:65536",
    ):
        with pytest.raises(ValueError, match="is not an endpoint"):
            normalize_endpoint(wrong)


def test_a_node_that_was_removed_still_leads_to_the_others() -> None:
    endpoints = Endpoints([A])
    endpoints.learn({"n1": "a:1"}, "n1", A)
    endpoints.learn({"n2": "b:1", "n3": "c:1"}, "n2", A)
    assert endpoints.unproved == (B, C)
    endpoints.proved(C)
    endpoints.learn({}, "", C)
    assert endpoints.urls == (A, C), "who knows no view takes no address away"


@pytest.mark.parametrize(
    ("failed", "worked", "hopeless"), [([A], [], False), ([A, B], [], True), ([A, B], [A], False)]
)
def test_tls_is_hopeless_once_it_has_failed_with_all(
    failed: list[str], worked: list[str], hopeless: bool
) -> None:
    endpoints = Endpoints([A, B])
    for url in failed:
        endpoints.failed(url, 0.0, no_tls=True)
    for url in worked:
        endpoints.worked(url)
    assert endpoints.no_tls is hopeless
