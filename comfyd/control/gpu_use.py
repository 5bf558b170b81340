"""Whether a GPU computes for some processes: a sign of life of a run that does not answer.

Owns: one question to the driver at a time. Must not: wait for a driver that hangs, or judge a silence (core/liveness).
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable

from comfyd.host.gpu import GpuReading, read_gpus
from comfyd.logs import get_logger

log = get_logger("comfyd.control")
PATIENCE_S = 1.0


class GpuUse:
    """All who ask while the driver is being asked get the same answer; one that takes too long has said nothing."""

    def __init__(self, read: Callable[[], GpuReading] = read_gpus, patience_s: float = PATIENCE_S) -> None:
        self._read = read
        self._patience_s = patience_s
        self._asked: asyncio.Future[GpuReading] | None = None

    async def busy(self, pids: frozenset[int]) -> bool:
        if self._asked is None:
            loop = asyncio.get_running_loop()
            self._asked = loop.create_future()
            # Not in the loop's own threads: closing the loop waits for those, and a broken driver may never answer.
            threading.Thread(target=self._ask, args=(loop,), name="comfyd-gpus", daemon=True).start()
        try:
            async with asyncio.timeout(self._patience_s):
                return (await asyncio.shield(self._asked)).busy(pids)
        except TimeoutError:
            return False

    def _ask(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            reading = self._read()
        except Exception as error:
            log.exception("GPUs not read", reason=str(error))
            reading = GpuReading()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(self._take, reading)

    def _take(self, reading: GpuReading) -> None:
        asked, self._asked = self._asked, None
        if asked is not None and not asked.done():
            asked.set_result(reading)
