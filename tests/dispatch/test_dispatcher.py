"""Tasks from PENDING to their end on stand-ins: results, failures, cancels, lost instances."""

import asyncio
import os
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from comfyd.model.base import Now
from comfyd.model.desired import EnvironmentSpec
from comfyd.model.observed import ExitInfo, Phase
from comfyd.model.task import TaskState
from tests.dispatch.rig import PACE, Fakes, journal, now, rig
from tests.fake import eventually
from tests.graphs import fresh, invert, node, pixels, report, sleep

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize("generation", ["legacy", "new"])
async def test_a_task_comes_back_as_an_image(tmp_path: Path, fakes: Fakes, generation: str) -> None:
    async with rig(tmp_path) as bench:
        one = bench.add(fakes(GENERATION=generation))
        bench.publish()
        async with bench.dispatcher():
            task_id = await bench.enqueue(invert())
            task = await bench.done(task_id)
            assert task.status is TaskState.COMPLETED
            assert (task.instance, task.target_port, task.attempts) == ("i0", one.fake.port, 1)
            assert task.output_data is not None
            (path,) = bench.stored(task)
            assert task.output_data == {
                "urls": [f"/tasks/{task_id}/outputs/0"],
                "files": [
                    {
                        "filename": "invert_00001_.png",
                        "subfolder": "",
                        "type": "output",
                        "node": "3",
                        "path_name": "0-invert_00001_.png",
                        "size": path.stat().st_size,
                    }
                ],
                "text": [],
            }
            assert pixels(path.read_bytes())[2] == {(0xCC, 0x99, 0)}
            assert path.samefile(one.fake.output / "invert_00001_.png"), "linked, not copied"
            await eventually(lambda: not bench.live.evidence.get()[one.key].in_flight)


