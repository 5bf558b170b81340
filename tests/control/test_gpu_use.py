"""The GPU as a sign of life: asked once for all who ask at once, and never waited for longer than it is worth."""

import asyncio
import threading

import pytest

from comfyd.control.gpu_use import GpuUse
from comfyd.host.gpu import Gpu, GpuProcess, GpuReading

pytestmark = pytest.mark.asyncio
BUSY = GpuReading((Gpu(0, "GPU-aaaa", "A", 1, 0, 50, None, (GpuProcess(7, None),)),), "999.1")


async def test_one_question_serves_all_who_ask_at_once() -> None:
    asked: list[int] = []

    def read() -> GpuReading:
        asked.append(1)
        return BUSY

    use = GpuUse(read)
    assert await asyncio.gather(use.busy(frozenset({7})), use.busy(frozenset({8}))) == [True, False]
    assert len(asked) == 1
    assert await use.busy(frozenset({7}))
    assert len(asked) == 2


async def test_a_driver_that_hangs_has_said_nothing_and_is_not_asked_again_meanwhile() -> None:
    go, asked = threading.Event(), []

    def read() -> GpuReading:
        asked.append(1)
        go.wait(30)
        return BUSY

    use = GpuUse(read, patience_s=0.05)
    assert [await use.busy(frozenset({7})) for _ in range(3)] == [False] * 3
    assert len(asked) == 1
    go.set()
    async with asyncio.timeout(10):
        while not await use.busy(frozenset({7})):
            pass


async def test_a_fault_of_the_binding_is_no_sign_of_life() -> None:
    def read() -> GpuReading:
        raise OSError("broken")

    assert await GpuUse(read).busy(frozenset({7})) is False
