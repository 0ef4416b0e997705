"""A shop that sells what it has, and has each order paid by another server.

    [services.shop]
    class = "shop:Shop"

`order` calls out while it runs. If the primary dies meanwhile, nothing of the order is kept, and
the client's retry runs it again: the outside call may be made twice. So it carries the order's id,
under which the payment server charges once: what lies outside needs its own way to know a repeat.
"""

from __future__ import annotations

import os

import aiohttp
import msgspec

from onecopy import ReadTransaction, RejectedError, Service, Transaction, operation, query

PAYMENTS = os.environ.get("SHOP_PAYMENTS", "http://127.0.0.1:8900")


class Order(msgspec.Struct):
    """What was sold; `receipt` is the payment server's."""

    id: str
    item: str
    count: int
    receipt: str


class Shop(Service):
    """Stock, and orders that were paid."""

    @operation
    def restock(self, tx: Transaction, item: str, count: int) -> int:
        """Add to the stock; return how much there is."""
        stock = _stock(tx, item) + count
        tx.put(b"stock/" + item.encode(), str(stock).encode())
        return stock

    @operation
    async def order(self, tx: Transaction, order_id: str, item: str, count: int = 1) -> Order:
        """Sell. An order that is there already is returned, not sold again."""
        key = b"order/" + order_id.encode()
        if (held := tx.get(key)) is not None:
            return msgspec.json.decode(held, type=Order)
        stock = _stock(tx, item)
        if stock < count:
            raise RejectedError("sold_out", f"only {stock} of {item} are left")
        receipt = await _pay(order_id, count)
        order = Order(order_id, item, count, receipt)
        tx.put(b"stock/" + item.encode(), str(stock - count).encode())
        tx.put(key, msgspec.json.encode(order))
        return order

    @query
    def stock(self, tx: ReadTransaction, item: str) -> int:
        """Return how much there is."""
        return _stock(tx, item)

    @query
    def orders(self, tx: ReadTransaction, after: str = "", limit: int = 1000) -> list[Order]:
        """Return orders by id, those that follow `after`."""
        start = b"order/" + after.encode() + (b"\0" if after else b"")
        return [
            msgspec.json.decode(value, type=Order)
            for _, value in tx.range(start, b"order0", limit)  # "0" follows "/"
        ]


def _stock(tx: ReadTransaction, item: str) -> int:
    return int(tx.get(b"stock/" + item.encode()) or b"0")


async def _pay(order_id: str, count: int) -> str:
    """Have an order paid, once. Raises RejectedError where the payment server refuses."""
    timeout = aiohttp.ClientTimeout(total=1.0)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.post(f"{PAYMENTS}/pay/{order_id}", json={"count": count}) as answer,
    ):
        text = await answer.text()
        if answer.status != 200:
            raise RejectedError("not_paid", f"the payment server says: {text}")
        return text
