"""Secrets that a person has typed are told from those that a generator has drawn."""

from __future__ import annotations

import base64
import secrets

import pytest

from cluster.config.secret_strength import MIN_SECRET_BITS, estimated_bits

WEAK = (
    "aaaaaaaaaaaaaaaa",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "abababababababababababab",
    "0123456789abcdef",
    "0123456789abcdef0123456789abcdef",
    "fedcba9876543210fedcba9876543210",
    "passwordpassword",
    "Password12345678",
    "P@ssw0rd-P@ssw0rd-1",
    "change-me-please-now",
    "changemechangeme",
    "correct horse battery",
    "my cluster secret!",
    "qwertyuiopasdfghjkl",
    "1qaz2wsx1qaz2wsx",
    "123456789012345678901234",
    "2026-11-27 12:00:00",
    "onecopy-secret-2026",
    "the quick brown fox",
    "0000000000000001",
    "aaaaaaaabbbbbbbbcccccccc",
    "AAAAAAAAAAAAAAAAAAAAA1b!",
)


@pytest.mark.parametrize("secret", WEAK)
def test_what_is_typed_is_weak(secret: str) -> None:
    assert estimated_bits(secret.encode()) < MIN_SECRET_BITS


def test_what_is_drawn_is_strong() -> None:
    for _ in range(100):
        for secret in (
            secrets.token_hex(16),
            secrets.token_hex(32),
            secrets.token_urlsafe(16),
            base64.b64encode(secrets.token_bytes(32)).decode(),
        ):
            assert estimated_bits(secret.encode()) >= MIN_SECRET_BITS, secret
        assert estimated_bits(secrets.token_bytes(24)) >= MIN_SECRET_BITS


def test_a_long_secret_takes_little_time() -> None:
    assert estimated_bits(b"ab" * 4096) < MIN_SECRET_BITS
