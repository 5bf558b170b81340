"""Reading long answers: blocks of a log, server-sent events, a file to disk."""

import contextlib
import http.client
import json
import os
from collections.abc import Iterator
from typing import Any

from comfyd.client.shapes import Event
from comfyd.client.transport import DaemonUnreachable, talking

BLOCK = 65536
MAX_NAME = 200


def blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """What has arrived, as soon as it has arrived."""
    while True:
        with talking("the daemon", "GET", "a stream"):
            block = response.read1(BLOCK)
        if not block:
            return
        yield block


def _lines(response: http.client.HTTPResponse) -> Iterator[str]:
    while True:
        with talking("the daemon", "GET", "events"):
            line = response.readline()
        if not line:
            return
        yield line.decode("utf-8", "replace").rstrip("\r\n")


def event_stream(response: http.client.HTTPResponse) -> Iterator[Event]:
    """Parse `text/event-stream`; comments (pings) and events without data are passed over."""
    last_id, kind, data = "", "message", list[str]()
    for line in _lines(response):
        if not line:
            if data:
                yield Event(id=last_id, event=kind, data=_data("\n".join(data)))
            kind, data = "message", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name == "event":
            kind = value
        elif name == "id":
            last_id = value


def _data(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def safe_name(name: str) -> str:
    """The last part of a file name that came from outside; never empty, hidden, or with control characters."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    clean = "".join(c for c in last if c.isprintable()).lstrip(".").strip()
    while len(os.fsencode(clean)) > MAX_NAME:
        clean = clean[1:]
    return clean or "output"


def save(response: http.client.HTTPResponse, folder: str, name: str) -> str:
    """Write the answer to a new file below `folder`; a name that is taken gets `-1`, `-2`, ... before its suffix."""
    os.makedirs(folder, exist_ok=True)
    path, fd = _new_file(folder, safe_name(name))
    size = 0
    try:
        with os.fdopen(fd, "wb") as file:
            for block in blocks(response):
                size += file.write(block)
        if size < int(response.headers.get("Content-Length") or 0):
            raise DaemonUnreachable(f"the connection broke after {size} bytes of {name}; nothing was kept")
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise
    return path


def _new_file(folder: str, name: str) -> tuple[str, int]:
    stem, dot, suffix = name.rpartition(".")
    if not dot:
        stem, suffix = name, ""
    n = 0
    while True:
        path = os.path.join(folder, f"{stem}{f'-{n}' if n else ''}{dot}{suffix}")
        try:
            return path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            n += 1
