"""Whether a GPU computes for some processes: a sign of life of a run that does not answer.

Owns: one question to the driver at a time. Must not: wait for a driver that hangs, or judge a silence (core/liveness).
"""

import asyncio
from collections.abc import Callable

from comfyd.control.gpus import ask_driver
from comfyd.host.gpu import GpuReading, read_gpus

PATIENCE_S = 1.0


class GpuUse:
    """All who ask while the driver is being asked get the same answer; one that takes too long has said nothing."""

    def __init__(self, read: Callable[[], GpuReading] = read_gpus, patience_s: float = PATIENCE_S) -> None:
        self._read = read
        self._patience_s = patience_s
        self._asked: asyncio.Future[GpuReading] | None = None

    async def busy(self, pids: frozenset[int]) -> bool:
        if self._asked is None:
            self._asked = asyncio.get_running_loop().create_future()
            ask_driver(self._read, self._take)
        try:
            async with asyncio.timeout(self._patience_s):
                return (await asyncio.shield(self._asked)).busy(pids)
        except TimeoutError:
            return False

    def _take(self, reading: GpuReading) -> None:
        asked, self._asked = self._asked, None
        if asked is not None and not asked.done():
            asked.set_result(reading)
