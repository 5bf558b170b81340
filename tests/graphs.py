"""Graphs in API format that both the stand-in and a real ComfyUI run, and a look into the PNG that comes out."""

import random
import struct
import zlib
from typing import Any

Graph = dict[str, dict[str, Any]]

EXACT = (0x3366FF, 0x0033CC, 0xFF00FF)
"""Colours whose inversion is exactly 255 - x in 32-bit floats (others may come out one lower)."""


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def invert(color: int = EXACT[0], prefix: str = "invert", size: int = 16, batch: int = 1) -> Graph:
    return {
        "1": node("EmptyImage", width=size, height=size, batch_size=batch, color=color),
        "2": node("ImageInvert", image=["1", 0]),
        "3": node("SaveImage", images=["2", 0], filename_prefix=prefix),
    }


def fresh(prefix: str = "fresh") -> Graph:
    """An image that no cache knows."""
    return invert(random.randrange(0x1000000), prefix)


def sleep(seconds: float, prefix: str | None = None) -> Graph:
    """For the stand-in: sleeps with progress, then saves an image if a prefix is given."""
    if prefix is None:
        return {"1": node("StubSleep", seconds=seconds, value=random.random())}
    return {
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=random.randrange(0x1000000)),
        "2": node("TestSleep", value=["1", 0], seconds=seconds),
        "3": node("SaveImage", images=["2", 0], filename_prefix=prefix),
    }


def device_error() -> Graph:
    """For the stand-in: an error after which nothing works in its process any more."""
    return {"1": node("StubDeviceError", value=random.random())}


def report(seconds: float, prefix: str) -> Graph:
    """Progress in fractions of 1, told in progress_state alone."""
    return {
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=random.randrange(0x1000000)),
        "2": node("TestSyncProgressUpdate", value=["1", 0], sleep_seconds=seconds),
        "3": node("SaveImage", images=["2", 0], filename_prefix=prefix),
    }


def blur(steps: int = 6) -> Graph:
    """For a real ComfyUI: some seconds on a CPU, interruptible between the steps."""
    graph = {"0": node("EmptyImage", width=1024, height=1024, batch_size=1, color=random.randrange(0x1000000))}
    for step in range(1, steps + 1):
        graph[str(step)] = node("ImageBlur", image=[str(step - 1), 0], blur_radius=31, sigma=10.0)
    return {**graph, "end": node("PreviewImage", images=[str(steps), 0])}


def pixels(png: bytes) -> tuple[int, int, set[tuple[int, ...]]]:
    """(width, height, the colours in it) of an 8-bit RGB PNG."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, body, head = 8, b"", b""
    while at < len(png):
        (size,), kind = struct.unpack(">I", png[at : at + 4]), png[at + 4 : at + 8]
        data = png[at + 8 : at + 8 + size]
        head, body, at = (data if kind == b"IHDR" else head), body + (data if kind == b"IDAT" else b""), at + size + 12
    width, height, depth, colour, *_ = struct.unpack(">IIBBBBB", head)
    assert (depth, colour) == (8, 2)
    return width, height, _colours(zlib.decompress(body), width, height)


def _colours(raw: bytes, width: int, height: int) -> set[tuple[int, ...]]:
    before, found, stride = bytearray(width * 3), set(), width * 3 + 1
    for row in range(height):
        kind, line = raw[row * stride], bytearray(raw[row * stride + 1 : (row + 1) * stride])
        for i in range(width * 3):
            left, up, corner = line[i - 3] if i > 2 else 0, before[i], before[i - 3] if i > 2 else 0
            line[i] = (line[i] + _predicted(kind, left, up, corner)) & 255
        found |= {tuple(line[i : i + 3]) for i in range(0, width * 3, 3)}
        before = line
    return found


def _predicted(kind: int, left: int, up: int, corner: int) -> int:
    if kind < 4:
        return (0, left, up, (left + up) // 2)[kind]
    near = left + up - corner
    return min((left, up, corner), key=lambda value: abs(near - value))
