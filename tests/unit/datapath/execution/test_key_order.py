"""The keys of writes in order, beside a plain sort of them."""

from __future__ import annotations

import random
from collections.abc import Iterator

from datapath.execution.key_order import SORTED_AT_ONCE, KeyOrder, Place


class CountedDict(dict[Place, object]):
    """Counts the places that are looked at one after the other."""

    looked_at = 0

    def __reversed__(self) -> Iterator[Place]:
        for place in super().__reversed__():
            self.looked_at += 1
            yield place


def test_it_gives_the_places_of_a_range_in_order_whatever_has_come_meanwhile() -> None:
    draw = random.Random(1)
    order, writes = KeyOrder(), dict[Place, object]()
    for _ in range(400):
        for _ in range(draw.choice((0, 1, 3, SORTED_AT_ONCE + 1))):
            writes[draw.randrange(3), b"%03d" % draw.randrange(1000)] = None
        if draw.random() < 0.1:
            for place in draw.sample(list(writes), len(writes) // 2):
                del writes[place]
            order.reset()
        keyspace = draw.randrange(3)
        start, end = sorted(b"%03d" % draw.randrange(1000) for _ in range(2))
        wanted = [(keyspace, key) for number, key in writes if number == keyspace]
        within = sorted(place for place in wanted if start <= place[1] < end)
        above = sorted(place for place in wanted if start <= place[1])
        assert list(order.between(writes, keyspace, start, end)) == within
        assert list(order.between(writes, keyspace, start, None)) == above


def test_an_operation_that_writes_and_reads_ranges_in_turn_looks_at_each_write_once() -> None:
    order, writes = KeyOrder(), CountedDict()
    for number in range(1000):
        key = b"%04d" % number
        writes[1, key] = None
        assert order.between(writes, 1, key, None) == [(1, key)]
    assert writes.looked_at == 1000
