"""Transitions of processes: one INFO line and one row of the event log each, written off the hot path."""

import asyncio
from collections import deque
from typing import Any

from comfyd.errors import ComfydError
from comfyd.host import clock
from comfyd.logs import get_logger
from comfyd.store.protocol import NodeStore

log = get_logger("comfyd.control")

BATCH = 200
"""Entries that are handed to the store together, so that they share its commits."""


class Pen:
    """`write` never blocks; `run_writing` appends in order. What is left at `flush` is written then."""

    def __init__(self, node: NodeStore) -> None:
        self._node = node
        self._queue: deque[tuple[str, str, dict[str, Any], float]] = deque()
        self._facts: dict[str, dict[str, Any]] = {}
        self._filled = asyncio.Event()

    def write(self, type_: str, subject: str, **data: Any) -> None:
        log.info("transition", type=type_, subject=subject, **data)
        self._queue.append((type_, subject, data, clock.wall()))
        self._filled.set()

    def fact(self, key: str, value: dict[str, Any]) -> None:
        """Keep the newest value of a small fact."""
        self._facts[key] = value
        self._filled.set()

    async def run_writing(self) -> None:
        while True:
            await self._filled.wait()
            await self.flush()

    async def flush(self) -> None:
        """Write everything that waits. A store that cannot be written costs the entries, never the caller."""
        self._filled.clear()
        facts, self._facts = self._facts, {}
        try:
            await asyncio.gather(*(self._node.put_fact(key, value) for key, value in facts.items()))
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
                await asyncio.gather(*(self._node.append_event(*entry) for entry in batch))
        except ComfydError as error:
            log.error("event log not written", reason=error.message, lost=len(self._queue) + 1)
            self._queue.clear()
