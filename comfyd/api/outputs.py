"""Result files of tasks, as downloads. Names come from the task's record and are opened below its folder only."""

import asyncio
import os
import stat
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from aiohttp import web

from comfyd.api.operation import Call, op, under_api
from comfyd.api.streams import write
from comfyd.errors import ComfydError

BLOCK = 256 * 1024
INLINE_SAFE = {
    ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp", ".gif": "image/gif",
    ".mp4": "video/mp4", ".webm": "video/webm", ".wav": "audio/wav", ".mp3": "audio/mpeg", ".flac": "audio/flac",
}  # fmt: skip
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@op(
    "GET", "/tasks/{task_id}/outputs/{n}", scope="client", response=None, media="application/octet-stream",
    errors=(404,), also=under_api("/tasks/{task_id}/outputs/{n}"),
)  # fmt: skip
async def task_output(call: Call[None, None]) -> web.StreamResponse:
    """Output file `n` of a task, counted from 0, always as an attachment."""
    task = await call.context.tasks.get(call.path("task_id"))
    relative = _listed(task.output_data, call.path("n"))
    opened = await asyncio.to_thread(_open_below, os.fspath(call.context.paths.outputs), (task.task_id, *relative))
    if opened is None and task.node_id not in (None, call.context.node.node_id):
        raise ComfydError(
            f"this output file is on the node that ran the task: {task.node_id}; ask that node",
            code="unknown_output",
            details={"node_id": task.node_id},
        )
    if opened is None:
        raise ComfydError("this output file is not there any more", code="unknown_output")
    return await _send(call.request, opened, relative[-1])


def _listed(output: dict[str, Any] | None, n: str) -> tuple[str, ...]:
    """The parts of the n-th file's path below the task's folder. Raises unknown_output."""
    files = (output or {}).get("files")
    number = int(n) if n.isascii() and n.isdigit() and len(n) <= 6 else -1
    entry = files[number] if isinstance(files, list) and 0 <= number < len(files) else None
    name = entry.get("path_name") if isinstance(entry, dict) else None
    parts = PurePosixPath(name).parts if isinstance(name, str) and "\0" not in name else ()
    if not parts or parts[0] == "/" or ".." in parts:
        count = len(files) if isinstance(files, list) else 0
        raise ComfydError(f"the task has no output {n[:20]!r}; it has {count}", code="unknown_output")
    return parts


def _open_below(root: str, parts: tuple[str, ...]) -> int | None:
    """A descriptor of the regular file `parts` below `root`; no link is followed on the way."""
    try:
        here = os.open(root, _DIR & ~os.O_NOFOLLOW)
        for part in parts[:-1]:
            try:
                below = os.open(part, _DIR, dir_fd=here)
            finally:
                os.close(here)
            here = below
        try:
            fd = os.open(parts[-1], _FILE, dir_fd=here)
        finally:
            os.close(here)
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None


async def _send(request: web.Request, fd: int, name: str) -> web.StreamResponse:
    try:
        size = os.fstat(fd).st_size
        plain = "".join(c if c.isascii() and (c.isalnum() or c in "._- ") else "_" for c in name)
        kind = INLINE_SAFE.get(os.path.splitext(name)[1].lower(), "application/octet-stream")
        response = web.StreamResponse(
            headers={
                "Content-Type": kind,
                "Content-Length": str(size),
                "Content-Disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}",
                "Content-Security-Policy": "sandbox; default-src 'none'",
            }
        )
        await response.prepare(request)
        offset = 0
        while offset < size:
            data = await asyncio.to_thread(os.pread, fd, min(BLOCK, size - offset), offset)
            if not data:
                raise ConnectionResetError("the file became shorter")
            await write(response, request, data)
            offset += len(data)
        await response.write_eof()
    finally:
        os.close(fd)
    return response
