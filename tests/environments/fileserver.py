"""An HTTP file server on loopback that misbehaves on command. Counts what it was asked and what it sent."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web


@dataclass
class Served:
    """One file and its faults. cuts: how many answers end early, each after `cut_after` bytes."""

    data: bytes
    etag: str | None = '"one"'
    ranges: bool = True
    cuts: int = 0
    cut_after: int = 0
    type_: str = "application/octet-stream"
    statuses: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    before: Callable[[], None] | None = None
    hold: asyncio.Event | None = None


@dataclass
class FileServer:
    """files: path -> Served. asked: every request's (path, headers). sent: body bytes."""

    base: str = ""
    files: dict[str, Served] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    sent: int = 0
    at_once: int = 0
    most_at_once: int = 0

    def url(self, path: str) -> str:
        return f"{self.base}{path}"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.path, dict(request.headers)))
        served = self.files.get(request.path)
        if served is None:
            return web.Response(status=404)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self._answer(request, served)
        finally:
            self.at_once -= 1

    async def _answer(self, request: web.Request, served: Served) -> web.StreamResponse:
        if served.before:
            served.before()
        if served.statuses:
            status, headers = served.statuses.pop(0)
            return web.Response(status=status, headers=headers)
        start = self._start(request, served)
        if start > len(served.data) - 1 and start:
            return web.Response(status=416, headers={"Content-Range": f"bytes */{len(served.data)}"})
        response = web.StreamResponse(status=206 if start else 200, headers=dict(served.headers))
        response.content_type = served.type_
        response.content_length = len(served.data) - start
        if served.etag:
            response.headers["ETag"] = served.etag
        if start:
            response.headers["Content-Range"] = f"bytes {start}-{len(served.data) - 1}/{len(served.data)}"
        await response.prepare(request)
        await self._body(request, response, served, start)
        return response

    def _start(self, request: web.Request, served: Served) -> int:
        span = request.headers.get("Range", "")
        match = request.headers.get("If-Range", served.etag)
        return int(span.removeprefix("bytes=").rstrip("-")) if span and served.ranges and match == served.etag else 0

    async def _body(self, request: web.Request, response: web.StreamResponse, served: Served, start: int) -> None:
        end = len(served.data)
        if served.cuts:
            served.cuts -= 1
            end = min(end, start + served.cut_after)
        half = (start + end) // 2
        for begin, stop in ((start, half), (half, end)):
            await response.write(served.data[begin:stop])
            self.sent += stop - begin
            if served.hold is not None:
                await served.hold.wait()
        if end < len(served.data):
            assert request.transport is not None
            request.transport.close()


@asynccontextmanager
async def serving() -> AsyncIterator[FileServer]:
    server = FileServer()
    app = web.Application()
    app.router.add_route("GET", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.2)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    server.base = f"http://127.0.0.1:{port}"
    try:
        yield server
    finally:
        await runner.cleanup()