async def test_every_file_and_text_is_collected(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        bench.add(fakes())
        bench.publish()
        graph = invert(prefix="a/b/x", batch=2) | {
            "0": node("EmptyImage", width=8, height=8, batch_size=1, color=1),
            "4": node("PreviewImage", images=["0", 0]),
            "5": node("PreviewAny", source="hello"),
        }
        async with bench.dispatcher():
            task = await bench.done(await bench.enqueue(graph))
            assert task.status is TaskState.COMPLETED
            assert task.output_data is not None
            files = task.output_data["files"]
            assert [(f["type"], f["subfolder"]) for f in files] == [("output", "a/b")] * 2 + [("temp", "")]
            assert [f["path_name"][:4] for f in files] == ["0-x_", "1-x_", "2-Co"]
            assert task.output_data["text"] == ["hello"]
            assert all(path.read_bytes().startswith(b"\x89PNG") for path in bench.stored(task))


async def test_files_of_a_folder_we_do_not_own_are_fetched(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        one = bench.add(fakes(), argv=("--output-directory=/elsewhere",))
        bench.publish()
        async with bench.dispatcher():
            task = await bench.done(await bench.enqueue(invert()))
            (path,) = bench.stored(task)
            assert path.read_bytes() == (one.fake.output / "invert_00001_.png").read_bytes()
            assert not path.samefile(one.fake.output / "invert_00001_.png")
            assert [p.name for p in path.parent.iterdir()] == [path.name]


async def test_progress_is_shown_while_it_runs_and_gone_afterwards(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        one = bench.add(fakes())
        bench.publish()
        async with bench.dispatcher():
            task_id = await bench.enqueue(sleep(1.0, "slow"))
            seen: list[dict[str, Any]] = []

            def half() -> bool:
                frame = bench.live.progress.get().get(task_id)
                if frame:
                    seen.append(dict(frame))
                return bool(frame and frame["max"] == 10 and frame["value"] >= 3)

            await eventually(half)
            assert seen[-1]["node"] == "2"
            assert abs(seen[-1]["at"] / 1000 - now().wall) < 5
            evidence = bench.live.evidence.get()[one.key]
            assert (evidence.generation, evidence.in_flight) == ("g1", 1)
            assert evidence.progress_mono is not None
            await bench.done(task_id)
            await eventually(lambda: not bench.live.progress.get())


async def test_progress_told_only_as_the_state_of_all_nodes_is_shown(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        bench.add(fakes())
        bench.publish()
        async with bench.dispatcher():
            task_id = await bench.enqueue(report(1.0, "reports"))
            seen: list[Any] = []

            def ended() -> bool:
                frame: Any = bench.live.progress.get().get(task_id)
                seen.extend([frame["value"]] if frame and frame["node"] == "2" else [])
                return bool(seen) and frame is None

            await eventually(ended)
            assert len(set(seen)) >= 5
            assert seen == sorted(seen)


async def test_at_most_two_prompts_are_in_flight_on_one_instance(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        one = bench.add(fakes())
        bench.publish()
        async with bench.dispatcher():
            tasks = [await bench.enqueue(sleep(0.3)) for _ in range(5)]
            most = 0

            async def all_done() -> bool:
                nonlocal most
                counts = await bench.stores.tasks.stats()  # one consistent look, not one task after another
                most = max(most, counts.processing)
                return counts.completed == len(tasks)

            await eventually(all_done)
            assert most == 2
            ran = [prompt for prompt, event in journal(one.fake) if event == "executed"]
            assert ran == [(await bench.task(t)).prompt_id for t in tasks], "in the order of the queue"


async def test_tasks_spread_over_instances(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        bench.add(fakes("one"))
        bench.add(fakes("two"))
        bench.publish()
        async with bench.dispatcher():
            tasks = [await bench.enqueue(sleep(0.8)) for _ in range(2)]
            first, second = [await bench.until_state(t, TaskState.PROCESSING) for t in tasks]
            assert {first.instance, second.instance} == {"i0", "i1"}
            for task_id in tasks:
                assert (await bench.done(task_id)).status is TaskState.COMPLETED


async def test_a_task_waits_until_an_instance_is_ready(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        one = bench.add(fakes(), phase=Phase.STARTING)
        bench.publish()
        async with bench.dispatcher():
            task_id = await bench.enqueue(fresh())
            await asyncio.sleep(0.2)  # time in which it would have been claimed
            assert (await bench.task(task_id)).status is TaskState.PENDING
            one.phase = Phase.READY
            bench.publish()
            assert (await bench.done(task_id)).status is TaskState.COMPLETED


@pytest.mark.parametrize("off", ["environment", "settings", "draining"])
async def test_nothing_is_claimed_where_dispatch_is_off(tmp_path: Path, fakes: Fakes, off: str) -> None:
    async with rig(tmp_path, dispatch=off != "settings") as bench:
        bench.add(fakes())
        if off == "environment":
            bench.environment = EnvironmentSpec(name="comm", workflows=("w",), dispatch="external")
        bench.live.draining.set(off == "draining")
        bench.publish()
        async with bench.dispatcher():
            task_id = await bench.enqueue(fresh())
            await asyncio.sleep(0.3)  # time in which it would have been claimed
            assert (await bench.task(task_id)).status is TaskState.PENDING


async def test_a_refused_graph_fails_with_the_reasons(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        bench.add(fakes())
        bench.publish()
        async with bench.dispatcher():
            bad = await bench.done(await bench.enqueue({"1": node("SaveImage", filename_prefix="x")}))
            unknown = await bench.done(await bench.enqueue({"1": node("NoSuchNode")}))
            empty = await bench.done(await bench.enqueue(None))
            partly = await bench.done(await bench.enqueue(fresh() | {"7": node("SaveImage", filename_prefix="x")}))
            after = await bench.done(await bench.enqueue(fresh()))
        tasks = (bad, unknown, empty, partly)
        assert {(t.status, t.attempts) for t in tasks} == {(TaskState.FAILED, 1)}
        messages = [t.task_message or "" for t in tasks]
        assert "node 1 (SaveImage): Required input is missing: images [required_input_missing]" in messages[0]
        assert "NoSuchNode" in messages[1]
        assert "wf_json" in messages[2]
        assert "node 7 (SaveImage)" in messages[3]
        assert after.status is TaskState.COMPLETED


async def test_a_failing_node_fails_the_task_with_its_words(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        one = bench.add(fakes())
        bench.publish()
        graph = {"1": node("TestSyncError", value="x"), "2": node("PreviewAny", source=["1", 0])}
        async with bench.dispatcher():
            task = await bench.done(await bench.enqueue(graph))
            assert task.status is TaskState.FAILED
            assert task.task_message == "node 1 (TestSyncError): RuntimeError: this node always fails"
            assert bench.live.evidence.get()[one.key].device_errors == 0


async def test_a_declared_output_that_is_missing_fails_the_task(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        one = bench.add(fakes())
        bench.publish()
        graph = fresh("twice")
        async with bench.dispatcher():
            await bench.done(await bench.enqueue(graph))
            (one.fake.output / "twice_00001_.png").unlink()
            task = await bench.done(await bench.enqueue(graph))  # answered from the cache: the file is named again
            assert task.status is TaskState.FAILED
            assert "twice_00001_.png" in (task.task_message or "")


async def test_a_running_task_is_cancelled_by_its_id(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        one = bench.add(fakes())
        bench.publish()
        async with bench.dispatcher():
            first = await bench.enqueue(sleep(20))
            second = await bench.enqueue(fresh())
            await bench.until_running(first, one.fake)
            await bench.until_state(second, TaskState.PROCESSING)
            await bench.cancel(first)
            task = await bench.done(first, timeout_s=5)
            assert (task.status, task.task_message) == (TaskState.CANCELLED, "cancelled while it ran")
            assert (await bench.done(second)).status is TaskState.COMPLETED


@pytest.mark.parametrize("generation", ["legacy", "new"])
async def test_a_waiting_task_is_cancelled_and_the_running_one_goes_on(
    tmp_path: Path, fakes: Fakes, generation: str
) -> None:
    async with rig(tmp_path) as bench:
        one = bench.add(fakes(GENERATION=generation))
        bench.publish()
        async with bench.dispatcher():
            first = await bench.enqueue(sleep(1.0))
            await bench.until_running(first, one.fake)
            second = await bench.enqueue(fresh())
            waiting = await bench.until_state(second, TaskState.PROCESSING)
            await eventually(lambda: (waiting.prompt_id, "accepted") in journal(one.fake))
            await bench.cancel(second)
            assert (await bench.done(second, timeout_s=5)).status is TaskState.CANCELLED
            assert (await bench.done(first)).status is TaskState.COMPLETED
            assert (waiting.prompt_id, "executed") not in journal(one.fake)


async def test_a_killed_instance_gives_its_tasks_back_uncharged(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        one = bench.add(fakes("one"))
        bench.publish()
        async with bench.dispatcher():
            running, waiting = await bench.enqueue(sleep(20)), await bench.enqueue(fresh())
            await bench.until_running(running, one.fake)
            await bench.until_state(waiting, TaskState.PROCESSING)
            one.fake.kill()
            one.phase = Phase.GONE
            bench.publish()
            for task_id in (running, waiting):
                task = await bench.until_state(task_id, TaskState.PENDING, timeout_s=5)
                assert (task.attempts, task.infra_losses) == (0, 1)
                assert "i0 went away" in (task.task_message or "")
            assert not bench.live.evidence.get()
            one.fake, one.phase, one.generation = fakes("again"), Phase.READY, "g2"
            bench.publish()
            await bench.until_running(running, one.fake)
            await bench.cancel(running)
            assert (await bench.done(waiting)).status is TaskState.COMPLETED


async def test_a_prompt_that_keeps_killing_its_instance_is_poison_and_its_neighbour_is_not(
    tmp_path: Path, fakes: Fakes
) -> None:
    async with rig(tmp_path) as bench:
        one = bench.add(fakes("start"))
        bench.publish()
        async with bench.dispatcher():
            killer, waiting = await bench.enqueue(sleep(20)), await bench.enqueue(fresh())
            for death in range(3):
                await bench.until_running(killer, one.fake)
                await bench.until_state(waiting, TaskState.PROCESSING)
                one.fake.kill()
                one.phase, one.last_exit = Phase.GONE, ExitInfo(signal="SIGSEGV", at=now().mono, wall=now().wall)
                bench.publish()
                await bench.until_state(waiting, TaskState.PENDING, timeout_s=5)
                task = await bench.until(killer, lambda task, seen=death + 1: task.crashes == seen, 5)
                one.fake, one.phase, one.generation = fakes(f"again{death}"), Phase.READY, f"g{death + 2}"
                bench.publish()
            assert (task.status, task.attempts, task.infra_losses) == (TaskState.FAILED, 0, 0)
            assert (task.task_message or "").startswith("poison")
            task = await bench.done(waiting)
            assert (task.status, task.crashes, task.infra_losses) == (TaskState.COMPLETED, 0, 3)


async def test_an_instance_that_was_stopped_on_purpose_blames_nobody(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        one = bench.add(fakes())
        bench.publish()
        async with bench.dispatcher():
            task_id = await bench.enqueue(sleep(20))
            await bench.until_running(task_id, one.fake)
            one.fake.kill()
            one.phase = Phase.GONE
            one.last_exit = ExitInfo(signal="SIGINT", asked=True, at=now().mono, wall=now().wall)
            bench.publish()
            task = await bench.until_state(task_id, TaskState.PENDING, timeout_s=5)
            assert (task.crashes, task.infra_losses) == (0, 1)


async def test_a_post_without_an_answer_is_not_posted_again(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        one = bench.add(fakes(SILENT_PROMPT="1"))
        bench.publish()
        async with bench.dispatcher():
            task = await bench.done(await bench.enqueue(fresh()))
            assert task.status is TaskState.COMPLETED
            assert journal(one.fake) == [(task.prompt_id, "accepted"), (task.prompt_id, "executed")]


async def test_an_instance_that_chooses_its_own_id_is_followed_by_it(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        one = bench.add(fakes(IGNORE_PROMPT_ID="1", SILENT_PROMPT="2"))
        bench.publish()
        async with bench.dispatcher():
            for _ in range(2):
                task = await bench.done(await bench.enqueue(fresh()))
                assert task.status is TaskState.COMPLETED
        assert [event for _, event in journal(one.fake)] == ["accepted", "executed"] * 2


async def test_a_forgotten_result_is_a_charged_attempt(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        one = bench.add(fakes(LOSE_HISTORY="1"))
        bench.publish()
        async with bench.dispatcher():
            task = await bench.done(await bench.enqueue(fresh(), max_attempts=2))
            assert (task.status, task.attempts) == (TaskState.FAILED, 2)
            assert "forgot" in (task.task_message or "")
            assert [event for _, event in journal(one.fake)].count("executed") == 2


async def test_an_instance_that_cannot_be_reached_gives_the_task_to_another(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        bench.add(fakes("dead")).fake.kill()
        bench.publish()  # and yet control calls it ready
        async with bench.dispatcher():
            task_id = await bench.enqueue(fresh())
            assert (await bench.until_state(task_id, TaskState.PROCESSING)).instance == "i0"
            bench.add(fakes("alive"), generation="g2")
            bench.publish()
            task = await bench.done(task_id)
            assert (task.status, task.instance) == (TaskState.COMPLETED, "i1")
            assert (task.attempts, task.infra_losses) == (1, 1)


async def test_a_silent_instance_is_asked_before_the_task_is_given_back(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        one = bench.add(fakes(DROP_PROMPT="1"))
        bench.publish()
        async with bench.dispatcher():
            task = await bench.done(await bench.enqueue(fresh()))
            assert (task.status, task.attempts, task.infra_losses) == (TaskState.COMPLETED, 1, 1)
            assert journal(one.fake) == [(task.prompt_id, "accepted"), (task.prompt_id, "executed")]


async def test_a_wedge_is_waited_out(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        one = bench.add(fakes())
        bench.publish()
        async with bench.dispatcher():
            task_id = await bench.enqueue(sleep(0.5))
            await bench.until_running(task_id, one.fake)
            await asyncio.to_thread(urllib.request.urlopen, f"{one.fake.url}/fake/wedge?seconds=1.6", b"")
            task = await bench.done(task_id)
            assert (task.status, task.attempts, task.infra_losses) == (TaskState.COMPLETED, 1, 0)


async def test_history_is_polled_where_the_websocket_is_lost(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        bench.add(fakes(DROP_WS="2"))
        bench.publish()
        async with bench.dispatcher():
            for _ in range(3):
                assert (await bench.done(await bench.enqueue(sleep(0.3)))).status is TaskState.COMPLETED


async def test_a_lost_lease_ends_the_work(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path, lease_s=1.5) as bench:
        one = bench.add(fakes())
        bench.publish()
        async with bench.dispatcher():
            task_id = await bench.enqueue(sleep(20))
            before = await bench.until_running(task_id, one.fake)
            one.run = False  # no room for another claim
            bench.publish()
            await bench.stores.tasks.recover(bench.stores.node.node_id, 60, now())  # somebody else holds it now
            await eventually(lambda: not bench.live.evidence.get()[one.key].in_flight, 5)
            task = await bench.task(task_id)
            assert task.status is TaskState.PROCESSING, "not ours to finish"
            again = invert()
            one.run = True
            bench.publish()
            other = await bench.enqueue(again)
            assert (await bench.done(other, timeout_s=5)).status is TaskState.COMPLETED, "its prompt was withdrawn"
            assert before.prompt_id is not None


async def test_a_lease_is_renewed_as_long_as_the_prompt_runs(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path, lease_s=0.6) as bench:
        bench.add(fakes())
        bench.publish()
        async with bench.dispatcher():
            task = await bench.done(await bench.enqueue(sleep(1.6)))
            assert (task.status, task.attempts) == (TaskState.COMPLETED, 1)


async def test_an_expired_lease_of_a_fetcher_comes_back_by_its_timer(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        bench.add(fakes())
        bench.publish()
        task_id = await bench.enqueue(fresh())
        assert await bench.stores.tasks.fetch("somebody", None, None, {}, 0.7, now())
        async with bench.dispatcher():
            task = await bench.done(task_id, timeout_s=5)
            assert (task.status, task.attempts) == (TaskState.COMPLETED, 2)


async def test_idle_means_idle(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        bench.add(fakes())
        bench.publish()
        calls = 0
        claim = bench.stores.tasks.claim

        async def counted(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            return await claim(*args)

        bench.stores.tasks.claim = counted  # type: ignore[method-assign]
        async with bench.dispatcher():
            assert (await bench.done(await bench.enqueue(fresh()))).status is TaskState.COMPLETED
            await asyncio.sleep(3 * PACE.poll_s)
            settled, ticks = calls, os.times()
            await asyncio.sleep(1)
            after = os.times()
            assert calls == settled
            assert (after.user - ticks.user) + (after.system - ticks.system) < 0.2


async def test_without_dispatch_expired_leases_of_outside_workers_still_return(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path, dispatch=False) as bench:
        bench.publish()
        async with bench.dispatcher():
            task = await bench.enqueue(sleep(0.1))
            claim = await bench.stores.tasks.fetch("worker", None, None, {}, 0.3, now())
            assert claim is not None
            bench.live.task_wake.set()
            await bench.until_state(task, TaskState.PENDING)


async def test_what_falls_due_happens_by_itself_also_while_every_slot_is_full(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        bench.add(fakes())
        bench.publish()
        async with bench.dispatcher():
            running = [await bench.enqueue(sleep(30)) for _ in range(2)]
            for task_id in running:
                await bench.until_state(task_id, TaskState.PROCESSING)
            soon = int(now().wall * 1000) + 1500
            missed = await bench.enqueue(fresh(), deadline=soon)
            task = await bench.done(missed, timeout_s=5)
            assert (task.status, task.attempts) == (TaskState.FAILED, 0)
            assert task.finished_at is not None
            assert soon <= task.finished_at <= soon + 1000
            for task_id in running:
                await bench.cancel(task_id)


async def test_a_deadline_that_comes_while_nothing_is_waited_for_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No instance, no lease, no timer: only the new task itself can tell of its deadline."""
    looks = 0
    async with rig(tmp_path) as bench:
        look = bench.stores.tasks.next_expiry

        async def counted(at: Now) -> float | None:
            nonlocal looks
            looks += 1
            return await look(at)

        monkeypatch.setattr(bench.stores.tasks, "next_expiry", counted)
        bench.publish()
        async with bench.dispatcher():
            await eventually(lambda: looks)
            soon = int(now().wall * 1000) + 300
            task = await bench.done(await bench.enqueue(fresh(), deadline=soon), timeout_s=5)
            assert (task.status, task.attempts) == (TaskState.FAILED, 0)
            assert task.finished_at is not None
            assert soon <= task.finished_at <= soon + 1000


async def test_a_task_starts_at_its_time_by_a_timer(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        bench.add(fakes())
        bench.publish()
        async with bench.dispatcher():
            soon = int(now().wall * 1000) + 700
            task = await bench.done(await bench.enqueue(fresh(), run_after=soon), timeout_s=5)
            assert task.status is TaskState.COMPLETED
            assert task.started_at is not None
            assert soon <= task.started_at <= soon + 1000


async def test_an_environment_runs_no_more_at_once_than_its_config_says(tmp_path: Path, fakes: Fakes) -> None:
    async with rig(tmp_path) as bench:
        bench.environment = EnvironmentSpec(name="comm", workflows=("w",), max_running=1)
        for name in ("one", "two"):
            bench.add(fakes(name))
        bench.publish()
        async with bench.dispatcher():
            tasks = [await bench.enqueue(sleep(0.2)) for _ in range(4)]
            most = 0

            async def ended(n: int) -> bool:
                nonlocal most
                counts = await bench.stores.tasks.stats()
                most = max(most, counts.processing)
                return counts.completed >= n

            await eventually(lambda: ended(2))
            assert most == 1
            bench.environment = EnvironmentSpec(name="comm", workflows=("w",))
            tasks += [await bench.enqueue(sleep(0.2)) for _ in range(6)]
            bench.publish()  # an edit: at once, without a restart
            await eventually(lambda: ended(len(tasks)))
            assert most > 1
