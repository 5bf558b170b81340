"""The routes of the daemon as methods. Names in paths are quoted; durations are seconds."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, cast
from urllib.parse import quote

from comfyd.client import shapes
from comfyd.client.exchange import Exchange
from comfyd.client.stream import blocks, event_stream, save
from comfyd.client.transport import candidates

DOWNLOAD_SILENCE_S = 60.0


class Client:
    """A synchronous client of one daemon; not for several threads at once.

    The daemon is found by `url`, else `socket`, else COMFYD_URL, else the unix socket under `root` (COMFYD_ROOT, /),
    else 127.0.0.1:COMFYD_PORT. `token` (COMFYD_TOKEN) is sent as a bearer token. `timeout`: seconds for an answer.
    Raises DaemonUnreachable, DaemonTimeout and ApiError; ValueError for an address that is none.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        socket: str | os.PathLike[str] | None = None,
        root: str | os.PathLike[str] | None = None,
        token: str | None = None,
        timeout: float = 30.0,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        environ = os.environ if environ is None else environ
        path = os.fspath(socket) if socket is not None else None
        bearer = environ.get("COMFYD_TOKEN") if token is None else token
        self._exchange = Exchange(candidates(url, path, root, environ), bearer or None, timeout)
        self._call, self._stream = self._exchange.call, self._exchange.stream

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._exchange.close()

    @property
    def address(self) -> str:
        """Where it talks to, or would look first."""
        return str(self._exchange.targets[0])

    # --- instances

    def status(self) -> shapes.Status:
        return cast("shapes.Status", self._call("GET", "/api/comfyui/status"))

    def instance(self, name: str | int) -> shapes.Instance:
        answer = self._call("GET", f"/api/comfyui/instances/{_part(name)}")
        return cast("shapes.Instance", answer.get("instance", answer))

    def start(self, name: str | int, wait: float = 30.0) -> shapes.InstanceAnswer:
        return self._instance_verb(name, "start", wait)

    def stop(self, name: str | int, wait: float = 30.0) -> shapes.InstanceAnswer:
        return self._instance_verb(name, "stop", wait)

    def restart(self, name: str | int, wait: float = 30.0) -> shapes.InstanceAnswer:
        return self._instance_verb(name, "restart", wait)

    def _instance_verb(self, name: str | int, verb: str, wait: float) -> shapes.InstanceAnswer:
        path = f"/api/comfyui/instances/{_part(name)}/{verb}"
        return cast("shapes.InstanceAnswer", self._call("POST", path, query={"wait": wait}, wait=wait))

    def start_instances(
        self, instances: Sequence[Mapping[str, Any]], environment: str | None = None, wait: float = 30.0
    ) -> shapes.StartAnswer:
        """Entries of instances.json, started in parallel under one wait."""
        body: dict[str, Any] = {"instances": [dict(i) for i in instances]}
        if environment is not None:
            body["environment"] = environment
        answer = self._call("POST", "/api/comfyui/start-instances", body, query={"wait": wait}, wait=wait)
        return cast("shapes.StartAnswer", answer)

    def stop_all(self, wait: float = 30.0) -> shapes.StopAnswer:
        answer = self._call("POST", "/api/comfyui/stop-all", query={"wait": wait}, wait=wait)
        return cast("shapes.StopAnswer", answer)

    @contextmanager
    def logs(self, name: str | int, *, tail: int | None = None, follow: bool = False) -> Iterator[Iterator[bytes]]:
        """The log as blocks of bytes; with `follow` they go on until the caller leaves the block."""
        query = {"tail": tail, "follow": 1 if follow else None}
        with self._stream(f"/api/comfyui/instances/{_part(name)}/logs", query) as response:
            yield blocks(response)

    def plan(self, candidate: bytes | None = None) -> shapes.Plan:
        """What the next reconcile would do; with `candidate`, what it would do with these bytes as instances.json."""
        method = "GET" if candidate is None else "POST"
        return cast("shapes.Plan", self._call(method, "/api/comfyui/plan", candidate))

    def reload(self) -> dict[str, Any]:
        return cast("dict[str, Any]", self._call("POST", "/api/comfyui/reload"))

    def overrides(self) -> list[dict[str, Any]]:
        return cast("list[dict[str, Any]]", self._call("GET", "/api/comfyui/overrides").get("overrides", []))

    def put_override(self, name: str | int, **wish: Any) -> list[dict[str, Any]]:
        """Replace the overrides of one instance. wish: want ("up" | "down"), fields (of an instances.json entry),
        restart (bool), expires_at (RFC 3339 or epoch seconds)."""
        answer = self._call("PUT", f"/api/comfyui/overrides/{_part(name)}", wish)
        return cast("list[dict[str, Any]]", answer["overrides"])

    def clear_overrides(self, name: str | int | None = None) -> dict[str, Any]:
        """Back to the files: one instance, or everything (None)."""
        path = "/api/comfyui/overrides" + ("" if name is None else f"/{_part(name)}")
        return cast("dict[str, Any]", self._call("DELETE", path))

    # --- environments and workflows

    def environments(self) -> list[shapes.Environment]:
        return cast("list[shapes.Environment]", self._call("GET", "/environments")["environments"])

    def environment(self, name: str) -> shapes.Environment:
        answer = self._call("GET", f"/environments/{_part(name)}")
        return cast("shapes.Environment", answer.get("environment", answer))

    def install(self, name: str) -> dict[str, Any]:
        """Ask for an install; it goes on by itself."""
        return cast("dict[str, Any]", self._call("POST", f"/environments/{_part(name)}/install"))

    def install_state(self, name: str) -> shapes.Install:
        answer = self._call("GET", f"/environments/{_part(name)}/install")
        return cast("shapes.Install", answer.get("install", answer))

    def workflows(self) -> dict[str, Any]:
        return cast("dict[str, Any]", self._call("GET", "/workflows"))

    # --- tasks

    def create_task(
        self,
        workflow: str,
        graph: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        **fields: Any,
    ) -> shapes.CreatedTask:
        """Queue a task. graph: ComfyUI API format, None = the stored workflow. fields: params, priority, user_id,
        max_attempts, run_after, deadline, callback_url; those that are None are not sent."""
        body = {k: v for k, v in fields.items() if v is not None}
        if graph is not None:
            body["params"] = {**body.get("params", {}), "input_data": {"wf_json": dict(graph)}}
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        answer = self._call("POST", f"/tasks/create/{_part(workflow)}", body or None, headers=headers)
        return cast("shapes.CreatedTask", answer)

    def task(self, task_id: str) -> shapes.Task:
        return _task(self._call("GET", f"/tasks/{_part(task_id)}"))

    def tasks(
        self,
        *,
        status: str | None = None,
        workflow_name: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> shapes.TaskPage:
        query = {"status": status, "workflow_name": workflow_name, "limit": limit, "cursor": cursor}
        return cast("shapes.TaskPage", self._call("GET", "/tasks", query=query))

    def cancel(self, task_id: str) -> shapes.Task:
        return _task(self._call("POST", f"/tasks/{_part(task_id)}/cancel"))

    def retry(self, task_id: str) -> shapes.Task:
        return _task(self._call("POST", f"/tasks/{_part(task_id)}/retry"))

    def delete_task(self, task_id: str) -> dict[str, Any]:
        """Take a task that has ended away, with its files."""
        return cast("dict[str, Any]", self._call("DELETE", f"/tasks/{_part(task_id)}"))

    def dead_tasks(
        self, *, workflow_name: str | None = None, limit: int | None = None, cursor: str | None = None
    ) -> shapes.TaskPage:
        """Tasks that were given up and stay until they are retried or deleted."""
        query = {"workflow_name": workflow_name, "limit": limit, "cursor": cursor}
        return cast("shapes.TaskPage", self._call("GET", "/api/queue/dead", query=query))

    def pause_queue(self, environment: str | None = None) -> dict[str, Any]:
        """Hand out no more tasks of it (None: none at all); those that run go on."""
        return self._queue("pause", environment)

    def resume_queue(self, environment: str | None = None) -> dict[str, Any]:
        """Undo it; None: every pause."""
        return self._queue("resume", environment)

    def _queue(self, verb: str, environment: str | None) -> dict[str, Any]:
        body = {} if environment is None else {"environment": environment}
        return cast("dict[str, Any]", self._call("POST", f"/api/queue/{verb}", body or None))

    def download_output(self, task_id: str, n: int, folder: str | os.PathLike[str], name: str | None = None) -> str:
        """Save output file `n` of a task below `folder` (made if needed) and return its path; never overwrites.
        name: else the one that the daemon tells; only its last part counts."""
        with self._stream(f"/tasks/{_part(task_id)}/outputs/{n}", silence_s=DOWNLOAD_SILENCE_S) as response:
            return save(response, os.fspath(folder), name or response.headers.get_filename() or f"output-{n}")

    # --- the daemon

    def stats(self) -> dict[str, Any]:
        """Tasks by state."""
        return cast("dict[str, Any]", self._call("GET", "/api/stats").get("stats", {}))

    def health(self) -> dict[str, Any]:
        return cast("dict[str, Any]", self._call("GET", "/health"))

    def ready(self) -> dict[str, Any]:
        """Raises ApiError (503) with the reasons while it is not ready."""
        return cast("dict[str, Any]", self._call("GET", "/ready"))

    @contextmanager
    def events(self, after: str | None = None) -> Iterator[Iterator[shapes.Event]]:
        """Every state change as it happens; `after`: the last id already seen."""
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after else {})
        with self._stream("/events", headers=headers) as response:
            yield event_stream(response)


def _part(name: str | int) -> str:
    """One path segment; `.` and `..` would be taken away on the way."""
    text = quote(str(name), safe="")
    return text.replace(".", "%2E") if text in (".", "..") else text


def _task(answer: Any) -> shapes.Task:
    return cast("shapes.Task", answer["task"] if isinstance(answer.get("task"), dict) else answer)
