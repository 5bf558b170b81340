"""The floor of a durable create over HTTP: aiohttp, pydantic and a group commit. PORT DATABASE"""

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from aiohttp import web
from pydantic import BaseModel

from benchmarks.group_commit import GroupCommit


class Create(BaseModel):
    wf_json: dict[str, Any]
    user_id: str | None = None


STORE: web.AppKey[GroupCommit] = web.AppKey("store")


async def create(request: web.Request) -> web.Response:
    asked = Create.model_validate_json(await request.read())
    number = await request.app[STORE].enqueue(asked.model_dump_json().encode())
    return web.json_response({"success": True, "taskId": str(number)})


async def health(_: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


async def store(app: web.Application) -> AsyncIterator[None]:
    app[STORE] = GroupCommit(Path(sys.argv[2]))
    yield
    app[STORE].close()


app = web.Application()
app.cleanup_ctx.append(store)
app.router.add_post("/tasks/create/{workflow}", create)
app.router.add_get("/health", health)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)
