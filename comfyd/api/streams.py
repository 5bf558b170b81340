"""What open-ended answers share: they end when the server closes or the peer has gone.

Owns: the closing flag of the application. Must not: buffer; a slow reader is waited for, then dropped.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from aiohttp import web

CLOSING: web.AppKey[asyncio.Event] = web.AppKey("closing", asyncio.Event)
STALLED_READER_S = 30.0


def ended(request: web.Request) -> bool:
    """The peer has gone or the server closes."""
    return request.transport is None or request.transport.is_closing() or request.config_dict[CLOSING].is_set()


async def first_of(request: web.Request, *waits: Coroutine[Any, Any, Any], timeout: float | None = None) -> None:
    """Return when one of `waits` is done, the server closes, or `timeout` seconds are over."""
    closing = request.config_dict[CLOSING]
    tasks = [asyncio.ensure_future(one) for one in (*waits, closing.wait())]
    try:
        done, _ = await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        for one in done:
            one.result()
    finally:
        for one in tasks:
            one.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def write(response: web.StreamResponse, request: web.Request, data: bytes) -> None:
    """Write or, where the reader stalls, drop the connection. Raises ConnectionResetError then."""
    try:
        async with asyncio.timeout(STALLED_READER_S):
            await response.write(data)
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the reader stalled") from None
