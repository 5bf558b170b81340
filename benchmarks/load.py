"""A load generator: N connections that each send a POST as soon as the last answer is complete.

Owns: the sending and the times. Must not: know what is sent.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

Ask = Callable[[int], tuple[str, bytes, dict[str, str]]]
"""Number of the request -> path, body, more headers."""


@dataclass
class Load:
    """latencies: seconds of each answered request. answers: number -> (status, body). sent: numbers given out."""

    ask: Ask
    keep: bool = False
    latencies: list[float] = field(default_factory=list)
    answers: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    sent: int = 0
    failed: int = 0
    until: float = 0.0
    last: int = 10**9


class _Connection(asyncio.Protocol):
    def __init__(self, load: Load, done: "asyncio.Future[None]") -> None:
        self.load, self.done = load, done
        self.buffer = b""
        self.number = 0
        self.started = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        self.started = time.perf_counter()
        if self.started >= self.load.until or self.load.sent >= self.load.last:
            self.transport.close()
            return
        self.number = self.load.sent
        self.load.sent += 1
        path, body, headers = self.load.ask(self.number)
        more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{more}"
        self.transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(rest) < length:
            return
        self.load.latencies.append(time.perf_counter() - self.started)
        status = int(head.split(b" ", 2)[1])
        self.load.failed += status != 200
        if self.load.keep or status != 200:
            self.load.answers[self.number] = (status, rest[:length])
        self.buffer = b""
        self.send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


async def run_load(load: Load, port: int, connections: int, seconds: float) -> float:
    """Requests answered per second."""
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    load.until = started + seconds
    done: list[asyncio.Future[None]] = [loop.create_future() for _ in range(connections)]
    for future in done:
        await loop.create_connection(lambda future=future: _Connection(load, future), "127.0.0.1", port)  # type: ignore[misc]
    await asyncio.wait(done)
    return len(load.latencies) / (time.perf_counter() - started)
