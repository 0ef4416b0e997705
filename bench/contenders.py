"""Contenders for one lock over HTTP: how long from a holder's release until the next one has it."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections import Counter
from typing import Any

from bench.histogram import figures, from_counts
from bench.peers.process import BenchError, fetch, fetch_json
from bench.render import Request, http, json_request
from bench.replies import check_http
from bench.spec import Api, Outcome

LEASE_S = 60
"""Longer than a measurement: nobody has to keep a lease alive meanwhile."""
_READ_SIZE_BYTES = 65536


def hand_over(
    api: Api, address: str, name: str, *, contenders: int, seconds: float, warm_up_s: float
) -> Outcome:
    """Have contenders take the lock, release it at once and queue again; return the times."""
    leases = [grant(api, address, LEASE_S) for _ in range(contenders)]
    lock = _Lock(api, address, name)
    return asyncio.run(lock.measure(leases, seconds, warm_up_s))


def grant(api: Api, address: str, ttl_s: int) -> str:
    """Grant a lease of so many seconds."""
    if api == "etcd":
        found = fetch_json(address, "POST", "/v3/lease/grant", {"TTL": ttl_s})
        lease: Any = found and found.get("ID")
    else:
        body = json.dumps({"ttl_ms": ttl_s * 1000}).encode()
        reply = fetch(address, "POST", "/v1/leases", body, {"Content-Type": "application/json"})
        lease = json.loads(reply[1]).get("lease") if reply and reply[0] == 201 else None
    if not lease:
        raise BenchError(f"{address} grants no lease")
    return str(lease)


class _Lock:
    """A lock that is handed from one to the next."""

    def __init__(self, api: Api, address: str, name: str) -> None:
        self._api = api
        self._address = address
        self._name = name
        self._released_s = 0.0
        self._times_us: Counter[int] = Counter()
        self._errors: Counter[str] = Counter()
        self._measured_s = (0.0, 0.0)

    async def measure(self, leases: list[str], seconds: float, warm_up_s: float) -> Outcome:
        begin_s = time.monotonic() + warm_up_s
        self._measured_s = begin_s, begin_s + seconds
        cpu_s = time.process_time()
        tasks = [asyncio.create_task(self._contend(lease)) for lease in leases]
        done, waiting = await asyncio.wait(tasks, timeout=warm_up_s + seconds)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for task in done:
            task.result()
        return Outcome(
            seconds=seconds,
            operations=self._times_us.total(),
            errors=dict(self._errors),
            latency=figures(from_counts(self._times_us)),
            timeline=[],
            cpu_s=time.process_time() - cpu_s,
        )

    async def _contend(self, lease: str) -> None:
        host, port = self._address.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        acquire = self._acquire(lease)
        try:
            while True:
                held = await self._ask(reader, writer, acquire)
                now_s = time.monotonic()
                begin_s, end_s = self._measured_s
                if self._released_s and begin_s <= now_s < end_s:
                    self._times_us[round((now_s - self._released_s) * 1e6)] += 1
                self._released_s = time.monotonic()
                await self._ask(reader, writer, self._release(held))
        finally:
            writer.transport.abort()

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: Request
    ) -> Any:
        writer.write(request.data)
        data = b""
        while (error := check_http(data, request)) is None:
            part = await reader.read(_READ_SIZE_BYTES)
            if not part:
                raise BenchError(f"the connection of a contender has ended: {data[:200]!r}")
            data += part
        if error:
            raise BenchError(f"a contender was refused: {error}: {data[:500]!r}")
        body = data.partition(b"\r\n\r\n")[2]
        return json.loads(body[body.index(b"{") : body.rindex(b"}") + 1])

    def _acquire(self, lease: str) -> Request:
        if self._api == "etcd":
            name = base64.b64encode(self._name.encode()).decode()
            return Request(json_request("/v3/lock/lock", {"name": name, "lease": lease}), True)
        wish = {"lease": lease, "wait_ms": LEASE_S * 1000}
        return Request(json_request(f"/v1/locks/{self._name}", wish), write=True)

    def _release(self, held: Any) -> Request:
        if self._api == "etcd":
            return Request(json_request("/v3/lock/unlock", {"key": held["key"]}), write=True)
        return Request(http("DELETE", f"/v1/locks/{self._name}?token={held['token']}"), write=True)
