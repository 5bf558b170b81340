"""The floor of a start: the smallest aiohttp server. PORT"""

import sys

from aiohttp import web


async def hello(_: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


app = web.Application()
app.router.add_get("/health", hello)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
