"""The log of one instance: its end, and what is appended while somebody follows.

Owns: reading log files without following links. Must not: buffer more than one block per reader.
"""

import asyncio
import os
import stat
from typing import Annotated

from aiohttp import web
from pydantic import Field

from comfyd.api.operation import Call, op
from comfyd.api.streams import ended, first_of, write
from comfyd.api.views import find_instance
from comfyd.api.wire import Ask
from comfyd.errors import ComfydError

MAX_TAIL_BYTES = 1024 * 1024
MAX_LINES = 10_000
BLOCK = 64 * 1024
FOLLOW_PAUSE_S = 0.25


class LogQuery(Ask):
    tail: Annotated[int, Field(ge=0, le=MAX_LINES, description="lines from the end")] = 200
    follow: Annotated[bool, Field(description="go on with what is appended")] = False


@op(
    "GET", "/api/comfyui/instances/{ref}/logs", scope="client", query=LogQuery, response=None, media="text/plain",
    errors=(404,),
)  # fmt: skip
async def instance_logs(call: Call[None, LogQuery]) -> web.StreamResponse:
    """The last lines of an instance's log, at most 1 MiB; with follow=1 also everything appended later."""
    found = find_instance(call.context, call.path("ref"))
    if found.log is None:
        raise ComfydError(f"instance {found.name!r} has no log", code="not_found")
    fd = await asyncio.to_thread(_open, found.log)
    if fd is None:
        if not call.query.follow:
            return web.Response(text="", content_type="text/plain", charset="utf-8")
        raise ComfydError(f"instance {found.name!r} has not written a log yet", code="not_found", retryable=True)
    try:
        data, offset = await asyncio.to_thread(_tail, fd, call.query.tail)
        if not call.query.follow:
            return web.Response(body=data, content_type="text/plain", charset="utf-8")
        return await _follow(call.request, fd, data, offset)
    finally:
        os.close(fd)


def _open(path: str) -> int | None:
    """A descriptor of the regular file at `path`; None if there is none. Never blocks, never follows a link."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None


def tail_lines(path: str, lines: int) -> bytes:
    """The last `lines` lines of the file at `path`, empty if it cannot be read. Blocks; for a thread."""
    fd = _open(path)
    if fd is None:
        return b""
    try:
        return _tail(fd, lines)[0]
    finally:
        os.close(fd)


def _tail(fd: int, lines: int) -> tuple[bytes, int]:
    """The last `lines` lines within the cap, and the offset behind them."""
    size = os.fstat(fd).st_size
    start = max(0, size - MAX_TAIL_BYTES)
    data = os.pread(fd, size - start, start)
    end = start + len(data)
    if start:
        data = data[data.find(b"\n") + 1 :]
    if lines == 0:
        return b"", end
    cut = len(data) - 1 if data.endswith(b"\n") else len(data)
    for _ in range(lines):
        cut = data.rfind(b"\n", 0, cut)
        if cut < 0:
            return data, end
    return data[cut + 1 :], end


async def _follow(request: web.Request, fd: int, data: bytes, offset: int) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8", "X-Accel-Buffering": "no"})
    await response.prepare(request)
    try:
        while not ended(request):
            if data:
                await write(response, request, data)
            else:
                await first_of(request, timeout=FOLLOW_PAUSE_S)
            data, offset = await asyncio.to_thread(_more, fd, offset)
    except ConnectionResetError:
        return response
    await response.write_eof()
    return response


def _more(fd: int, offset: int) -> tuple[bytes, int]:
    """At most one block from `offset`; a file that became shorter was truncated and is read from its start."""
    if os.fstat(fd).st_size < offset:
        offset = 0
    data = os.pread(fd, BLOCK, offset)
    return data, offset + len(data)
