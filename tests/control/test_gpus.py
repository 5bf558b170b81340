"""When the driver is asked for the GPUs, and that no driver holds anything up."""

import asyncio
import threading
from collections.abc import Callable

import pytest

from comfyd.control.gpus import GpuFacts
from comfyd.host.gpu import Gpu, GpuReading
from comfyd.model.process import DesiredProcess, ProcessSpec, ResolvedState
from tests.fake import eventually

pytestmark = pytest.mark.asyncio
ONE = Gpu(0, "GPU-aaaa", "A", 1, 0, None, None, ())
TOLD = GpuReading((ONE,), "999.1")


def wanted(gpus: tuple[int | str, ...] | None, run: bool = True) -> ResolvedState:
    spec = ProcessSpec(key="comfyui/0", argv=("x",), cwd="/", log="/l")
    return ResolvedState(processes=(DesiredProcess(key="comfyui/0", spec=spec, fingerprint="f", run=run, gpus=gpus),))


class Driver:
    def __init__(self, answer: Callable[[], GpuReading]) -> None:
        self.asked = 0
        self._answer = answer

    def __call__(self) -> GpuReading:
        self.asked += 1
        return self._answer()


async def test_it_is_asked_once_for_those_who_are_pinned_and_for_no_one_else() -> None:
    driver = Driver(lambda: TOLD)
    facts = GpuFacts(lambda: None, driver)
    for nobody in (wanted(None), wanted(()), wanted((0,), run=False)):
        assert await facts.look(nobody) is None
    assert driver.asked == 0
    for _ in range(3):
        known = await facts.look(wanted((0,)))
        assert known is not None
        assert [(gpu.index, gpu.uuid, gpu.name) for gpu in known] == [(0, "GPU-aaaa", "A")]
    assert driver.asked == 1


@pytest.mark.parametrize("reading", [GpuReading(), GpuReading((ONE,), "999.1", "GPU 1: lost"), None])
async def test_no_driver_half_an_answer_and_a_fault_are_no_answer(reading: GpuReading | None) -> None:
    def answer() -> GpuReading:
        if reading is None:
            raise OSError("broken")
        return reading

    assert await GpuFacts(lambda: None, answer).look(wanted((0,))) is None


async def test_a_driver_that_hangs_is_waited_for_once_and_heard_when_it_answers() -> None:
    go, woken = threading.Event(), asyncio.Event()

    def answer() -> GpuReading:
        go.wait(30)
        return TOLD

    driver = Driver(answer)
    facts = GpuFacts(woken.set, driver, patience_s=0.05)
    try:
        for _ in range(3):
            assert await facts.look(wanted((0,))) is None
        assert driver.asked == 1
        assert not woken.is_set()
    finally:
        go.set()
    await eventually(woken.is_set, 15, "the pass after the answer")
    assert await facts.look(wanted((0,))) == facts.known != ()
