"""What ComfyUI says over HTTP: the only file that knows its routes (comfy_socket.py knows its websocket).

Owns: requests to one instance and the reading of its answers. Both contract generations are detected, never assumed.
Must not: decide what an answer means for a task, or retry.
"""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

import aiohttp

from comfyd.dispatch.comfy_history import OutputFile, refusal
from comfyd.dispatch.pace import Pace
from comfyd.errors import ComfydError
from comfyd.failpoint import failpoint

MAX_ANSWER = 256 * 1024 * 1024
_JOB_STATES: Mapping[str, Literal["waiting", "running", "ended"]] = {
    "pending": "waiting",
    "in_progress": "running",
    "completed": "ended",
    "failed": "ended",
    "cancelled": "ended",
}


class Unanswered(ComfydError):
    """No usable answer. `sent` False: the request certainly never reached ComfyUI."""

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message, code="not_ready", retryable=True)
        self.sent = sent


class PromptRefused(ComfydError):
    """ComfyUI refused the graph; the same graph will be refused again (unless `retryable`)."""

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message, code="validation_failed", retryable=retryable)


class NotServed(ComfydError):
    """ComfyUI has no such output file."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="unknown_output")


@dataclass(frozen=True, slots=True)
class Submitted:
    """prompt_id: the id it runs under (its own if it ignored ours). skipped: why some outputs were left out, or ""."""

    prompt_id: str
    skipped: str = ""


@dataclass(frozen=True, slots=True)
class Sighting:
    """Where a prompt is. entry: its history, given whenever state is "ended"."""

    state: Literal["waiting", "running", "ended", "unknown"]
    entry: Mapping[str, Any] | None = None


class ComfyClient:
    """One instance at `base_url`. Every method raises Unanswered if there is no usable answer in time."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str, pace: Pace | None = None) -> None:
        self.base_url = base_url.rstrip("/")
        self._session = session
        self._pace = pace or Pace()
        self._generation: Literal["legacy", "new"] | None = None

    async def generation(self) -> Literal["legacy", "new"]:
        """`new` if it has /api/jobs; asked once."""
        if self._generation is None:
            status, _ = await self._request("GET", "api/jobs", params={"limit": "1"})
            self._generation = "new" if status == 200 else "legacy"
        return self._generation

    async def version(self) -> str:
        """comfyui_version as it says, "" if it does not. Touches CUDA: may be slow under load."""
        stats = await self._json("GET", "system_stats")
        system = stats.get("system") if isinstance(stats, dict) else None
        return str(system.get("comfyui_version", "")) if isinstance(system, dict) else ""

    async def knows(self, node_class: str) -> bool:
        """Has it a node of this class?"""
        found = await self._json("GET", f"object_info/{node_class}")
        return isinstance(found, dict) and node_class in found

    async def submit(self, prompt_id: str, graph: Any, client_id: str, task_id: str = "") -> Submitted:
        """Queue a graph. prompt_id: a canonical uuid; events go to the websocket of `client_id`.

        Raises PromptRefused.
        """
        marks = {"comfyd_task": task_id, "comfyd_prompt": prompt_id}
        body = {"prompt": graph, "prompt_id": prompt_id, "client_id": client_id, "extra_data": marks}
        status, data = await self._request("POST", "prompt", body=body, timeout_s=self._pace.submit_s)
        failpoint("prompt_posted")
        answer = _parse(data) if data else {}
        if status != 200:
            raise PromptRefused(refusal(answer, status), retryable=status >= 500)
        if not isinstance(answer, dict) or not isinstance(answer.get("prompt_id"), str):
            raise Unanswered("POST /prompt: the answer names no prompt_id", sent=True)
        skipped = refusal(answer, status) if answer.get("node_errors") else ""
        return Submitted(answer["prompt_id"], skipped)

    async def sight(self, prompt_id: str) -> Sighting:
        """Where the prompt is now: history, then queue, then history again, as a prompt may move in between."""
        if await self.generation() == "new":
            return await self._sight_job(prompt_id)
        if entry := await self.history(prompt_id):
            return Sighting("ended", entry)
        running, pending = await self.queue()
        if any(item[1] == prompt_id for item in running):
            return Sighting("running")
        if any(item[1] == prompt_id for item in pending):
            return Sighting("waiting")
        entry = await self.history(prompt_id)
        return Sighting("ended", entry) if entry else Sighting("unknown")

    async def _sight_job(self, prompt_id: str) -> Sighting:
        status, data = await self._request("GET", f"api/jobs/{prompt_id}")
        job = _parse(data) if status == 200 else None
        state = _JOB_STATES.get(str(job.get("status"))) if isinstance(job, dict) else None
        if state in ("waiting", "running"):
            return Sighting(state)
        entry = await self.history(prompt_id)
        return Sighting("ended", entry) if entry else Sighting("unknown")

    async def find(self, prompt_id: str) -> str | None:
        """The id under which our prompt is known (another one if ComfyUI ignored ours), None if it is not known."""
        if await self.history(prompt_id):
            return prompt_id
        running, pending = await self.queue()
        recent = await self._json("GET", "history", params={"max_items": "50"})
        done = [e.get("prompt") for e in recent.values() if isinstance(e, dict)] if isinstance(recent, dict) else []
        for item in (*running, *pending, *(i for i in done if _is_item(i))):
            if item[1] == prompt_id or (isinstance(item[3], dict) and item[3].get("comfyd_prompt") == prompt_id):
                return str(item[1])
        return None

    async def history(self, prompt_id: str) -> Mapping[str, Any] | None:
        """Its history entry. None: it waits, runs, was forgotten, or was never there."""
        found = await self._json("GET", f"history/{prompt_id}")
        entry = found.get(prompt_id) if isinstance(found, dict) else None
        return entry if isinstance(entry, dict) else None

    async def queue(self) -> tuple[list[list[Any]], list[list[Any]]]:
        """(running, pending) as lists of [number, prompt_id, graph, extra_data, outputs, ...]."""
        found = await self._json("GET", "queue")
        found = found if isinstance(found, dict) else {}
        running, pending = (found.get(name) or [] for name in ("queue_running", "queue_pending"))
        return [i for i in running if _is_item(i)], [i for i in pending if _is_item(i)]

    async def cancel(self, prompt_id: str) -> None:
        """Take it out of the queue, or interrupt it if it is the one that runs. Never a global interrupt."""
        if await self.generation() == "new":
            status, _ = await self._request("POST", f"api/jobs/{prompt_id}/cancel", body={})
            if status == 200:
                return
        await self._request("POST", "queue", body={"delete": [prompt_id]})
        running, _ = await self.queue()
        if any(item[1] == prompt_id for item in running):
            await self._request("POST", "interrupt", body={"prompt_id": prompt_id})

    async def forget(self, *prompt_ids: str) -> None:
        """Drop their history entries: each holds a whole prompt in memory."""
        await self._request("POST", "history", body={"delete": list(prompt_ids)})

    async def free(self) -> None:
        """Ask it to unload its models, which it does when no prompt runs."""
        await self._request("POST", "free", body={"unload_models": True, "free_memory": True})

    @asynccontextmanager
    async def view(self, file: OutputFile) -> AsyncIterator[AsyncIterator[bytes]]:
        """The bytes of an output file, in chunks. Raises NotServed."""
        params = {"filename": file.filename, "subfolder": file.subfolder, "type": file.type}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=self._pace.submit_s)
        try:
            async with self._session.get(
                f"{self.base_url}/view", params=params, timeout=timeout, allow_redirects=False
            ) as answer:
                if answer.status != 200:
                    raise NotServed(f"GET /view of {file.filename!r} was answered with {answer.status}")
                yield answer.content.iter_chunked(256 * 1024)
        except (TimeoutError, aiohttp.ClientError, ConnectionError) as error:
            raise _unanswered("GET", "view", error) from error

    async def _json(self, method: str, path: str, params: Mapping[str, str] | None = None) -> Any:
        status, data = await self._request(method, path, params=params)
        if status != 200:
            raise Unanswered(f"{method} /{path} was answered with {status}", sent=True)
        return _parse(data)

    async def _request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        timeout_s: float | None = None,
    ) -> tuple[int, bytes]:
        timeout = aiohttp.ClientTimeout(total=timeout_s or self._pace.request_s, sock_connect=5)
        url = f"{self.base_url}/{path}"
        try:
            async with self._session.request(
                method, url, params=params, json=body, timeout=timeout, allow_redirects=False
            ) as answer:
                return answer.status, await _read(answer)
        except (TimeoutError, aiohttp.ClientError, ConnectionError) as error:
            raise _unanswered(method, path, error) from error


def _unanswered(method: str, path: str, error: Exception) -> Unanswered:
    sent = not isinstance(error, aiohttp.ClientConnectorError)
    return Unanswered(f"{method} /{path}: {error or type(error).__name__}", sent=sent)


def _is_item(item: Any) -> TypeGuard[list[Any]]:
    return isinstance(item, list) and len(item) >= 4


def _parse(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Unanswered("ComfyUI's answer is not JSON", sent=True) from error


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for chunk in answer.content.iter_any():
        size += len(chunk)
        if size > MAX_ANSWER:
            raise Unanswered(f"ComfyUI's answer has more than {MAX_ANSWER} bytes", sent=True)
        parts.append(chunk)
    return b"".join(parts)
