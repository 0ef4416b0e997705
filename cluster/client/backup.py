"""A backup as a node writes it, for `onecopy backup`."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import aiohttp

from cluster.client.aio import AsyncClient
from cluster.client.errors import ClientError, InvalidRequestError, UnavailableError
from cluster.client.exchange import Request, raise_for
from cluster.client.retries import Transport

BACKUP_BEGIN_MARGIN_S = 30.0
"""How long a node may take to begin a backup, once it has caught up."""
BACKUP_SILENCE_S = 120.0
"""A backup of which nothing comes for so long has broken off."""


async def backup_pieces(
    client: AsyncClient, *, stale: bool, timeout_ms: int
) -> AsyncGenerator[bytes, None]:
    """Yield a backup of the whole state at one revision, from the first node that begins one.

    Whether it is whole, its own last block says (`datapath.storage.backup_format`). `stale` takes
    what the node holds. `timeout_ms` is for the beginning.

    Raises UnavailableError: no node began it, or it broke off; InvalidRequestError: only witnesses
    are known; NotAppliedError: it is refused.
    """
    transport = client._transport
    response = await _begin(transport, "stale" if stale else "linearizable", timeout_ms)
    try:
        while piece := await response.content.readany():
            yield piece
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise UnavailableError(
            f"the backup broke off: {error or 'nothing came'}", code="disconnected"
        ) from error
    finally:
        response.close()


async def _begin(transport: Transport, consistency: str, timeout_ms: int) -> aiohttp.ClientResponse:
    """Have a node begin: ask those that are known in turn, each once."""
    call = Request(
        "GET", f"/v1/backup?consistency={consistency}&timeout_ms={timeout_ms}", waits=False
    )
    asked: set[str] = set()
    failure: ClientError | None = None
    for is_last in (False, True):
        if is_last:
            await transport.discover()  # perhaps there are others than witnesses
        for url in [url for url in transport.endpoints.urls if url not in asked]:
            asked.add(url)
            try:
                reply, response = await transport.open_stream(
                    url,
                    call,
                    begin_timeout_s=timeout_ms / 1000 + BACKUP_BEGIN_MARGIN_S,
                    silence_s=BACKUP_SILENCE_S,
                )
                if response is not None:
                    return response
                raise_for(call, reply)
            except UnavailableError as error:
                if error.status or failure is None:  # what a node says tells more
                    failure = error
            except InvalidRequestError as error:
                if error.code != "no_data":
                    raise
                failure = failure or error
    if failure is None:
        raise UnavailableError("no node is known", code="unreachable")
    raise failure
