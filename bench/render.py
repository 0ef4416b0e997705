"""Requests as bytes, rendered beforehand, for each kind of server."""

from __future__ import annotations

import base64
import json
import random

import msgspec

from bench import nats_text
from bench.spec import Caller, Workload

POOL_BYTES_MAX = 32 * 1024 * 1024
POOL_MIN, POOL_MAX = 2048, 16384


class Request(msgspec.Struct, frozen=True, gc=False):
    """One request; `body_bytes` is the length that its answer must have, -1 if it may be any.

    `holds`: what the answer must hold.
    """

    data: bytes
    write: bool
    body_bytes: int = -1
    holds: bytes = b""


def value(size_bytes: int, seed: int) -> bytes:
    """Return a value that does not compress, of printable bytes."""
    return base64.b64encode(random.Random(seed).randbytes(size_bytes))[:size_bytes]


def key(workload: Workload, number: int) -> str:
    """Return the key of a number; all have the same length."""
    return f"{workload.prefix}{number:09}"


def bearer(caller: Caller) -> dict[str, str]:
    """Return the header that shows a caller's token, if it has one."""
    return {"Authorization": f"Bearer {caller.token}"} if caller.token else {}


def http(method: str, path: str, body: bytes = b"", headers: str = "") -> bytes:
    """Return a request of HTTP/1.1."""
    length = f"Content-Length: {len(body)}\r\n" if method != "GET" else ""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}{length}\r\n"
    return head.encode() + body


def resp(*parts: bytes) -> bytes:
    """Return a command of Redis's protocol."""
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(p), p) for p in parts)


def _shown(workload: Workload) -> str:
    return "".join(f"{name}: {text}\r\n" for name, text in bearer(workload.caller).items())


def _b64(text: bytes) -> str:
    return base64.b64encode(text).decode()


def write_request(workload: Workload, name: str, content: bytes) -> Request:
    """Return the request that stores `content` under `name`."""
    match workload.api:
        case "onecopy" | "bare" | "pysyncobj":
            path = f"/v1/kv/{name}{workload.query}"
            return Request(http("PUT", path, content, _shown(workload)), write=True)
        case "etcd":
            body = json.dumps({"key": _b64(name.encode()), "value": _b64(content)}).encode()
            return Request(http("POST", "/v3/kv/put", body), write=True)
        case "redis":
            data = resp(b"SET", name.encode(), content)
            if workload.copies:
                data += resp(b"WAIT", str(workload.copies).encode(), b"5000")
            return Request(data, write=True)
        case "nats":
            return Request(nats_text.put(name, content), write=True, holds=b'"seq":')


def read_request(workload: Workload, name: str) -> Request:
    """Return the request that reads `name`."""
    match workload.api:
        case "onecopy" | "bare" | "pysyncobj":
            path = f"/v1/kv/{name}{workload.read_query}"
            size = -1 if workload.api == "bare" else workload.value_bytes
            data = http("GET", path, headers=_shown(workload))
            return Request(data, write=False, body_bytes=size)
        case "etcd":
            document: dict[str, object] = {"key": _b64(name.encode())}
            if workload.serializable:
                document["serializable"] = True
            return Request(http("POST", "/v3/kv/range", json.dumps(document).encode()), write=False)
        case "redis":
            return Request(
                resp(b"GET", name.encode()), write=False, body_bytes=workload.value_bytes
            )
        case "nats":
            return Request(nats_text.get(name), write=False, holds=b'"data":')


def post(path: str, document: str = "") -> Request:
    """Return a POST of a JSON document."""
    headers = "Content-Type: application/json\r\n" if document else ""
    return Request(http("POST", path, document.encode(), headers), write=True)


def txn_request(workload: Workload, name: str, other: str, content: bytes) -> Request:
    """Return the transaction that writes two keys if the first exists."""
    if workload.api == "onecopy":
        text = content.decode()
        puts = [{"put": {"key": each, "text": text}} for each in (name, other)]
        document: dict[str, object] = {"if": [{"key": name, "exists": True}], "then": puts}
        path = "/v1/txn"
    else:
        compare = {"key": _b64(name.encode()), "target": "CREATE", "result": "GREATER"}
        success = [
            {"request_put": {"key": _b64(each.encode()), "value": _b64(content)}}
            for each in (name, other)
        ]
        document = {"compare": [{**compare, "create_revision": "0"}], "success": success}
        path = "/v3/kv/txn"
    return Request(json_request(path, document), write=True, holds=b'"succeeded":true')


def keep_alive_request(workload: Workload, leases: list[str]) -> Request:
    """Return the keep-alive of one lease, or (onecopy) of several."""
    if workload.api == "etcd":
        data = json_request("/v3/lease/keepalive", {"ID": leases[0]})
        return Request(data, write=True, holds=b'"TTL":"')
    if len(leases) == 1:
        data = http("POST", f"/v1/leases/{leases[0]}/keepalive")
        return Request(data, write=True, holds=b'"ttl_ms":')
    data = json_request("/v1/leases/keepalive", {"leases": leases})
    return Request(data, write=True, holds=b'"gone":[]')


def json_request(path: str, document: object) -> bytes:
    """Return a POST of JSON."""
    return http("POST", path, json.dumps(document).encode(), "Content-Type: application/json\r\n")


def pool(workload: Workload) -> list[Request]:
    """Return the requests to go through, in an order and a mix drawn from the seed."""
    if workload.posts:
        return [post(path, document) for path, document in workload.posts]
    draw = random.Random(workload.seed)
    content = value(workload.value_bytes, workload.seed)
    wanted = min(POOL_MAX, max(POOL_MIN, 2 * workload.keys))
    size = max(64, min(wanted, POOL_BYTES_MAX // (workload.value_bytes + 200)))
    requests = []
    for _ in range(size):
        number = draw.randrange(workload.keys)
        name = key(workload, number)
        if workload.kind == "txn":
            other = key(workload, (number + 1) % workload.keys)
            requests.append(txn_request(workload, name, other, content))
        elif workload.kind == "keep_alive":
            leases = draw.sample(workload.leases, workload.batch)
            requests.append(keep_alive_request(workload, leases))
        elif draw.random() < workload.write_share:
            requests.append(write_request(workload, name, content))
        else:
            requests.append(read_request(workload, name))
    return requests


def fill(workload: Workload) -> list[Request]:
    """Return one write for each key, so that reads find them."""
    content = value(workload.value_bytes, workload.seed)
    return [
        write_request(workload, key(workload, number), content) for number in range(workload.keys)
    ]
