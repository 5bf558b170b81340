"""GPU readings for the status: looked up when somebody asks, at most every two seconds, never on the loop.

Owns: the last reading. A process belongs to an instance if it is in its session or carries its uuid.
"""

import asyncio
import math

from comfyd.host import clock, procfs
from comfyd.host.gpu import GpuReading, read_gpus
from comfyd.model.observed import ObservedState
from comfyd.model.view import GpuView

FRESH_S, NOTHING_THERE_S = 2.0, 60.0


class GpuLook:
    """`views` and `memory` (process key -> bytes) are what the latest `refresh` found."""

    def __init__(self) -> None:
        self._next = -math.inf
        self._lock = asyncio.Lock()
        self.views: tuple[GpuView, ...] = ()
        self.memory: dict[str, int] = {}
        self.problem: str | None = None

    async def refresh(self, observed: ObservedState) -> None:
        """Read again if the last reading is old. A machine without GPUs is asked once a minute."""
        async with self._lock:
            if clock.mono() < self._next:
                return
            reading, self.memory = await asyncio.to_thread(_look, observed)
            self.views = tuple(
                GpuView(
                    index=g.index, uuid=g.uuid, name=g.name, memory_total=g.memory_total, memory_used=g.memory_used,
                    utilisation=g.utilisation, temperature=g.temperature,
                )
                for g in reading.gpus
            )  # fmt: skip
            self.problem = reading.problem
            self._next = clock.mono() + (FRESH_S if reading.gpus else NOTHING_THERE_S)


def _look(observed: ObservedState) -> tuple[GpuReading, dict[str, int]]:
    reading = read_gpus()
    keys = {p.pid: p.key for p in observed.processes if p.alive and p.pid}
    uuids = {p.generation: p.key for p in observed.processes if p.alive}
    held: dict[str, set[int]] = {}
    for pid in {p.pid for gpu in reading.gpus for p in gpu.processes}:
        stat = procfs.read_stat(pid)
        key = keys.get(stat.session) if stat else None
        key = key or uuids.get(procfs.uuid_of(pid) or "")
        if key is not None:
            held.setdefault(key, set()).add(pid)
    memory = {key: reading.memory_of(frozenset(pids)) for key, pids in held.items()}
    return reading, {key: value for key, value in memory.items() if value is not None}
