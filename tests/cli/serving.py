"""A small server that answers like a daemon, on TCP or a unix socket, in a thread; and the program as a process."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

ALIVE = ("starting", "ready", "unready", "draining", "stopping")
TIME = "2026-01-31T12:00:00.000Z"


def instance(number: int | None, name: str, port: int, state: str = "ready", **more: Any) -> dict[str, Any]:
    return {
        "id": number, "key": f"comfyui/{number}" if number is not None else f"sidecar/{name}", "name": name,
        "environment": "comm", "port": port, "state": state, "ready": state == "ready",
        "desired": "down" if state == "stopped" else "up", "pid": 4000 + port if state in ALIVE else None,
        "since": "2026-01-31T11:56:48.000Z", "restarts": 0, "conditions": [], "override": None, **more,
    }  # fmt: skip


@dataclass
class World:
    """What the server knows, and every request it saw as (method, path with query, headers, body)."""

    instances: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=lambda: {"state": "ok", "path": "/instances.json", "issues": []})
    environments: list[dict[str, Any]] = field(default_factory=list)
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    outputs: dict[int, tuple[str, bytes]] = field(default_factory=dict)
    overrides: list[dict[str, Any]] = field(default_factory=list)
    paused: list[dict[str, Any]] = field(default_factory=list)
    answers: dict[str, tuple[int, Any]] = field(default_factory=dict)
    log: bytes = b"one\ntwo\nthree\n"
    together: int = 1
    requests: list[tuple[str, str, dict[str, str], Any]] = field(default_factory=list)
    waiting: int = 0
    url: str = ""

    def asked(self, method: str, path: str) -> list[Any]:
        """Bodies of the requests to a path (without its query)."""
        return [body for m, p, _, body in self.requests if m == method and p.partition("?")[0] == path]

    def verbs(self) -> list[str]:
        return [p.partition("?")[0].removeprefix("/api/comfyui/") for m, p, _, _ in self.requests if m == "POST"]


def error(status: int, code: str, message: str, **details: Any) -> web.Response:
    body = {"error": {"code": code, "message": message, "details": details}, "detail": message}
    return web.json_response(body, status=status)


class _Server:
    """The routes over one self.world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.arrived = asyncio.Condition()

    def find(self, ref: str) -> dict[str, Any]:
        return next(i for i in self.world.instances if ref in (str(i["id"]), i["name"]))

    async def status(self, request: web.Request) -> web.Response:
        world = self.world
        return web.json_response(
            {
                "status": "success",
                "output": "",
                "instances": world.instances,
                "environments": world.environments,
                "config": world.config,
                "paused": world.paused,
                "plan": {"actions": [], "holds": {}, "wake_in_s": None},
                "version": "0.1.0",
                "time": TIME,
            }
        )

    async def act(self, request: web.Request) -> web.Response:
        one, verb = self.find(request.match_info["ref"]), request.match_info["verb"]
        async with self.arrived:
            self.world.waiting += 1
            self.arrived.notify_all()
            await asyncio.wait_for(self.arrived.wait_for(lambda: self.world.waiting >= self.world.together), 10)
        if one["state"] == "failed" and verb != "stop":
            return error(500, "start_failed", "Failed to start instance: it is broken")
        late = {"waiting_env": "installing", "starting": "starting", "stopping": "stopping"}.get(one["state"])
        if late is None:
            down = verb == "stop"
            one.update(state="stopped" if down else "ready", ready=not down, pid=None if down else 77)
        done = {"start": "started", "stop": "stopped", "restart": "restarted"}[verb]
        message = f"Instance '{one['name']}' is {late}" if late else f"Instance '{one['name']}' {done} on port 1"
        return web.json_response({"status": "success", "message": message, "output": "", "instance": one})

    async def stop_all(self, request: web.Request) -> web.Response:
        concerned = [i for i in self.world.instances if i["key"].startswith("comfyui/") and i["state"] in ALIVE]
        for one in concerned:
            if one["state"] != "stopping":
                one.update(state="stopped", ready=False, pid=None)
        if any(i["state"] == "stopping" for i in concerned):
            return error(500, "stop_failed", "Failed to stop instances: still running after 1 s")
        return web.json_response({"status": "success", "message": "All instances stopped", "results": []})

    async def logs(self, request: web.Request) -> web.StreamResponse:
        lines = self.world.log.splitlines(keepends=True)
        data = b"".join(lines[-int(request.query.get("tail", 200)) :])
        if "follow" not in request.query:
            return web.Response(body=data, content_type="text/plain")
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        with suppress(ConnectionResetError):
            await response.write(data)
            for n in range(3):
                await response.write(f"more {n}\n".encode())
            while request.transport is not None and not request.transport.is_closing():
                await asyncio.sleep(0.05)
        return response

    async def overrides(self, request: web.Request) -> web.Response:
        return web.json_response({"overrides": self.world.overrides})

    async def clear(self, request: web.Request) -> web.Response:
        return web.json_response({"deleted": 1, "message": "cleared"})

    async def environments(self, request: web.Request) -> web.Response:
        return web.json_response({"environments": self.world.environments})

    async def install(self, request: web.Request) -> web.Response:
        one = next(e for e in self.world.environments if e["name"] == request.match_info["env"])
        final = one.pop("then")
        one["install"] = {**one["install"], **final}
        return web.json_response({"message": "will be installed", "install": one["install"]}, status=202)

    async def install_state(self, request: web.Request) -> web.Response:
        one = next(e for e in self.world.environments if e["name"] == request.match_info["env"])
        return web.json_response(
            {"environment": one["name"], "installed": False, "install": one["install"], "tail": []}
        )

    async def create(self, request: web.Request) -> web.Response:
        body = await request.json() if request.can_read_body else {}
        ready = self.world.tasks.pop("next", None)
        task = {"taskId": f"task_{len(self.world.tasks)}", "workflow_name": request.match_info["workflow"],
                "status": "PENDING", "params": body.get("params"), "output_data": None}  # fmt: skip
        self.world.tasks[task["taskId"]] = {**task, **(ready or {})}
        return web.json_response({"success": True, "task": task, "taskId": task["taskId"], "message": "created"})

    async def tasks(self, request: web.Request) -> web.Response:
        return web.json_response({"tasks": list(self.world.tasks.values()), "queue_length": 1, "next_cursor": None})

    async def task(self, request: web.Request) -> web.Response:
        found = self.world.tasks.get(request.match_info["task"])
        return web.json_response(found) if found else error(404, "task_not_found", "Task not found")

    async def cancel(self, request: web.Request) -> web.Response:
        return error(409, "illegal_transition", "it is COMPLETED")

    async def output(self, request: web.Request) -> web.Response:
        name, data = self.world.outputs[int(request.match_info["n"])]
        return web.Response(body=data, headers={"Content-Disposition": f'attachment; filename="{name}"'})

    async def events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        first = int(request.headers.get("Last-Event-ID", "0")) + 1
        await response.write(b": ping\n\n")
        for n in (first, first + 1):
            data = json.dumps({"seq": n, "data": {"to": "ready"}})
            await response.write(f"id: {n}\nevent: instance\ndata: {data}\n\n".encode())
        return response

    async def fixed(self, request: web.Request) -> web.Response:
        status, body = self.world.answers.get(f"{request.method} {request.path}", (404, {"detail": "no such route"}))
        if isinstance(body, bytes):
            return web.Response(status=status, body=body, content_type="text/html")
        return web.json_response(body, status=status)

    async def record(self, request: web.Request) -> web.StreamResponse | None:
        """Every request is noted; an answer fixed by the test wins over the route."""
        raw = await request.read()
        noted = (request.method, request.raw_path, dict(request.headers), json.loads(raw) if raw else None)
        self.world.requests.append(noted)
        return await self.fixed(request) if f"{request.method} {request.path}" in self.world.answers else None

    def application(self) -> web.Application:
        @web.middleware
        async def record(request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
            return await self.record(request) or await handler(request)

        app = web.Application(middlewares=[record])
        app.add_routes(self.routes())
        return app

    def routes(self) -> list[web.RouteDef]:
        return [
            web.route("GET", "/api/comfyui/status", self.status),
            web.route("POST", "/api/comfyui/instances/{ref}/{verb}", self.act),
            web.route("POST", "/api/comfyui/stop-all", self.stop_all),
            web.route("GET", "/api/comfyui/instances/{ref}/logs", self.logs),
            web.route("GET", "/api/comfyui/overrides", self.overrides),
            web.route("DELETE", "/api/comfyui/overrides{ref:.*}", self.clear),
            web.route("GET", "/environments", self.environments),
            web.route("POST", "/environments/{env}/install", self.install),
            web.route("GET", "/environments/{env}/install", self.install_state),
            web.route("POST", "/tasks/create/{workflow}", self.create),
            web.route("GET", "/tasks", self.tasks),
            web.route("GET", "/tasks/{task}", self.task),
            web.route("POST", "/tasks/{task}/cancel", self.cancel),
            web.route("GET", "/tasks/{task}/outputs/{n}", self.output),
            web.route("GET", "/events", self.events),
            web.route("*", "/{rest:.*}", self.fixed),
        ]


@contextmanager
def serving(world: World, socket: Path | None = None) -> Iterator[World]:
    """Answer with `world` on a free port of 127.0.0.1, or on a unix socket (its folder is made; any length)."""
    started, ending = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()
    failed: list[BaseException] = []

    async def serve() -> None:
        runner = web.AppRunner(_Server(world).application(), shutdown_timeout=0.1)
        await runner.setup()
        if socket is None:
            site: web.BaseSite = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            world.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        else:
            socket.parent.mkdir(parents=True)
            folder = os.open(socket.parent, os.O_PATH)
            await web.UnixSite(runner, f"/proc/self/fd/{folder}/{socket.name}").start()
            os.close(folder)
        started.set()
        await ending.wait()
        await runner.cleanup()

    def work() -> None:
        try:
            loop.run_until_complete(serve())
        except BaseException as problem:
            failed.append(problem)
        finally:
            started.set()
            loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    assert started.wait(10)
    try:
        yield world
    finally:
        if not failed:
            loop.call_soon_threadsafe(ending.set)
        thread.join(10)
        assert not failed, failed


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def environment(**more: str) -> dict[str, str]:
    """The environment of the tests without anything that comfyd reads."""
    foreign = ("COMFY", "DISABLE_", "EXTRA_ARGS", "SKIP_MODEL", "NO_COLOR")
    return {**{k: v for k, v in os.environ.items() if not k.startswith(foreign)}, **more}


def comfyd(*arguments: str, env: dict[str, str] | None = None, stdin: bytes = b"", cwd: Path | None = None) -> Ran:
    """Run the program to its end."""
    command = [sys.executable, "-W", "error", "-m", "comfyd", *arguments]
    done = subprocess.run(
        command, env=environment(**(env or {})), input=stdin, capture_output=True, timeout=40, cwd=cwd, check=False
    )
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())
