"""Old polling workers, written to the two documented envelopes, against a whole daemon on either database."""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Daemon, make_root
from tests.ports import free_port

pytestmark = pytest.mark.timeout(300)
TASK_KEYS = {"taskId", "workflow_name", "environment", "target_port", "params", "status"}
COUNTS = {"total", "pending", "fetched", "processing", "completed", "failed", "cancelled"}


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def daemon(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Daemon]:
    environ = {"COMFYD_DISPATCH": "off"}
    if request.param == "postgres":
        environ["COMFYD_DATABASE_URL"] = request.getfixturevalue("postgres_server").url()
    root = make_root(tmp_path / "root", [{"id": 0, "port": free_port(), "name": "main", "enabled": False}])
    made = Daemon(root, **environ)
    try:
        made.start(60)
        made.until(lambda: made.call("GET", "/ready").status == 200, 60, "ready")
        made.call("DELETE", "/api/tasks/clear")
        yield made
    finally:
        made.end_everything()


@dataclass
class Worker:
    """What people have running: it polls, works, reports. token: names its lease, as newer ones do."""

    daemon: Daemon
    dice: random.Random
    enveloped: bool
    token: bool
    ends: Counter[str] = field(default_factory=Counter)

    def step(self) -> bool:
        """One poll. False if there was nothing to do."""
        task = self._fetch()
        if task is None:
            return False
        assert task.keys() >= TASK_KEYS
        assert task["status"] == ("FETCHED" if self.enveloped else "PENDING")
        assert (task["workflow_name"], task["environment"]) == ("invert", "comm")
        assert isinstance(task["target_port"], int)
        assert task["params"]["input_data"]["wf_json"]
        self._tell(task, "PROCESSING", started_at=1_700_000_000)
        end = self.dice.choices(["COMPLETED", "FAILED", "PENDING"], [6, 1, 1])[0]
        output = (
            {"output_data": {"urls": [f"https://files.example/{task['taskId']}.png"]}} if end == "COMPLETED" else {}
        )
        self._tell(task, end, task_message=f"{end} at the worker", finished_at=1_700_000_100, **output)
        self.ends[end] += 1
        return True

    def _fetch(self) -> dict[str, Any] | None:
        if not self.enveloped:
            return self.daemon.get("/comfyui-fetch-task") or None
        answer = self.daemon.get("/api/comm/task/fetch?workflow_names=invert,other")
        assert (answer["success"], answer["code"], set(answer)) == (True, 200, {"success", "code", "message", "data"})
        data: dict[str, Any] | None = answer["data"]
        return data

    def _tell(self, task: dict[str, Any], status: str, **more: Any) -> None:
        held = {"lease_token": task["lease_token"]} if self.token else {}
        path = "/api/comm/task/update" if self.enveloped else "/comfyui-update-task"
        answer = self.daemon.post(path, {"taskId": task["taskId"], "status": status, **held, **more})
        assert (answer["success"], answer["message"]) == (True, "Task updated successfully")
        assert not self.enveloped or answer["code"] == 200


def test_old_workers_work_a_queue_off_over_a_restart(daemon: Daemon) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    tasks = [
        daemon.post(
            "/tasks/create/invert", {"priority": dice.choice(["vip", "normal", "guest", 2]), "max_attempts": 99}
        )
        for _ in range(40)
    ]
    workers = [Worker(daemon, dice, *kind) for kind in ((False, False), (True, False), (False, True), (True, True))]
    for n in range(30):
        assert workers[n % 4].step()
    daemon.post("/api/queue/pause")
    daemon.kill()
    daemon.start(60)
    daemon.until(lambda: daemon.call("GET", "/ready").status == 200, 60, "ready again")
    assert [worker.step() for worker in workers] == [False] * 4, "it is still paused"
    daemon.post("/api/queue/resume")
    while sum(worker.step() for worker in workers):
        pass
    ends = sum((worker.ends for worker in workers), Counter())
    counts = daemon.get("/api/stats")
    assert counts.keys() == {"success", "stats", "workflow_stats"}
    assert counts["stats"].keys() == COUNTS
    assert (ends["COMPLETED"] + ends["FAILED"], ends["COMPLETED"]) == (40, counts["stats"]["completed"])
    assert counts["stats"]["failed"] == ends["FAILED"]
    assert counts["workflow_stats"] == {"invert": 40}
    for made in tasks:
        task = daemon.get(f"/tasks/{made['taskId']}")
        assert task["status"] in {"COMPLETED", "FAILED"}
        assert task["finished_at"] == "2023-11-14T22:15:00.000Z"
        assert task["task_message"] == f"{task['status']} at the worker"
    last = daemon.post("/tasks/create", {"workflow_name": "invert"})["taskId"]
    assert daemon.get("/comfyui-fetch-task")["taskId"] == last
    cleared = daemon.call("DELETE", "/api/tasks/clear").json
    assert cleared == {"message": "All tasks cleared", "cleared": 40}
    assert daemon.get("/api/stats")["stats"]["total"] == daemon.get("/api/stats")["stats"]["fetched"] == 1
