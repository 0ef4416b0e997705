"""What the load generator is told and what it answers: plain structs, sent as JSON."""

from __future__ import annotations

from typing import Literal

import msgspec

from bench.histogram import Latency

Api = Literal["onecopy", "etcd", "redis", "nats", "pysyncobj", "bare"]
Kind = Literal["keys", "txn", "keep_alive"]


class Caller(msgspec.Struct, frozen=True):
    """As whom onecopy is asked: the authority of its certificates ("": no TLS), and a token."""

    cacert: str = ""
    token: str = ""


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """Which requests are made. All of them are rendered before the measurement.

    `write_share` of the requests are writes, the others reads of keys that exist. `conditional`:
    each write is a compare-and-set on the revision that the last answer gave (only onecopy; a key
    for each connection; these requests get their revision when they are sent). `copies`: how many
    replicas a Redis write waits for. `query` and `read_query` are added to onecopy's URLs.
    `fresh`: every write makes a new key (numbers are counted up and rendered when sent).
    `drawn`: each request's key is drawn from all of them when it is sent; else from as many as are
    rendered beforehand, which is less than there are of a large state. Plain reads and writes only.
    `posts`: (path, JSON document) of the requests that are sent in turn, instead of any on keys.
    `kind`: reads and writes of keys, or (onecopy and etcd) transactions that write two keys if the
    first exists, or keep-alives of `leases`, so many in a request as `batch` says.
    """

    api: Api
    kind: Kind = "keys"
    write_share: float = 1.0
    value_bytes: int = 100
    keys: int = 1000
    prefix: str = "b"
    query: str = ""
    read_query: str = ""
    conditional: bool = False
    fresh: bool = False
    drawn: bool = False
    serializable: bool = False
    copies: int = 2
    leases: tuple[str, ...] = ()
    batch: int = 1
    seed: int = 1
    posts: list[tuple[str, str]] = []
    caller: Caller = Caller()


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where connections go."""

    host: str
    port: int
    connections: int


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """One worker's task. `rate_per_s` = 0: closed loop. Times are CLOCK_MONOTONIC, nanoseconds.

    What is answered in [measure_ns, end_ns) counts; `bucket_ms` is the width of the timeline's
    steps, from `measure_ns` on. `keep_keys`: return the numbers of the fresh keys whose writes
    were acknowledged.
    """

    workload: Workload
    targets: list[Target]
    rate_per_s: float = 0.0
    bucket_ms: int = 1000
    keep_keys: bool = False
    first_key: int = 0


class Bucket(msgspec.Struct, kw_only=True):
    """A step of the timeline: operations answered in it, and their longest latency."""

    count: int = 0
    max_ms: float = 0.0


class Outcome(msgspec.Struct, kw_only=True):
    """What a worker, or several together, measured.

    `late_us`: how far the open loop's own clock fell behind, at worst. `errors` by kind; an
    operation that failed is in no histogram. `cpu_s` is the generator's own.
    """

    seconds: float
    operations: int
    errors: dict[str, int]
    latency: Latency
    timeline: list[Bucket]
    cpu_s: float
    late_us: int = 0
    unsent: int = 0
    acknowledged: list[int] = []

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.operations / self.seconds if self.seconds else 0.0
