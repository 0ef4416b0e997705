"""The services in `examples/services`, on three real nodes of which the primary is killed."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from examples.services.cron import Cron
from examples.services.ids import Ids
from examples.services.jobs import Jobs
from examples.services.limiter import Limiter
from examples.services.shop import Order, Shop
from onecopy import RefusedError
from onecopy.testing import LocalCluster

pytestmark = pytest.mark.slow  # real nodes

SERVICES = Path(__file__).resolve().parents[3] / "examples" / "services"
CLASSES = {
    "cron": "cron:Cron", "ids": "ids:Ids", "jobs": "jobs:Jobs", "limiter": "limiter:Limiter",
    "shop": "shop:Shop",
}  # fmt: skip
DEADLINE_S = 30.0


class Payments(BaseHTTPRequestHandler):
    """The shop's payment server: charges an order once, however often it is asked to."""

    charges: ClassVar[Counter[str]] = Counter()
    requests: ClassVar[Counter[str]] = Counter()
    lock: ClassVar[threading.Lock] = threading.Lock()

    def do_POST(self) -> None:
        order = self.path.rpartition("/")[2]
        with self.lock:
            self.requests[order] += 1
            self.charges[order] = 1
        time.sleep(0.005)
        body = f"receipt-{order}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def payments(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Payments]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Payments)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("SHOP_PAYMENTS", f"http://127.0.0.1:{server.server_address[1]}")
    Payments.charges.clear()
    Payments.requests.clear()
    yield Payments
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def cluster(tmp_path: Path, payments: type[Payments]) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path / "cluster", services=CLASSES, path=SERVICES) as started:
        yield started


def test_the_shop_sells_each_order_once_and_no_more_than_it_has(
    cluster: LocalCluster, payments: type[Payments]
) -> None:
    """Kills and retries in the middle of outside calls."""
    halves, stock = (range(60), range(60, 120)), 100
    client = cluster.client(timeout_ms=30_000)
    client.service(Shop).restock(item="apple", count=stock)
    sold: dict[str, Order] = {}

    def buy(number: int) -> bool:
        order_id = f"o{number:03}"
        try:
            sold[order_id] = client.service(Shop).order(order_id=order_id, item="apple")
        except RefusedError as error:
            return error.code != "sold_out"
        return True

    with ThreadPoolExecutor(8) as pool:
        results = []
        for orders in halves:
            before = sum(payments.charges.values())
            results += [pool.submit(buy, number) for number in orders]
            wait_for(lambda before=before: sum(payments.charges.values()) >= before + 20)
            killed = cluster.primary()
            cluster.kill(killed)
            cluster.start(killed)
            cluster.wait_in_sync()
        assert sum(result.result() for result in results) == stock
    shop = client.service(Shop)
    assert shop.stock(item="apple") == 0
    kept = shop.orders()
    assert {order.id: order for order in kept} == sold
    assert len(kept) == stock
    assert set(payments.charges.values()) == {1}
    assert set(sold) <= set(payments.charges)
    cluster.wait_equal()


def wait_for(condition: object) -> None:
    assert callable(condition)
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "in time"
        time.sleep(0.02)


def test_ids_limits_jobs_and_cron_over_a_failover(cluster: LocalCluster) -> None:
    client = cluster.client(timeout_ms=20_000)
    ids, limiter, jobs, cron = (
        client.service(Ids), client.service(Limiter), client.service(Jobs), client.service(Cron),
    )  # fmt: skip
    cron.schedule(name="hello", command="echo hello", seconds=1)
    taken = [ids.take(name="user", count=3).first for _ in range(20)]
    assert limiter.take(name="login", per_second=0.001, burst=2) == 1
    numbers = [jobs.add(payload=f"job {number}") for number in range(5)]
    lost = jobs.take(seconds=0.1)
    assert lost is not None
    wait_for(cron.listed)
    cluster.kill(cluster.primary())
    taken += [ids.take(name="user", count=3).first for _ in range(20)]
    assert taken == list(range(1, 121, 3))
    assert ids.following(name="user") == 121
    assert limiter.take(name="login", per_second=0.001, burst=2) < 1
    with pytest.raises(RefusedError) as caught:
        limiter.take(name="login", per_second=0.001, burst=2)
    assert caught.value.code == "too_often"
    wait_for(lambda: len(jobs.jobs(state="waiting")) == 5)  # what its worker has let go
    with pytest.raises(RefusedError, match="not yours any more"):
        jobs.done(number=lost.number, token=lost.token)
    done = []
    while (job := jobs.take()) is not None:
        jobs.done(number=job.number, token=job.token, result="well")
        done.append(job.number)
    assert sorted(done) == numbers
    assert [job.tries for job in jobs.jobs(state="done")] == [2, 1, 1, 1, 1]
    due = [item.due for item in cron.listed(limit=1000)]
    wait_for(lambda: len(cron.listed(limit=1000)) > len(due))
    due = [item.due for item in cron.listed(limit=1000)]
    assert len(due) == len(set(due))
