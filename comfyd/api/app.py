"""The application: every family of routes behind the gate, and the context manager that serves it.

Owns: the list of families, the order of middlewares. Must not: know what a route does.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from comfyd.api import (
    docs,
    environments,
    events,
    external,
    faceswap,
    health,
    instances,
    logs,
    outputs,
    overrides,
    page,
    plan,
    queue,
    starts,
    tasks,
    workflows,
)
from comfyd.api.context import CONTEXT, ApiContext
from comfyd.api.docs import DOCUMENT, OPERATIONS
from comfyd.api.errors import Next, envelope, set_headers
from comfyd.api.gate import check, known_hosts
from comfyd.api.listen import KEEPALIVE_S, Listeners
from comfyd.api.operation import declared_for, operations, register
from comfyd.api.streams import CLOSING
from comfyd.logs import get_logger

log = get_logger(__name__)
SHUTDOWN_S = 2.0
LINGER_S = 1.0
"""How long the rest of a refused body is read and thrown away, so that the client gets to see the answer."""
FIRST_PASS_S = 5.0
FAMILIES = (
    starts, instances, logs, overrides, plan, environments, workflows, tasks, faceswap, outputs, external, queue,
    events, health, docs, page,
)  # fmt: skip


def create_app(context: ApiContext) -> web.Application:
    """The application with every operation registered; it serves nothing by itself."""
    hosts = known_hosts(context.settings)

    @web.middleware
    async def gate(request: web.Request, handler: Next) -> web.StreamResponse:
        operation = declared_for(request)
        if operation is None or operation.scope != "public":
            check(request, hosts)
            await _files_were_read(context)
        return await handler(request)

    app = web.Application(middlewares=[envelope, gate])
    app[CONTEXT] = context
    app[CLOSING] = asyncio.Event()
    app[DOCUMENT] = {}
    app[OPERATIONS] = tuple(operations(FAMILIES))
    for operation in app[OPERATIONS]:
        register(app, operation)
    app.on_response_prepare.append(set_headers)
    app.on_shutdown.append(_end_streams)
    return app


async def _files_were_read(context: ApiContext) -> None:
    """Just after boot nobody knows yet what is declared: wait for the first pass rather than call it unknown."""
    if context.live.passes.get() == 0:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_PASS_S):
                await context.live.passes.wait_changed(context.live.passes.seq)


async def _end_streams(app: web.Application) -> None:
    app[CLOSING].set()


@asynccontextmanager
async def serve(context: ApiContext) -> AsyncIterator[Listeners]:
    """Serve on settings.host:settings.port and on the unix socket until left. Raises ComfydError if it cannot bind.

    Leaving refuses new connections at once, ends streams, and gives running requests two seconds.
    """
    runner = web.AppRunner(create_app(context), handle_signals=False, access_log=None, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    assert runner.server is not None
    listeners = Listeners(
        runner.server,
        keepalive_timeout=KEEPALIVE_S,
        lingering_time=LINGER_S,
        access_log=None,
        auto_decompress=False,
    )
    try:
        await listeners.tcp(context.settings.host, context.settings.port)
        await listeners.unix(context.paths.socket)
        log.info("api listens", host=context.settings.host, port=listeners.port, socket=str(context.paths.socket))
        yield listeners
    finally:
        listeners.close()
        await runner.cleanup()
