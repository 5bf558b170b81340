"""How tasks end on a real ComfyUI: in time, with progress, by an error, refused, cancelled, from its cache."""

import json
import os
import time
import uuid
from typing import Any

import pytest

from tests.graphs import fresh, node
from tests.real import graphs
from tests.real.conftest import NAME, RealComfyUI
from tests.real.tasks import asked, body, completed, create, ended, files, run, show

pytestmark = [pytest.mark.real, pytest.mark.timeout(1200)]

LONG_S = 60.0


def new_prefix() -> str:
    return f"o{uuid.uuid4().hex[:12]}"


def until_it_runs(comfyui: RealComfyUI, task_id: str) -> None:
    """Not only claimed: ComfyUI reports progress of it."""
    comfyui.daemon.until(lambda: show(comfyui, task_id)["progress"], 20, f"{task_id} makes progress")


def test_a_sleep_takes_its_time(comfyui: RealComfyUI) -> None:
    before = time.monotonic()
    completed(comfyui, graphs.through("TestSleep", seconds=1.0))
    assert 1.0 <= time.monotonic() - before < 3.0


@pytest.mark.parametrize("kind", ["TestSyncProgressUpdate", "TestAsyncProgressUpdate"])
def test_progress_is_seen_while_it_runs(comfyui: RealComfyUI, kind: str) -> None:
    task_id = create(comfyui, body(graphs.through(kind, sleep_seconds=1.0)))
    frames: list[dict[str, Any]] = []

    def look() -> bool:
        task = show(comfyui, task_id)
        frames.extend([task["progress"]] if task["progress"] else [])
        return bool(task["status"] == "COMPLETED")

    comfyui.daemon.until(look, 20, "the task completes")
    values = [frame["value"] for frame in frames if frame["node"] == "2" and frame["value"] > 0]
    assert values == sorted(values)
    assert len(set(values)) >= 5
    assert {frame["max"] for frame in frames} <= {1.0}
    assert values[-1] > 0.5
    assert show(comfyui, task_id)["progress"] is None


@pytest.mark.parametrize(("how", "inputs"), [("Sync", {}), ("Async", {"error_after": 0.1})])
def test_an_error_names_the_node_and_what_it_said(comfyui: RealComfyUI, how: str, inputs: dict[str, float]) -> None:
    task = run(comfyui, graphs.through(f"Test{how}Error", **inputs))
    assert task["status"] == "FAILED"
    assert task["task_message"] == (
        f"node 2 (Test{how}Error): RuntimeError: Intentional {how.lower()} execution error for testing"
    )
    assert task["attempts"] == 1
    assert task["output_data"] is None


def test_a_branch_that_fails_fails_the_task(comfyui: RealComfyUI) -> None:
    task = run(comfyui, graphs.half_failing(new_prefix()))
    assert task["status"] == "FAILED"
    assert task["task_message"].startswith("node 4 (TestSyncError): ")


def test_an_unknown_node_is_refused_for_good(comfyui: RealComfyUI) -> None:
    task = run(comfyui, {"1": node("NoSuchNode"), "2": graphs.save(new_prefix(), "1")})
    assert task["status"] == "FAILED"
    assert task["attempts"] == 1, "a validation error is permanent"
    assert task["task_message"].startswith("ComfyUI refused the workflow: ")
    assert "NoSuchNode" in task["task_message"]


def test_a_value_that_a_node_refuses_is_told_in_its_words(comfyui: RealComfyUI) -> None:
    graph = {
        "1": node("TestAsyncValidation", value=8.0, threshold=5.0),
        "2": node("PreviewImage", images=["1", 0]),
    }
    task = run(comfyui, graph)
    assert task["status"] == "FAILED"
    assert task["attempts"] == 1
    assert "node 1 (TestAsyncValidation): " in task["task_message"]
    assert "Value 8.0 exceeds threshold 5.0" in task["task_message"]


def test_cancelling_what_runs_and_what_waits_leaves_the_instance_at_work(comfyui: RealComfyUI) -> None:
    pid = comfyui.daemon.instance(NAME)["pid"]
    running, at_comfyui, in_our_queue, spared = (
        create(comfyui, body(graph))
        for graph in (
            graphs.through("TestSleep", seconds=LONG_S),
            graphs.through("TestSleep", seconds=LONG_S),
            graphs.through("TestSleep", seconds=LONG_S),
            fresh(new_prefix()),
        )
    )
    until_it_runs(comfyui, running)
    comfyui.daemon.until(lambda: queued_prompts(comfyui) == 2, 20, "one runs, one waits in ComfyUI's own queue")
    before = time.monotonic()

    for task_id in (in_our_queue, at_comfyui, running):
        comfyui.daemon.post(f"/tasks/{task_id}/cancel")
        task = ended(comfyui, task_id)
        assert (task["status"], task["output_data"]) == ("CANCELLED", None), task
        assert task["finished_at"]
    task = ended(comfyui, spared)
    assert task["status"] == "COMPLETED", task
    assert time.monotonic() - before < LONG_S / 2
    assert queued_prompts(comfyui) == 0
    assert comfyui.daemon.instance(NAME)["pid"] == pid
    assert comfyui.daemon.instance(NAME)["ready"]


def queued_prompts(comfyui: RealComfyUI) -> int:
    """Running and waiting, as ComfyUI itself counts."""
    return int(asked(comfyui, "prompt")["exec_info"]["queue_remaining"])


def test_an_identical_prompt_gives_its_files_again(comfyui: RealComfyUI) -> None:
    """ComfyUI runs nothing and repeats the same files: each task must still have its own."""
    graph = fresh(new_prefix())
    together = [create(comfyui, body(graph)) for _ in range(2)]
    tasks = [ended(comfyui, task_id) for task_id in together]
    tasks.append(run(comfyui, graph))
    assert {task["status"] for task in tasks} == {"COMPLETED"}
    first, *others = [files(comfyui, task, 1)[0] for task in tasks]
    assert others == [first, first]
    assert len({task["output_data"]["files"][0]["filename"] for task in tasks}) == 1
    assert len({task["output_data"]["urls"][0] for task in tasks}) == 3


def test_a_result_outlives_the_file_that_comfyui_wrote(comfyui: RealComfyUI) -> None:
    task = completed(comfyui, fresh(new_prefix()))
    (before,) = files(comfyui, task, 1)
    written = list((comfyui.daemon.root / "workspace/data").rglob(task["output_data"]["files"][0]["filename"]))
    assert written
    for path in written:
        os.unlink(path)
    assert files(comfyui, task, 1) == [before]


def test_history_is_forgotten_once_the_result_is_ours(comfyui: RealComfyUI) -> None:
    prefix = new_prefix()
    completed(comfyui, fresh(prefix))
    comfyui.daemon.until(lambda: prefix not in json.dumps(asked(comfyui, "history")), 20, "ComfyUI forgot it")
