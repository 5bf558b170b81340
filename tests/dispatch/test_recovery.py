"""A daemon that ends or dies while prompts are open: what the next one makes of them, and what shutdown leaves."""

import asyncio
from pathlib import Path

import aiohttp
import pytest

from comfyd import failpoint
from comfyd.core.route import slots
from comfyd.dispatch.comfy import ComfyClient
from comfyd.errors import StoreError
from comfyd.model.observed import Phase
from comfyd.model.task import TaskState
from tests.dispatch.rig import Fakes, Rig, journal, now, rig
from tests.fake import eventually
from tests.graphs import Graph, fresh, invert, sleep

pytestmark = pytest.mark.asyncio


async def abandoned(bench: Rig, graph: Graph, posted: bool) -> str:
    """A task whose daemon died after its claim, and after its post if `posted`."""
    task_id = await bench.enqueue(graph)
    room = slots(bench.live.resolved.get(), bench.live.observed.get(), {})
    (claim,) = await bench.stores.tasks.claim(room[:1], 30, now())
    if posted:
        async with aiohttp.ClientSession() as session:
            client = ComfyClient(session, bench.instances[0].fake.url)
            await client.submit(claim.prompt_id, graph, "dead", task_id)
    return task_id


async def test_a_prompt_that_ended_meanwhile_is_harvested(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        one = bench.add(fakes())
        bench.publish()
        task_id = await abandoned(bench, invert(), posted=True)
        before = await bench.task(task_id)
        await eventually(lambda: (before.prompt_id, "executed") in journal(one.fake))
        async with bench.dispatcher():
            task = await bench.done(task_id)
        assert (task.status, task.attempts, task.prompt_id) == (TaskState.COMPLETED, 1, before.prompt_id)
        assert bench.stored(task)[0].read_bytes().startswith(b"\x89PNG")
        assert [event for _, event in journal(one.fake)] == ["accepted", "executed"]


async def test_a_prompt_that_still_runs_is_followed_to_its_end(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path, keep_instances=True, shutdown_drain_s=60) as bench:
        one = bench.add(fakes())
        bench.publish()
        async with bench.dispatcher():
            running, waiting = await bench.enqueue(sleep(1.5)), await bench.enqueue(fresh())
            before = await bench.until_running(running, one.fake)
            other = await bench.until_state(waiting, TaskState.PROCESSING)
            await eventually(lambda: (other.prompt_id, "accepted") in journal(one.fake))
        assert (await bench.task(running)).status is TaskState.PROCESSING, "kept for the next daemon"
        async with bench.dispatcher():
            await eventually(lambda: running in bench.live.progress.get())
            task = await bench.done(running)
            assert (task.status, task.attempts, task.prompt_id) == (TaskState.COMPLETED, 1, before.prompt_id)
            assert (await bench.done(waiting)).status is TaskState.COMPLETED
        ran = [prompt for prompt, event in journal(one.fake) if event == "executed"]
        assert ran == [before.prompt_id, other.prompt_id]


async def test_recovered_prompts_count_as_in_flight(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        bench.add(fakes())
        bench.publish()
        for _ in range(2):
            await abandoned(bench, sleep(20), posted=True)
        async with bench.dispatcher():
            await eventually(lambda: [e.in_flight for e in bench.live.evidence.get().values()] == [2])
            third = await bench.enqueue(fresh())
            await asyncio.sleep(0.3)  # time in which it would have been claimed
            assert (await bench.task(third)).status is TaskState.PENDING


async def test_a_prompt_that_was_never_posted_runs_again_uncharged(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        one = bench.add(fakes())
        bench.publish()
        task_id = await abandoned(bench, invert(), posted=False)
        before = await bench.task(task_id)
        async with bench.dispatcher():
            task = await bench.done(task_id)
        assert (task.status, task.attempts, task.infra_losses) == (TaskState.COMPLETED, 1, 1)
        assert task.prompt_id != before.prompt_id
        assert [event for _, event in journal(one.fake)] == ["accepted", "executed"]


async def test_another_generation_means_the_prompt_is_lost(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        one = bench.add(fakes())
        bench.publish()
        task_id = await abandoned(bench, sleep(20), posted=False)
        one.generation = "g2"
        bench.publish()
        async with bench.dispatcher():
            task = await bench.until(task_id, lambda t: t.generation == "g2")
            assert (task.attempts, task.infra_losses) == (1, 1)


async def test_nothing_is_decided_before_control_has_looked(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        bench.add(fakes())
        bench.publish()
        task_id = await abandoned(bench, invert(), posted=True)
        seen = bench.live.observed.get()
        bench.live.observed.set(type(seen)())
        bench.live.passes.set(0)
        async with bench.dispatcher():
            await asyncio.sleep(0.3)
            assert (await bench.task(task_id)).status is TaskState.PROCESSING
            bench.publish()
            task = await bench.done(task_id)
            assert (task.status, task.attempts, task.infra_losses) == (TaskState.COMPLETED, 1, 0)


async def test_without_control_the_wait_is_bounded(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        bench.add(fakes())
        bench.publish()
        task_id = await abandoned(bench, invert(), posted=False)
        bench.live.observed.set(type(bench.live.observed.get())())
        bench.live.passes.set(0)
        async with bench.dispatcher():
            task = await bench.until_state(task_id, TaskState.PENDING, timeout_s=10)
            assert task.infra_losses == 1


async def test_a_cancel_asked_for_while_the_daemon_was_away_is_done(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        one = bench.add(fakes())
        bench.publish()
        task_id = await abandoned(bench, sleep(20), posted=True)
        await bench.cancel(task_id)
        async with bench.dispatcher():
            assert (await bench.done(task_id)).status is TaskState.CANCELLED
            after = await bench.enqueue(fresh())
            assert (await bench.done(after)).status is TaskState.COMPLETED
        assert len(journal(one.fake)) == 4


async def test_shutdown_waits_for_prompts_and_claims_no_more(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path, shutdown_drain_s=10) as bench:
        one = bench.add(fakes())
        bench.publish()
        async with bench.dispatcher():
            tasks = [await bench.enqueue(sleep(0.5)) for _ in range(3)]
            await bench.until_running(tasks[0], one.fake)
            await bench.until_state(tasks[1], TaskState.PROCESSING)
            bench.live.draining.set(True)
        states = [(await bench.task(t)).status for t in tasks]
        assert states == [TaskState.COMPLETED, TaskState.COMPLETED, TaskState.PENDING]
        assert (await bench.task(tasks[2])).attempts == 0


async def test_shutdown_releases_what_does_not_end_in_time(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path, shutdown_drain_s=0.3) as bench:
        one = bench.add(fakes())
        bench.publish()
        async with bench.dispatcher():
            tasks = [await bench.enqueue(sleep(30)) for _ in range(3)]
            await bench.until_running(tasks[0], one.fake)
            await bench.until_state(tasks[1], TaskState.PROCESSING)
            begun = now().mono
        assert now().mono - begun < 2
        for task_id in tasks[:2]:
            task = await bench.task(task_id)
            assert (task.status, task.attempts, task.infra_losses) == (TaskState.PENDING, 0, 1)
            assert task.task_message == "the daemon was stopped"
        assert (await bench.task(tasks[2])).infra_losses == 0


async def test_a_second_signal_ends_the_drain(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path, shutdown_drain_s=60) as bench:
        one = bench.add(fakes())
        bench.publish()
        async with bench.dispatcher() as dispatcher:
            task_id = await bench.enqueue(sleep(30))
            await bench.until_running(task_id, one.fake)
            asyncio.get_running_loop().call_later(0.2, dispatcher.hurry.set)
            begun = now().mono
        assert now().mono - begun < 3
        assert (await bench.task(task_id)).status is TaskState.PENDING


async def test_a_stopped_wedged_instance_does_not_hold_up_the_end(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        one = bench.add(fakes(DROP_PROMPT="1"))
        bench.publish()
        async with bench.dispatcher():
            task_id = await bench.enqueue(fresh())
            await bench.until_state(task_id, TaskState.PROCESSING)
            await asyncio.sleep(0.2)
            begun = now().mono
        assert now().mono - begun < 2
        assert (await bench.task(task_id)).status is TaskState.PENDING
        assert journal(one.fake) == []


@pytest.mark.parametrize("step", ["prompt_id_saved", "prompt_posted", "prompt_acked", "result_seen", "outputs_stored"])
async def test_a_failure_at_any_step_costs_an_attempt_and_no_result(tmp_path: Path, fakes: Fakes, step: str) -> None:
    async with rig(tmp_path) as bench:
        bench.add(fakes())
        bench.publish()
        failpoint.arm(f"{step}=raise")
        try:
            async with bench.dispatcher():
                task = await bench.done(await bench.enqueue(fresh()))
                assert (task.status, task.attempts) == (TaskState.COMPLETED, 2)
        finally:
            failpoint.arm("")


async def test_a_store_that_is_away_for_a_while_loses_no_result(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        one = bench.add(fakes())
        bench.publish()
        real, refusals = bench.stores.tasks.finish_and_claim, 2

        async def flaky(*args: object) -> object:
            nonlocal refusals
            if refusals:
                refusals -= 1
                raise StoreError("away")
            return await real(*args)  # type: ignore[arg-type]

        bench.stores.tasks.finish_and_claim = flaky  # type: ignore[method-assign, assignment]
        async with bench.dispatcher():
            task = await bench.done(await bench.enqueue(fresh()))
            assert (task.status, task.attempts, refusals) == (TaskState.COMPLETED, 1, 0)
        assert [event for _, event in journal(one.fake)] == ["accepted", "executed"]


async def test_a_draining_instance_keeps_its_prompts_and_gets_no_more(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        one = bench.add(fakes())
        bench.publish()
        async with bench.dispatcher():
            first = await bench.enqueue(sleep(0.6))
            await bench.until_running(first, one.fake)
            one.phase = Phase.DRAINING
            bench.publish()
            second = await bench.enqueue(fresh())
            assert (await bench.done(first)).status is TaskState.COMPLETED
            assert (await bench.task(second)).status is TaskState.PENDING
