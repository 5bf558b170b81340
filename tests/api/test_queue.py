"""Pausing and resuming by HTTP, and what the status says of it."""

from pathlib import Path

import pytest

from comfyd.errors import StoreError
from tests.api.test_tasks import STAMP, create
from tests.api.world import world

pytestmark = pytest.mark.asyncio


async def test_a_pause_is_answered_shown_and_lifted(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        task = await create(w)
        answer = await w.post("/api/queue/pause")
        assert answer.status == 200
        (pause,) = answer.json["paused"]
        assert (answer.json["success"], pause["environment"], pause["by"]) == (True, None, "127.0.0.1")
        assert STAMP.fullmatch(pause["since"])
        status = (await w.get("/api/comfyui/status")).json
        assert status["paused"] == [pause]
        assert "queue: paused since" in status["output"]
        assert (await w.get("/comfyui-fetch-task")).json == {}
        assert (await w.get("/api/comm/task/fetch")).json["data"] is None
        assert (await create(w))["status"] == "PENDING"
        w.live.task_wake.clear()
        answer = await w.post("/api/queue/resume", {})
        assert (answer.json["paused"], answer.json["message"]) == ([], "The queue goes on")
        assert w.live.task_wake._event.is_set(), "dispatch is to look at once"
        assert (await w.get("/api/comfyui/status")).json["paused"] == []
        assert (await w.get("/comfyui-fetch-task")).json["taskId"] == task["taskId"]


async def test_one_environment_by_body_or_query(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await create(w)
        for ask in (("/api/queue/pause", {"environment": "comm"}), ("/api/queue/pause?environment=comm", None)):
            answer = await w.post(*ask)
            assert [one["environment"] for one in answer.json["paused"]] == ["comm"]
            assert (await w.get("/comfyui-fetch-task")).json == {}
        await w.post("/api/queue/pause")
        answer = await w.post("/api/queue/resume?environment=comm")
        assert "still paused" in answer.json["message"]
        assert (await w.post("/api/queue/pause", {"environment": "nope"})).code == "unknown_environment"
        assert (await w.post("/api/queue/pause", {"environment": 3})).code == "validation_failed"


async def test_the_status_does_not_depend_on_the_queues_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path) as w:
        await w.post("/api/queue/pause")

        async def away() -> None:
            raise StoreError("away")

        monkeypatch.setattr(w.context.tasks, "pauses", away)
        status = await w.get("/api/comfyui/status")
        assert status.status == 200
        assert [one["environment"] for one in status.json["paused"]] == [None], "as last seen"


async def test_a_full_queue_is_429_with_a_time_to_come_back(tmp_path: Path) -> None:
    async with world(tmp_path, max_queued=2) as w:
        first = await create(w, {}, **{"Idempotency-Key": "k"})
        await create(w)
        answer = await w.post("/tasks/create/paint")
        assert (answer.status, answer.code, answer.headers["Retry-After"]) == (429, "queue_full", "10")
        assert (await create(w, {}, **{"Idempotency-Key": "k"}))["taskId"] == first["taskId"]
        await w.get("/comfyui-fetch-task")
        await create(w)


async def test_dead_letters_are_listed_retried_and_deleted(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        made = [(await create(w))["taskId"] for _ in range(3)]
        for task_id in made[:2]:
            assert (await w.get("/comfyui-fetch-task")).json["taskId"] == task_id
            report = {"taskId": task_id, "status": "FAILED", "task_message": "broken"}
            assert (await w.post("/comfyui-update-task", report)).status == 200
        dead = (await w.get("/api/queue/dead?limit=1")).json
        assert [(one["taskId"], one["task_message"]) for one in dead["tasks"]] == [(made[1], "broken")]
        dead = (await w.get(f"/api/queue/dead?cursor={dead['next_cursor']}")).json
        assert ([one["taskId"] for one in dead["tasks"]], dead["next_cursor"]) == ([made[0]], None)
        folder = w.context.paths.outputs / made[0]
        folder.mkdir(parents=True)
        assert (await w.call("DELETE", f"/tasks/{made[0]}")).json["message"] == "Task deleted"
        assert not folder.exists()
        assert (await w.get(f"/tasks/{made[0]}")).code == "task_not_found"
        assert (await w.call("DELETE", f"/api/tasks/{made[0]}")).code == "task_not_found"
        assert (await w.post(f"/tasks/{made[1]}/retry")).json["task"]["status"] == "PENDING"
        assert (await w.get("/api/queue/dead")).json["tasks"] == []
        for task_id in made[1:]:
            assert (await w.call("DELETE", f"/tasks/{task_id}")).code == "illegal_transition"
