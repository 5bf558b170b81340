"""The log of one instance: its end, and what is appended while somebody follows.

Owns: the stream of one reader. Must not: buffer more than one block per reader; the log files are the buffer.
"""

import asyncio
from pathlib import Path
from typing import Annotated

from aiohttp import web
from pydantic import Field

from comfyd.api.operation import Call, op
from comfyd.api.streams import ended, first_of, write
from comfyd.api.views import find_instance
from comfyd.api.wire import Ask
from comfyd.errors import ComfydError
from comfyd.host.follow import Follower, Found

MAX_LINES = 10_000
FOLLOW_PAUSE_S = 0.25
GAP = b"\n[comfyd: output is missing here, the reader was slower than the log was rotated away]\n"


class LogQuery(Ask):
    tail: Annotated[int, Field(ge=0, le=MAX_LINES, description="lines from the end")] = 200
    follow: Annotated[bool, Field(description="go on with what is appended")] = False


@op(
    "GET", "/api/comfyui/instances/{ref}/logs", scope="client", query=LogQuery, response=None, media="text/plain",
    errors=(404,),
)  # fmt: skip
async def instance_logs(call: Call[None, LogQuery]) -> web.StreamResponse:
    """The last lines of an instance's log, at most 1 MiB; with follow=1 also everything appended later, through
    rotations and restarts. A reader that falls behind what is kept is told where output is missing."""
    found = find_instance(call.context, call.path("ref"))
    if found.log is None:
        raise ComfydError(f"instance {found.name!r} has no log", code="not_found")
    follower = Follower(Path(found.log))
    data = await asyncio.to_thread(follower.tail, call.query.tail)
    if not call.query.follow:
        return web.Response(body=data, content_type="text/plain", charset="utf-8")
    return await _follow(call.request, follower, Found(data))


async def _follow(request: web.Request, follower: Follower, found: Found) -> web.StreamResponse:
    """Until the reader goes or the server closes; a log that is not there yet is waited for."""
    response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8", "X-Accel-Buffering": "no"})
    await response.prepare(request)
    try:
        while not ended(request):
            if found.gap:
                await write(response, request, GAP)
            if found.data:
                await write(response, request, found.data)
            else:
                await first_of(request, timeout=FOLLOW_PAUSE_S)
            found = await asyncio.to_thread(follower.read)
    except ConnectionResetError:
        return response
    await response.write_eof()
    return response
