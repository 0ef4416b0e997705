"""Reading a request's body: bounded in size before it is buffered, and bounded in time."""

from __future__ import annotations

import asyncio

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.web import BaseRequest

from cluster.api.answer import server_of
from cluster.api.memory import Share
from cluster.api.problems import ProblemError


class ClientGoneError(Exception):
    """The client closed the connection before its request was complete."""


class CrowdedOutError(Exception):
    """A body that does not go on was given up to make room for others."""


async def read_body(request: BaseRequest, limit_bytes: int, timeout_ms: int) -> bytes:
    """Return the whole body.

    Raises:
        Problem: value_too_large (by Content-Length before reading, else as soon as the limit is
            passed), request_timeout, malformed_request, expectation_failed, overloaded (there is no
            room for another body, or none any more for one that does not go on).
        ClientGoneError: the client went away before it had sent everything.

    """
    headers = request.headers
    length = headers.get(hdrs.CONTENT_LENGTH)
    if length is not None and int(length) > limit_bytes:  # the parser has checked the digits
        raise _too_large(limit_bytes, f"; Content-Length is {length}")
    content = request.content
    if content.is_eof():  # small bodies come in the same packet as the head
        if hdrs.EXPECT in headers:
            _answer_expect(request)
        body = content.read_nowait()
        if len(body) > limit_bytes:
            raise _too_large(limit_bytes)
        return body
    # Room for the whole body is held before any of it is read: nobody waits with half of one.
    size_bytes = limit_bytes if length is None else int(length)
    share = server_of(request).memory.take(
        size_bytes, lambda: content.set_exception(CrowdedOutError())
    )
    if share is None:
        raise _crowded_out()
    try:
        if hdrs.EXPECT in headers:
            _answer_expect(request)
        async with asyncio.timeout(timeout_ms / 1000):
            return await _read_stream(request, limit_bytes, share)
    except CrowdedOutError:
        raise _crowded_out() from None
    except TimeoutError:
        raise ProblemError(
            "request_timeout", f"the body was not complete after {timeout_ms} ms", closes=True
        ) from None
    except ConnectionError:
        raise ClientGoneError from None
    except web.RequestPayloadError:
        raise ProblemError(
            "malformed_request", "the body's transfer coding is damaged", closes=True
        ) from None
    finally:
        share.resize(0)


async def read_json(
    request: BaseRequest,
    limit_bytes: int,
    timeout_ms: int,
    *,
    needs: str = "the body must come with Content-Type: application/json",
) -> bytes:
    """Return the whole body, which has to be declared as JSON: `needs` says so to who did not.

    Raises Problem "unsupported_media_type", and as `read_body`.
    """
    # Only this type: a web page may send others to any address without asking first.
    content_type = request.headers.get(hdrs.CONTENT_TYPE, "").partition(";")[0].strip()
    if content_type.lower() != "application/json":
        raise ProblemError(
            "unsupported_media_type",
            needs,
            headers=b"Accept: application/json\r\n",
        )
    return await read_body(request, limit_bytes, timeout_ms)


async def _read_stream(request: BaseRequest, limit_bytes: int, share: Share) -> bytes:
    parts: list[bytes] = []
    size_bytes = 0
    content = request.content
    while part := await content.readany():
        share.moved()
        size_bytes += len(part)
        if size_bytes > limit_bytes:  # a chunked body says no length beforehand
            raise _too_large(limit_bytes)
        parts.append(part)
    return b"".join(parts)


def _too_large(limit_bytes: int, found: str = "") -> ProblemError:
    detail = f"the body may have at most {limit_bytes} bytes{found}"
    return ProblemError("value_too_large", detail, closes=True)


def _crowded_out() -> ProblemError:
    detail = (
        "the limit for bodies and unread answers of this node's clients is reached: try again later"
    )
    return ProblemError("overloaded", detail, closes=True)


def _answer_expect(request: BaseRequest) -> None:
    """Let the client go on, unless the body is here already (RFC 9110, 10.1.1)."""
    if request.version < HttpVersion11:
        return
    if request.headers[hdrs.EXPECT].strip().lower() != "100-continue":
        raise ProblemError("expectation_failed", "Expect may only be 100-continue", closes=True)
    transport = request.transport
    if transport is not None and not request.content.is_eof() and not request.content.total_bytes:
        transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
