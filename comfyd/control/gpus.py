"""Which GPUs there are, looked up only when an instance is pinned to one.

Owns: the last answer. Must not: judge pins (core/gpu.py does), or let a driver that does not answer hold anything up.
"""

import asyncio
import contextlib
import math
import threading
from collections.abc import Callable

from comfyd.host import clock
from comfyd.host.gpu import GpuReading, read_gpus
from comfyd.logs import get_logger
from comfyd.model.observed import ObservedGpu
from comfyd.model.process import ResolvedState

log = get_logger("comfyd.control")

FRESH_S = 50.0
PATIENCE_S = 5.0


def ask_driver(read: Callable[[], GpuReading], take: Callable[[GpuReading], None]) -> None:
    """Read in a thread of its own, then call `take` on the running loop.

    Not in the loop's own threads: closing the loop waits for those, and a broken driver may never answer.
    """
    loop = asyncio.get_running_loop()

    def ask() -> None:
        try:
            reading = read()
        except Exception as error:
            log.exception("GPUs not read", reason=str(error))
            reading = GpuReading()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(take, reading)

    threading.Thread(target=ask, name="comfyd-gpus", daemon=True).start()


class GpuFacts:
    """known: None as long as no driver has answered. changed: called when an answer comes after its pass."""

    def __init__(
        self, changed: Callable[[], None], read: Callable[[], GpuReading] = read_gpus, patience_s: float = PATIENCE_S
    ) -> None:
        self.known: tuple[ObservedGpu, ...] | None = None
        self._changed = changed
        self._read = read
        self._patience_s = patience_s
        self._next = -math.inf
        self._asking: asyncio.Event | None = None
        self._late = False

    async def look(self, wanted: ResolvedState) -> tuple[ObservedGpu, ...] | None:
        """Ask if somebody is pinned and the last answer is old. A slow driver is waited for once, then heard later."""
        pinned = any(wish.run and wish.gpus for wish in wanted.processes)
        if pinned and self._asking is None and clock.mono() >= self._next:
            self._asking = answered = asyncio.Event()
            ask_driver(self._read, self._take)
            try:
                async with asyncio.timeout(self._patience_s):
                    await answered.wait()
            except TimeoutError:
                self._late = True
                log.warning("the GPU driver does not answer", reason="pinned instances are started unchecked")
        return self.known

    def _take(self, reading: GpuReading) -> None:
        """A driver that told of a part only (a GPU is lost) has not answered: what it left out may be what is meant."""
        whole = bool(reading.driver) and reading.problem is None
        gpus = tuple(ObservedGpu(index=g.index, uuid=g.uuid, name=g.name) for g in reading.gpus)
        self.known = gpus if whole else None
        self._next = clock.mono() + FRESH_S
        if self._asking is not None:
            self._asking.set()
        late, self._asking, self._late = self._late, None, False
        if late:
            self._changed()
