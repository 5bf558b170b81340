"""Transitions of processes: one INFO line and one row of the event log each, written off the hot path."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from comfyd.errors import ComfydError
from comfyd.host import clock
from comfyd.logs import get_logger
from comfyd.store.protocol import NodeStore

log = get_logger("comfyd.control")

Entry = tuple[str, str, dict[str, Any], float]
"""type, subject, data, wall seconds."""
BATCH = 200
"""Entries that share a commit."""
LINES = 5


class Pen:
    """`write` costs next to nothing; `run_writing` logs and appends in order; `flush` writes what is left."""

    def __init__(self, node: NodeStore) -> None:
        self._node = node
        self._queue: deque[Entry] = deque()
        self._calls: list[Callable[[], None]] = []
        self._facts: dict[str, dict[str, Any]] = {}
        self._filled = asyncio.Event()

    def write(self, type_: str, subject: str, **data: Any) -> None:
        self._queue.append((type_, subject, data, clock.wall()))
        self._filled.set()

    def fact(self, key: str, value: dict[str, Any]) -> None:
        """Keep the newest value of a small fact."""
        self._facts[key] = value
        self._filled.set()

    def later(self, call: Callable[[], None]) -> None:
        """A blocking call that nobody waits for."""
        self._calls.append(call)
        self._filled.set()

    async def run_writing(self) -> None:
        while True:
            await self._filled.wait()
            await self.flush()

    async def flush(self) -> None:
        """Write everything that waits. A store that cannot be written costs the entries, never the caller."""
        self._filled.clear()
        calls, self._calls = self._calls, []
        if calls:
            await asyncio.to_thread(_call_all, calls)
        facts, self._facts = self._facts, {}
        lost = 0
        try:
            if facts:
                await self._node.note(facts)
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
                lost = len(batch)
                await self._tell(batch)
                await self._node.note({}, batch)
        except ComfydError as error:
            rest, self._queue = self._queue, deque()
            await self._tell(rest)
            log.error("event log not written", reason=error.message, lost=lost + len(rest))

    async def _tell(self, entries: Iterable[Entry]) -> None:
        """Log them, but let whatever is more urgent pass in between: some lines cost as much as a step of a restart."""
        for number, (type_, subject, data, _) in enumerate(entries, 1):
            log.info("transition", type=type_, subject=subject, **data)
            if number % LINES == 0:
                await asyncio.sleep(0)


def _call_all(calls: Iterable[Callable[[], None]]) -> None:
    for call in calls:
        call()
