"""Errors that are not the graph's: of the device, and of memory. The test plays control and brings new processes."""

import asyncio
from pathlib import Path

import pytest

from comfyd.model.observed import Phase
from comfyd.model.task import Task, TaskState
from tests.dispatch.rig import Fakes, Instance, Rig, journal, rig
from tests.fake import Fake, eventually
from tests.graphs import device_error, fresh, node

pytestmark = pytest.mark.asyncio
SOFT = "no kernel image is available for execution on the device"


async def condemned(bench: Rig, one: Instance) -> None:
    def of_no_use() -> bool:
        seen = bench.live.evidence.get().get(one.key)
        return seen is not None and seen.generation == one.generation and seen.condemned

    await eventually(of_no_use, 15, "the instance is of no use any more")


def restart(bench: Rig, one: Instance, fake: Fake) -> None:
    """As control does it: the old process is gone, a new one runs under the same key."""
    one.fake.kill()
    one.fake, one.generation = fake, f"{one.generation}+"
    bench.publish()


def uncharged(task: Task, losses: int) -> bool:
    return (task.status, task.attempts, task.infra_losses) == (TaskState.PENDING, 0, losses)


async def test_three_device_errors_in_a_row_condemn_the_instance_and_charge_no_task(
    tmp_path: Path, fakes: Fakes
) -> None:
    async with rig(tmp_path) as bench:
        one = bench.add(fakes(DEVICE_ERROR=SOFT))
        bench.publish()
        bench.live.wake.clear()
        async with bench.dispatcher():
            tasks = [await bench.enqueue(fresh()) for _ in range(3)]
            await condemned(bench, one)
            seen = bench.live.evidence.get()[one.key]
            assert (seen.device_errors >= 3, seen.poisoned) == (True, False)
            assert SOFT in seen.device_message
            async with asyncio.timeout(5):
                await bench.live.wake.wait()  # control is asked to look
            await eventually(lambda: bench.live.evidence.get()[one.key].in_flight == 0)
            found = [await bench.task(t) for t in tasks]
            assert {(t.status, t.attempts) for t in found} == {(TaskState.PENDING, 0)}
            assert sum(t.infra_losses for t in found) == bench.live.evidence.get()[one.key].device_errors
            restart(bench, one, fakes("two"))
            assert {(await bench.done(t)).status for t in tasks} == {TaskState.COMPLETED}


async def test_a_success_ends_the_row(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        one = bench.add(fakes())
        bench.publish()
        async with bench.dispatcher() as dispatcher:
            assert (await bench.done(await bench.enqueue(fresh()))).status is TaskState.COMPLETED
            dispatcher._links._links[one.generation].device_failed("a device error", poisoned=False)
            assert bench.live.evidence.get()[one.key].device_errors == 1
            broken = {"1": node("TestSyncError", value="x"), "2": node("PreviewAny", source=["1", 0])}
            assert (await bench.done(await bench.enqueue(broken))).status is TaskState.FAILED
            assert bench.live.evidence.get()[one.key].device_errors == 1
            assert (await bench.done(await bench.enqueue(fresh()))).status is TaskState.COMPLETED
            assert bench.live.evidence.get()[one.key].device_errors == 0


async def test_a_poisoned_process_gets_no_more_tasks_and_the_task_goes_elsewhere(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        bad = bench.add(fakes("bad", DEVICE_ERROR="1"))
        bench.publish()
        async with bench.dispatcher():
            task_id = await bench.enqueue(fresh())
            await condemned(bench, bad)
            back = await bench.until(task_id, lambda t: t.infra_losses == 1)
            assert uncharged(back, 1)
            assert "device error on instance i0: node" in (back.task_message or "")
            bench.add(fakes("good"), generation="good")
            bench.publish()
            done = await bench.done(task_id)
            assert (done.status, done.attempts, done.instance) == (TaskState.COMPLETED, 1, "i1")
            assert [event for _, event in journal(bad.fake)].count("executed") == 1


@pytest.mark.slow
async def test_a_task_that_spoils_process_after_process_is_poison(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        one = bench.add(fakes("first"))
        bench.publish()
        async with bench.dispatcher():
            task_id = await bench.enqueue(device_error())
            for name in ("second", "third"):
                await condemned(bench, one)
                assert (await bench.task(task_id)).status is not TaskState.FAILED
                restart(bench, one, fakes(name))
            task = await bench.done(task_id)
            assert task.status is TaskState.FAILED
            assert (task.task_message or "").startswith("poison: a device error wherever it runs: node 1")
            await condemned(bench, one)
            restart(bench, one, fakes("fourth"))
            assert (await bench.done(await bench.enqueue(fresh()))).status is TaskState.COMPLETED


@pytest.mark.slow
async def test_where_others_go_well_a_second_process_is_enough(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        one, two = bench.add(fakes("one"), phase=Phase.UNREADY), bench.add(fakes("two"), generation="two")
        bench.publish()
        async with bench.dispatcher():
            assert (await bench.done(await bench.enqueue(fresh()))).status is TaskState.COMPLETED
            one.phase, two.phase = Phase.READY, Phase.UNREADY
            bench.publish()
            task_id = await bench.enqueue(device_error())
            await condemned(bench, one)
            two.phase = Phase.READY
            bench.publish()
            task = await bench.done(task_id)
            assert (task.status, task.instance) == (TaskState.FAILED, "i1")
            assert (task.task_message or "").startswith("poison")


async def test_out_of_memory_is_tried_again_once_with_all_models_unloaded(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        one = bench.add(fakes(OUT_OF_MEMORY="1"))
        bench.publish()
        async with bench.dispatcher():
            task = await bench.done(await bench.enqueue(fresh()))
        assert (task.status, task.attempts, task.infra_losses) == (TaskState.COMPLETED, 2, 0)
        assert [event for _, event in journal(one.fake)].count("freed") == 1
        assert not bench.live.evidence.get()[one.key].condemned


async def test_out_of_memory_again_fails_the_task_with_its_words(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        one = bench.add(fakes(OUT_OF_MEMORY="always"))
        bench.publish()
        async with bench.dispatcher():
            task = await bench.done(await bench.enqueue(fresh()))
            only = await bench.done(await bench.enqueue(fresh(), max_attempts=1))
        assert (task.status, task.attempts) == (TaskState.FAILED, 2)
        assert "OutOfMemoryError: Allocation on device 0" in (task.task_message or "")
        assert (only.status, only.attempts) == (TaskState.FAILED, 1)
        assert [event for _, event in journal(one.fake)].count("executed") == 3
