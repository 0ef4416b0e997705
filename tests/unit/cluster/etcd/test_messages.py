"""Requests of etcd's gateway, as protobuf's JSON form allows them."""

from __future__ import annotations

import pytest

from cluster.etcd.errors import INVALID_ARGUMENT, EtcdError
from cluster.etcd.messages import (
    Compare,
    EtcdTxnRequest,
    LeaseIdRequest,
    PutRequest,
    RangeRequest,
    read_message,
    read_messages,
)


@pytest.mark.parametrize(
    ("body", "key"),
    [
        ('{"key": "Zm9v"}', b"foo"),
        ('{"key": "Zm8"}', b"fo"),
        ('{"key": "_-8="}', b"\xff\xef"),
        ('{"key": "/+8="}', b"\xff\xef"),
        ('{"key": ""}', b""),
        ('{"key": null}', b""),
        ("{}", b""),
        ("", b""),
        ('  {"key": "Zm9v"} and more', b"foo"),
        ('{"key": "Zm9v", "unknown": {"a": [1]}, "unknown": 2}', b"foo"),
    ],
)
def test_a_key(body: str, key: bytes) -> None:
    assert read_message(RangeRequest, body.encode()).key == key


@pytest.mark.parametrize("number", ["7", '"7"', "7.0", "7e0", '"7.00"', '"0.7E+1"', '"700e-2"'])
def test_a_number(number: str) -> None:
    assert read_message(RangeRequest, f'{{"limit": {number}}}'.encode()).limit == 7


@pytest.mark.parametrize("number", ["1e99999999999999999999", "1e19", '"1e19"', "0.5", '"1e-9"'])
def test_no_number_of_64_bits(number: str) -> None:
    with pytest.raises(EtcdError):
        read_message(RangeRequest, f'{{"limit": {number}}}'.encode())


def test_fields_go_by_both_names() -> None:
    for name in ("prev_kv", "prevKv"):
        assert read_message(PutRequest, f'{{"{name}": true}}'.encode()).prev_kv


def test_enumerations_go_by_name_and_number() -> None:
    body = b'{"sort_order": "DESCEND", "sort_target": 3}'
    request = read_message(RangeRequest, body)
    assert (request.sort_order, request.sort_target) == ("DESCEND", "MOD")
    assert read_message(RangeRequest, b'{"sort_order": "WHAT"}').sort_order == "NONE"
    assert read_message(RangeRequest, b'{"sort_order": 9}').sort_order == 9


def test_messages_within_messages() -> None:
    body = b"""{"compare": [{"key": "YQ==", "target": "VALUE", "value": "MQ=="}],
        "success": [{"requestTxn": {"failure": [{"request_put": {"key": "Yg=="}}]}}]}"""
    request = read_message(EtcdTxnRequest, body)
    assert request.compare == (Compare(key=b"a", target="VALUE", value=b"1"),)
    [op] = request.success
    assert op.request_txn is not None
    assert op.request_txn.failure[0].request_put == PutRequest(key=b"b")


@pytest.mark.parametrize(
    ("kind", "body", "place"),
    [
        (RangeRequest, '{"key": 5}', "key"),
        (RangeRequest, '{"key": "Y!=="}', "key"),
        (RangeRequest, '{"limit": "01"}', "limit"),
        (RangeRequest, '{"limit": 1.5}', "limit"),
        (RangeRequest, '{"limit": 9223372036854775808}', "limit"),
        (RangeRequest, '{"limit": true}', "limit"),
        (RangeRequest, '{"limit": NaN}', "NaN"),
        (RangeRequest, '{"keys_only": "true"}', "keys_only"),
        (RangeRequest, '{"key": "YQ==", "key": "YQ=="}', "key"),
        (RangeRequest, '{"range_end": "YQ==", "rangeEnd": "YQ=="}', "range_end"),
        (RangeRequest, "[]", "object"),
        (RangeRequest, "{", "syntax"),
        (EtcdTxnRequest, '{"compare": {}}', "compare"),
        (EtcdTxnRequest, '{"compare": [1]}', r"compare\[0\]"),
        (EtcdTxnRequest, '{"compare": [{"version": 1, "lease": 1}]}', r"compare\[0\].lease"),
        (
            EtcdTxnRequest,
            '{"success": [{"request_put": {"key": 1}}]}',
            r"success\[0\].request_put.key",
        ),
    ],
)
def test_what_is_wrong_is_named(kind: type[RangeRequest], body: str, place: str) -> None:
    with pytest.raises(EtcdError, match=place) as caught:
        read_message(kind, body.encode())
    assert (caught.value.code, caught.value.status) == (INVALID_ARGUMENT, 400)


@pytest.mark.parametrize("depth", [40, 100_000])
def test_nesting_has_a_bound(depth: int) -> None:
    body = '{"success": [{"request_txn": ' * depth + "{}" + "}]}" * depth
    with pytest.raises(EtcdError, match=r"nested|depth"):
        read_message(EtcdTxnRequest, body.encode())


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(EtcdError, match="UTF-8"):
        read_message(RangeRequest, b'{"key": "\xff"}')


def test_a_stream_has_many_messages() -> None:
    found = read_messages(LeaseIdRequest, b'{"ID": 1}\n{"ID": "2"} {"ID": 3}')
    assert [message.ID for message in found] == [1, 2, 3]
    assert len(read_messages(LeaseIdRequest, b"{}" * 100)) == 16
