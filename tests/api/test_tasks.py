"""Tasks through HTTP: create, list, show, cancel, retry, outside workers, outputs."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from comfyd.model.observed import Phase
from comfyd.model.task import NewTask, Outcome, Slot, TaskState
from tests.api.world import GRAPH, JSON, World, now, world

TASK_KEYS = {
    "taskId", "workflow_name", "environment", "target_port", "status", "params", "priority", "user_id", "attempts",
    "created_at", "started_at", "finished_at", "task_message", "output_data", "progress", "instance",
    "max_attempts", "infra_losses", "crashes", "run_after", "deadline",
}  # fmt: skip
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


async def create(w: World, body: Any = None, workflow: str = "paint", **headers: str) -> Any:
    answer = await w.post(f"/tasks/create/{workflow}", body, headers=headers)
    assert answer.status == 200, answer.body
    return answer.json["task"]


@pytest.mark.asyncio
async def test_a_task_in_all_three_forms(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.settle(lambda: w.phase("comfyui/0") is Phase.READY)
        w.live.task_wake.clear()
        for body in (
            None,
            {},
            {"wf_json": GRAPH},
            {"params": {"input_data": {"wf_json": GRAPH, "seed": 1}, "more": 2}},
        ):
            answer = await w.post("/tasks/create/paint", body)
            assert answer.status == 200
            assert set(answer.json) == {"success", "task", "taskId", "message"}
            assert answer.json["success"] is True
            task = answer.json["task"]
            assert set(task) == TASK_KEYS
            assert task["taskId"] == answer.json["taskId"]
            assert re.fullmatch("task_[0-9a-f]{32}", task["taskId"])
            assert task["params"]["input_data"]["wf_json"] == GRAPH
            assert (task["status"], task["environment"], task["target_port"]) == ("PENDING", "comm", 3001)
            assert STAMP.fullmatch(task["created_at"])
        assert task["params"]["more"] == 2
        assert task["params"]["input_data"]["seed"] == 1
        assert w.live.task_wake._event.is_set()
        listed = (await w.get("/tasks")).json
        assert listed["queue_length"] == len(listed["tasks"]) == 4


@pytest.mark.asyncio
async def test_the_body_may_name_the_workflow(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for path in ("/tasks/create", "/api/tasks/create"):
            body = {"workflow_name": "paint", "priority": "vip", "user_id": "u", "max_attempts": 1}
            task = (await w.post(path, body)).json["task"]
            assert (task["workflow_name"], task["priority"], task["user_id"]) == ("paint", "vip", "u")
        assert (await w.post("/tasks/create")).code == "bad_request"
        assert (await w.post("/tasks/create", {})).code == "validation_failed"


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["nope", "..%2F..%2Fsecret", "%00", "a" * 300])
async def test_an_unknown_workflow_lists_the_known_ones(tmp_path: Path, name: str) -> None:
    async with world(tmp_path) as w:
        answer = await w.post(f"/tasks/create/{name}")
        assert (answer.status, answer.code) == (404, "unknown_workflow")
        assert answer.json["error"]["details"]["known"] == ["paint", "sketch", "swap"]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("workflow", "body", "code"),
    [
        ("sketch", {}, "missing_workflow_graph"),
        ("paint", {"wf_json": {}}, "validation_failed"),
        ("paint", {"wf_json": []}, "validation_failed"),
        ("paint", {"params": {"input_data": 3}}, "validation_failed"),
        ("paint", {"params": {"input_data": {"wf_json": "x"}}}, "validation_failed"),
        ("paint", {"params": []}, "validation_failed"),
        ("paint", {"priority": "urgent"}, "validation_failed"),
        ("paint", {"priority": True}, "validation_failed"),
        ("paint", {"max_attempts": 0}, "validation_failed"),
        ("paint", {"max_attempts": False}, "validation_failed"),
        ("paint", {"callback_url": "file:///etc/passwd"}, "validation_failed"),
        ("paint", {"user_id": "u" * 300}, "validation_failed"),
        ("paint", {"wf_json": {"nodes": [], "links": [], "version": 0.4}}, "validation_failed"),
        ("paint", {"wf_json": {str(n): {} for n in range(20_001)}}, "validation_failed"),
    ],
)
async def test_bad_tasks(tmp_path: Path, workflow: str, body: Any, code: str) -> None:
    async with world(tmp_path) as w:
        answer = await w.post(f"/tasks/create/{workflow}", body)
        assert (answer.status, answer.code) == (422, code)
        assert (await w.get("/tasks")).json["tasks"] == []


@pytest.mark.asyncio
async def test_an_editor_workflow_gets_a_hint(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        answer = await w.post("/tasks/create/paint", {"wf_json": {"nodes": [{"id": 1}], "links": []}})
        assert "API" in answer.json["detail"]


@pytest.mark.asyncio
@pytest.mark.parametrize("content", ["{", "[1]", '{"a": NaN}'])
async def test_a_broken_stored_workflow_is_named(tmp_path: Path, content: str) -> None:
    async with world(tmp_path) as w:
        (tmp_path / "config/environments/comm/workflows/paint.json").write_text(content)
        answer = await w.post("/tasks/create/paint")
        assert answer.status == 422
        assert str(tmp_path) not in answer.json["detail"]


@pytest.mark.asyncio
async def test_an_idempotency_key_makes_one_task(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        key = {"Idempotency-Key": "k-1"}
        first = await w.post("/tasks/create/paint", {"wf_json": GRAPH}, headers=key)
        second = await w.post("/api/tasks/create/paint", {"wf_json": GRAPH}, headers=key)
        assert first.json["taskId"] == second.json["taskId"]
        other = await w.post("/tasks/create/paint", {"wf_json": {"2": {}}}, headers=key)
        assert (other.status, other.code) == (422, "idempotency_mismatch")
        for bad in ("x" * 256, "a b", ""):
            assert (await w.post("/tasks/create/paint", headers={"Idempotency-Key": bad})).code == "bad_request"
        assert (await w.get("/tasks")).json["queue_length"] == 1


@pytest.mark.asyncio
async def test_lists_are_filtered_and_paged(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        made = [(await create(w))["taskId"] for _ in range(5)]
        await create(w, {"wf_json": GRAPH}, "sketch")
        seen: list[str] = []
        cursor = ""
        while cursor is not None:
            page = (await w.get(f"/tasks?workflow_name=paint&limit=2{cursor and '&cursor='}{cursor}")).json
            seen += [task["taskId"] for task in page["tasks"]]
            cursor = page["next_cursor"]
        assert seen == made[::-1]
        assert (await w.get("/tasks?status=completed")).json["tasks"] == []
        assert len((await w.get("/tasks?status=PENDING")).json["tasks"]) == 6
        for bad, code in (
            ("status=x", "validation_failed"), ("limit=0", "validation_failed"), ("limit=1001", "validation_failed"),
            ("limit=1&limit=2", "bad_request"), ("cursor=x", "bad_request"), ("nope=1", "validation_failed"),
            ("cursor=%00", "bad_request"),
        ):  # fmt: skip
            assert (await w.get(f"/tasks?{bad}")).code == code, bad


@pytest.mark.asyncio
async def test_cancel_retry_and_counts(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        task = (await create(w))["taskId"]
        cancelled = await w.post(f"/tasks/{task}/cancel")
        assert (cancelled.json["task"]["status"], cancelled.json["message"]) == ("CANCELLED", "Task cancelled")
        assert (await w.post(f"/tasks/{task}/cancel")).code == "illegal_transition"
        retried = await w.post(f"/api/tasks/{task}/retry")
        assert retried.json["task"]["status"] == "PENDING"
        assert (await w.post(f"/tasks/{task}/retry")).code == "illegal_transition"
        stats = (await w.get("/api/stats")).json
        assert stats["success"] is True
        assert stats["stats"] == {
            "total": 1, "pending": 1, "fetched": 0, "processing": 0, "completed": 0, "failed": 0, "cancelled": 0,
        }  # fmt: skip
        assert stats["workflow_stats"] == {"paint": 1}
        cleared = await w.call("DELETE", "/api/tasks/clear")
        assert cleared.json == {"message": "All tasks cleared", "cleared": 1}
        for method, tail in (("GET", ""), ("POST", "/cancel"), ("POST", "/retry"), ("GET", "/outputs/0")):
            assert (await w.call(method, f"/tasks/{task}{tail}")).code == "task_not_found"


@pytest.mark.asyncio
async def test_a_running_task_shows_progress_and_is_cancelled_later(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        task = (await create(w))["taskId"]
        slot = Slot(key="comfyui/0", generation="g", port=3001, environment="comm", instance="main")
        await w.context.tasks.claim([slot], 60, now())
        w.live.progress.set({task: {"value": 3, "max": 10}})
        shown = (await w.get(f"/tasks/{task}")).json
        assert (shown["status"], shown["instance"], shown["progress"]) == (
            "PROCESSING",
            "main",
            {"value": 3, "max": 10},
        )
        answer = await w.post(f"/tasks/{task}/cancel")
        assert answer.json["message"] == "Task is being cancelled"


@pytest.mark.asyncio
async def test_of_a_shared_queue_an_outside_worker_gets_what_this_node_can_run(tmp_path: Path) -> None:
    shared = SecretStr("postgresql:///x")
    async with world(tmp_path, database_url=shared) as w:
        for name in ("elsewhere", "comm"):
            new = NewTask(workflow_name="paint", environment=name, params={"input_data": {"wf_json": GRAPH}})
            await w.context.tasks.enqueue(new, w.context.clock())
        assert (await w.get("/comfyui-fetch-task")).json["environment"] == "comm"
        assert (await w.get("/comfyui-fetch-task")).json == {}
        assert (await w.get("/comfyui-fetch-task?workflow_names=paint")).json == {}


@pytest.mark.asyncio
async def test_an_outside_worker_fetches_and_reports(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        assert (await w.get("/comfyui-fetch-task")).json == {}
        task = (await create(w))["taskId"]
        assert (await w.get("/comfyui-fetch-task?workflow_names=swap,sketch")).json == {}
        fetched = (await w.get("/api/comfyui-fetch-task?workflow_names=sketch,%20paint&x=1")).json
        assert {"taskId", "workflow_name", "environment", "target_port", "params", "status"} <= set(fetched)
        assert (fetched["taskId"], fetched["status"], fetched["target_port"]) == (task, "PENDING", 3001)
        assert fetched["params"] == {"input_data": {"wf_json": GRAPH}}
        assert STAMP.fullmatch(fetched["lease_expires_at"])
        assert (await w.get("/comfyui-fetch-task")).json == {}
        assert (await w.get(f"/tasks/{task}")).json["status"] == "FETCHED"

        beat = await w.post(f"/tasks/{task}/heartbeat", {"lease_token": fetched["lease_token"]})
        assert STAMP.fullmatch(beat.json["lease_expires_at"])
        assert (await w.post(f"/tasks/{task}/heartbeat", {"lease_token": "wrong"})).code == "stale_lease"

        update = {"taskId": task, "status": "PROCESSING", "started_at": 1700000000}
        answer = await w.post("/comfyui-update-task", update)
        assert answer.json == {"success": True, "message": "Task updated successfully"}
        assert (await w.get(f"/tasks/{task}")).json["started_at"] == "2023-11-14T22:13:20.000Z"
        end = {
            "taskId": task, "status": "COMPLETED", "finished_at": "2023-11-14T23:00:00+00:00",
            "output_data": {"urls": ["x"]}, "task_message": "fine",
        }  # fmt: skip
        assert (await w.post("/comfyui-update-task", end)).status == 200
        shown = (await w.get(f"/tasks/{task}")).json
        assert (shown["status"], shown["finished_at"]) == ("COMPLETED", "2023-11-14T23:00:00.000Z")
        assert (shown["output_data"], shown["task_message"]) == ({"urls": ["x"]}, "fine")
        late = await w.post("/comfyui-update-task", {"taskId": task, "status": "PROCESSING"})
        assert late.status == 409
        missing = await w.post("/comfyui-update-task", {"taskId": "task_x", "status": "FAILED"})
        assert (missing.status, missing.code, missing.json["detail"]) == (404, "task_not_found", "Task not found")


@pytest.mark.asyncio
async def test_the_envelope_form(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        empty = (await w.get("/api/comm/task/fetch")).json
        assert (empty["success"], empty["code"], empty["data"]) == (True, 200, None)
        task = (await create(w))["taskId"]
        found = (await w.get("/api/comm/task/fetch?workflow_names=paint")).json
        assert set(found) == {"success", "code", "message", "data"}
        assert (found["data"]["taskId"], found["data"]["status"]) == (task, "FETCHED")
        w.live.task_wake.clear()
        back = await w.post("/api/comm/task/update", {"taskId": task, "status": "PENDING"})
        assert (back.json["success"], back.json["code"]) == (True, 200)
        assert w.live.task_wake._event.is_set()


@pytest.mark.asyncio
@pytest.mark.parametrize("stamp", ["yesterday", True, -1, 1e30, [], "2023-13-01T00:00:00Z"])
async def test_bad_times(tmp_path: Path, stamp: Any) -> None:
    async with world(tmp_path) as w:
        task = (await create(w))["taskId"]
        await w.get("/comfyui-fetch-task")
        answer = await w.post("/comfyui-update-task", {"taskId": task, "status": "PROCESSING", "started_at": stamp})
        assert (answer.status, answer.code) == (422, "validation_failed")


async def finished(w: World, files: list[Any]) -> str:
    """A completed task whose record lists `files`."""
    task = str((await create(w))["taskId"])
    slot = Slot(key="comfyui/0", generation="g", port=3001, environment="comm", instance="main")
    claim = (await w.context.tasks.claim([slot], 60, now()))[0]
    outcome = Outcome(state=TaskState.COMPLETED, output={"files": files})
    await w.context.tasks.finish(claim.lease, outcome, now())
    (w.context.paths.outputs / task).mkdir(parents=True)
    return task


@pytest.mark.asyncio
async def test_an_output_is_downloaded_as_an_attachment(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        task = await finished(w, [{"path_name": "0-a.png"}, {"path_name": '1-ü".html'}, {"path_name": "sub/2.bin"}])
        folder = w.context.paths.outputs / task
        big = bytes(range(256)) * 4000
        (folder / "0-a.png").write_bytes(big)
        (folder / '1-ü".html').write_bytes(b"<script>")
        (folder / "sub").mkdir()
        (folder / "sub/2.bin").write_bytes(b"")
        png = await w.get(f"/tasks/{task}/outputs/0")
        assert png.body == big
        assert png.headers["Content-Type"] == "image/png"
        assert png.headers["Content-Length"] == str(len(big))
        assert png.headers["Content-Disposition"] == "attachment; filename=\"0-a.png\"; filename*=UTF-8''0-a.png"
        assert png.headers["X-Content-Type-Options"] == "nosniff"
        page = await w.get(f"/api/tasks/{task}/outputs/1")
        assert page.headers["Content-Type"] == "application/octet-stream"
        assert page.headers["Content-Disposition"] == (
            "attachment; filename=\"1-__.html\"; filename*=UTF-8''1-%C3%BC%22.html"
        )
        assert (await w.get(f"/tasks/{task}/outputs/2")).body == b""
        for bad in ("3", "-1", "x", "0.5", "1e1", "9" * 30, "٣"):
            assert (await w.get(f"/tasks/{task}/outputs/{bad}")).code == "unknown_output", bad


@pytest.mark.asyncio
async def test_an_output_never_leaves_its_folder(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        names = ["../../comfyd.db", "/etc/passwd", "link", "dir/x", "pipe", "", ".", "a\0b", 7, None]
        task = await finished(w, [{"path_name": name} for name in names] + ["text"])
        folder = w.context.paths.outputs / task
        (tmp_path / "secret").mkdir()
        (tmp_path / "secret/x").write_text("secret")
        (folder / "link").symlink_to(tmp_path / "secret/x")
        (folder / "dir").symlink_to(tmp_path / "secret")
        import os

        os.mkfifo(folder / "pipe")
        for n in range(len(names) + 1):
            answer = await w.get(f"/tasks/{task}/outputs/{n}")
            assert (answer.status, answer.code) == (404, "unknown_output"), n
            assert str(tmp_path) not in answer.json["detail"]


@pytest.mark.asyncio
async def test_every_task_route_has_its_second_address(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        task = (await create(w))["taskId"]
        for path in ("/tasks", f"/tasks/{task}", "/workflows", "/environments", "/stats"):
            assert (await w.get(f"/api{path}")).status == 200
            assert (await w.get(path)).json == (await w.get(f"/api{path}")).json
        assert (await w.post("/comfyui-update-task", data="{}", headers=JSON)).code == "validation_failed"


@pytest.mark.asyncio
async def test_a_task_may_wait_and_may_have_a_deadline(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        later = int(now().wall) + 3600
        task = await create(
            w, {"run_after": later, "deadline": "2100-01-01T00:00:00+01:00"}, **{"Idempotency-Key": "k"}
        )
        assert (task["status"], task["deadline"]) == ("PENDING", "2099-12-31T23:00:00.000Z")
        assert STAMP.fullmatch(task["run_after"])
        assert (await w.get("/comfyui-fetch-task")).json == {}
        again = await create(
            w, {"run_after": later * 1000, "deadline": "2099-12-31T23:00:00Z"}, **{"Idempotency-Key": "k"}
        )
        assert again["taskId"] == task["taskId"], "the same instants written otherwise"
        for times in ({"run_after": "soon"}, {"run_after": later, "deadline": later}, {"deadline": True}):
            assert (await w.post("/tasks/create/paint", times)).code == "validation_failed"
