"""The old task calls with curl: fetch, update, list, create, stats, clear, and both spellings of their addresses."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.calls.curl import Curl
from tests.daemon import Daemon
from tests.graphs import invert

GRAPH = invert()
KIND = '-H "Content-Type: application/json"'
FETCH = "curl http://localhost:8001/comfyui-fetch-task"
TASKS = "curl http://localhost:8001/tasks"
CREATE = "curl -X POST http://localhost:8001/tasks/create/invert"

TASK_KEYS = {
    "taskId", "workflow_name", "environment", "target_port", "status", "params", "priority", "user_id", "attempts",
    "created_at", "started_at", "finished_at", "task_message", "output_data", "progress", "instance",
}  # fmt: skip
FETCHED_KEYS = {"taskId", "workflow_name", "environment", "target_port", "params", "status"}
LEASE_KEYS = {"lease_token", "lease_expires_at"}


@pytest.fixture(scope="module")
def environ() -> dict[str, str]:
    """Every task is left to fetchers."""
    return {"COMFYD_DISPATCH": "off"}


@pytest.fixture(autouse=True)
def no_tasks(daemon: Daemon) -> Iterator[None]:
    """Whatever a test leaves leased is ended, then the queue is emptied."""
    yield
    for task in daemon.get("/tasks?limit=1000")["tasks"]:
        if task["status"] in {"FETCHED", "PROCESSING"}:
            daemon.post("/comfyui-update-task", {"taskId": task["taskId"], "status": "FAILED"})
    daemon.call("DELETE", "/api/tasks/clear")
    assert daemon.get("/tasks")["tasks"] == []


def create(curl: Curl, workflow: str = "invert", **body: Any) -> str:
    reply = curl.post(f"/tasks/create/{workflow}", body or {"wf_json": GRAPH})
    assert reply.status == 200, reply
    return str(reply.json["taskId"])


def update(curl: Curl, task: str, status: str, **more: Any) -> Any:
    return curl.post("/comfyui-update-task", {"taskId": task, "status": status, **more})


def status_of(curl: Curl, task: str) -> str:
    return str(curl.get(f"/tasks/{task}")["status"])


# the documented lines
def test_create_from_the_stored_workflow_without_a_body(daemon: Daemon, curl: Curl) -> None:
    reply = curl(CREATE)
    assert reply.status == 200
    body = reply.json
    assert set(body) >= {"success", "task", "taskId", "message"}
    assert body["success"] is True
    assert re.fullmatch(r"task_[0-9a-f]{32}", body["taskId"])
    task = body["task"]
    assert set(task) >= TASK_KEYS
    assert task["taskId"] == body["taskId"]
    stored = json.loads((daemon.root / "config/environments/comm/workflows/invert.json").read_text())
    assert task["params"] == {"input_data": {"wf_json": stored}}
    expected = {
        "workflow_name": "invert", "environment": "comm", "status": "PENDING", "priority": "normal", "user_id": None,
        "attempts": 0, "target_port": curl.moved[3001], "started_at": None, "finished_at": None, "task_message": None,
        "output_data": None, "progress": None, "instance": None,
    }  # fmt: skip
    assert {k: task[k] for k in expected} == expected
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", task["created_at"])


def test_fetch_and_update(curl: Curl) -> None:
    task = create(curl)
    fetched = curl(FETCH)
    assert fetched.status == 200
    body = fetched.json
    assert set(body) == FETCHED_KEYS | LEASE_KEYS
    assert {k: body[k] for k in FETCHED_KEYS} == {
        "taskId": task, "workflow_name": "invert", "environment": "comm", "target_port": curl.moved[3001],
        "params": {"input_data": {"wf_json": GRAPH}}, "status": "PENDING",
    }  # fmt: skip
    assert status_of(curl, task) == "FETCHED"
    left = datetime.fromisoformat(body["lease_expires_at"]) - datetime.now(UTC)
    assert timedelta(seconds=3500) < left <= timedelta(seconds=3600)
    line = f"curl -X POST http://localhost:8001/comfyui-update-task {KIND} -d "
    done = {"success": True, "message": "Task updated successfully"}
    reply = curl(f"""{line}'{{"taskId": "{task}", "status": "PROCESSING", "task_message": "half"}}'""")
    assert (reply.status, reply.json) == (200, done)
    assert status_of(curl, task) == "PROCESSING"
    output = {"urls": ["https://files.example/1.png"]}
    end = {
        "taskId": task,
        "status": "COMPLETED",
        "task_message": "ok",
        "output_data": output,
        "finished_at": 1700000000,
    }
    reply = curl(f"{line}'{json.dumps(end)}'")
    assert (reply.status, reply.json) == (200, done)
    shown = curl.get(f"/tasks/{task}")
    assert (shown["status"], shown["task_message"], shown["output_data"]) == ("COMPLETED", "ok", output)
    assert shown["finished_at"] == "2023-11-14T22:13:20.000Z"


def test_tasks(curl: Curl) -> None:
    assert curl(TASKS).json == {"tasks": [], "queue_length": 0, "next_cursor": None}
    made = [create(curl) for _ in range(2)]
    curl(FETCH)
    body = curl(TASKS).json
    assert [t["taskId"] for t in body["tasks"]] == made[::-1]
    assert body["queue_length"] == 1
    assert set(body["tasks"][0]) >= TASK_KEYS


# fetching
def test_no_task_is_an_empty_object(curl: Curl) -> None:
    assert curl(FETCH).text == "{}"


def test_workflow_names_filters_and_keeps_the_order(curl: Curl) -> None:
    first, second, third = create(curl), create(curl, "portrait"), create(curl, "portrait_fast")
    fetch = "/comfyui-fetch-task?workflow_names="
    assert curl.get(f"{fetch}nothing,else") == {}
    assert curl.get(f"{fetch}portrait_fast,portrait")["taskId"] == second
    assert curl.get(f"{fetch}portrait_fast,%20portrait")["taskId"] == third
    assert curl.get(fetch)["taskId"] == first


def test_without_an_instance_the_config_port_is_the_target(curl: Curl) -> None:
    create(curl, "portrait")
    fetched = curl.get("/comfyui-fetch-task")
    assert (fetched["environment"], fetched["target_port"]) == ("aua-sp", curl.moved[3003])


def test_ready_instances_are_targets_by_load_and_fetched_tasks_are_load(clean: Daemon, curl: Curl) -> None:
    for _ in range(4):
        create(curl)
    first, second = curl.moved[3001], curl.moved[3002]
    clean.post("/api/comfyui/instances/1/start")
    assert curl.get("/comfyui-fetch-task")["target_port"] == second, "the only ready one"
    clean.post("/api/comfyui/instances/0/start")
    targets = [curl.get("/comfyui-fetch-task")["target_port"] for _ in range(3)]
    assert targets == [first, first, second], "the idle one, of equals the lower id, the less loaded one"


def test_dispatch_off_leaves_tasks_to_fetchers(clean: Daemon, curl: Curl) -> None:
    clean.post("/api/comfyui/instances/0/start")
    task = create(curl)
    assert curl.get("/comfyui-fetch-task")["taskId"] == task


# updating
def test_a_task_may_go_back_and_is_fetched_again(curl: Curl) -> None:
    task = create(curl)
    curl(FETCH)
    assert update(curl, task, "PENDING", task_message="no room").status == 200
    assert status_of(curl, task) == "PENDING"
    assert curl(FETCH).json["taskId"] == task


@pytest.mark.parametrize("end", ["COMPLETED", "FAILED", "CANCELLED"])
def test_a_fetched_task_may_end_at_once_and_then_never_changes(curl: Curl, end: str) -> None:
    task = create(curl)
    curl(FETCH)
    assert update(curl, task, end).status == 200
    reply = update(curl, task, "PROCESSING")
    assert (reply.status, reply.json["error"]["code"]) == (409, "illegal_transition")
    assert status_of(curl, task) == end


def test_a_task_that_nobody_fetched_cannot_be_completed(curl: Curl) -> None:
    task = create(curl)
    assert update(curl, task, "COMPLETED").status == 409
    assert status_of(curl, task) == "PENDING"


def test_an_unknown_task_is_404(curl: Curl) -> None:
    reply = update(curl, "task_unknown", "COMPLETED")
    assert (reply.status, reply.json["detail"]) == (404, "Task not found")
    assert reply.json["error"]["code"] == "task_not_found"


def test_another_caller_needs_the_token(daemon: Daemon, curl: Curl) -> None:
    task = create(curl)
    token = curl(FETCH).json["lease_token"]
    elsewhere = f"curl --unix-socket {daemon.root}/workspace/.comfyd/api.sock http://localhost/comfyui-update-task"
    body = json.dumps({"taskId": task, "status": "PROCESSING"})
    reply = curl(f"{elsewhere} {KIND} -d '{body}'")
    assert (reply.status, reply.json["error"]["code"]) == (409, "stale_lease")
    assert status_of(curl, task) == "FETCHED"
    body = json.dumps({"taskId": task, "status": "PROCESSING", "lease_token": token})
    assert curl(f"{elsewhere} {KIND} -d '{body}'").status == 200


def test_a_wrong_token_is_stale_even_for_the_fetcher(curl: Curl) -> None:
    task = create(curl)
    curl(FETCH)
    reply = update(curl, task, "COMPLETED", lease_token="0" * 32)
    assert (reply.status, reply.json["error"]["code"]) == (409, "stale_lease")


def test_updates_and_heartbeats_renew_the_lease(curl: Curl) -> None:
    task = create(curl)
    fetched = curl(FETCH).json
    beat = curl.post(f"/tasks/{task}/heartbeat", {"lease_token": fetched["lease_token"]})
    assert beat.json["success"] is True
    assert beat.json["lease_expires_at"] > fetched["lease_expires_at"]
    assert update(curl, task, "FETCHED").status == 200
    assert status_of(curl, task) == "FETCHED"


@pytest.mark.parametrize("given", ["2023-11-14T22:13:20Z", 1700000000, 1700000000000, 1700000000.0, "1700000000"])
def test_times_may_be_rfc_3339_or_epoch(curl: Curl, given: Any) -> None:
    task = create(curl)
    curl(FETCH)
    assert update(curl, task, "PROCESSING", started_at=given).status == 200
    assert curl.get(f"/tasks/{task}")["started_at"] == "2023-11-14T22:13:20.000Z"


@pytest.mark.parametrize("body", [{}, {"taskId": "x"}, {"taskId": "x", "status": "DONE"}, {"status": "FAILED"}])
def test_bad_updates_are_422(curl: Curl, body: dict[str, Any]) -> None:
    assert curl.post("/comfyui-update-task", body).status == 422


# the same in an envelope
def test_fetch_and_update_in_an_envelope(curl: Curl) -> None:
    empty = curl.get("/api/comm/task/fetch?workflow_names=invert")
    assert set(empty) == {"success", "code", "message", "data"}
    assert (empty["success"], empty["code"], empty["data"]) == (True, 200, None)
    assert isinstance(empty["message"], str)
    task = create(curl)
    fetched = curl.get("/api/comm/task/fetch?workflow_names=invert")
    assert set(fetched["data"]) == FETCHED_KEYS | LEASE_KEYS
    assert (fetched["data"]["taskId"], fetched["data"]["status"]) == (task, "FETCHED")
    reply = curl.post("/api/comm/task/update", {"taskId": task, "status": "COMPLETED"})
    assert set(reply.json) == {"success", "code", "message", "data"}
    assert (reply.json["success"], reply.json["code"]) == (True, 200)
    assert status_of(curl, task) == "COMPLETED"
    assert curl.post("/api/comm/task/update", {"taskId": "task_no", "status": "FAILED"}).status == 404


# listing
def test_the_list_is_filtered_and_paged(curl: Curl) -> None:
    made = [create(curl) for _ in range(4)] + [create(curl, "portrait")]
    assert [t["taskId"] for t in curl.get("/tasks?workflow_name=portrait")["tasks"]] == made[4:]
    first = curl.get("/tasks?limit=3")
    assert [t["taskId"] for t in first["tasks"]] == made[:1:-1]
    assert first["queue_length"] == 5
    rest = curl.get(f"/tasks?limit=3&cursor={first['next_cursor']}")
    assert [t["taskId"] for t in rest["tasks"]] == made[1::-1]
    assert rest["next_cursor"] is None
    fetched = curl(FETCH).json["taskId"]
    assert [t["taskId"] for t in curl.get("/tasks?status=FETCHED")["tasks"]] == [fetched]


# creating
@pytest.mark.parametrize("body", [{"params": {"input_data": {"wf_json": GRAPH}}}, {"wf_json": GRAPH}])
def test_a_graph_may_stand_in_params_or_alone(curl: Curl, body: dict[str, Any]) -> None:
    for path, named in (("/tasks/create/portrait", {}), ("/tasks/create", {"workflow_name": "portrait"})):
        task = curl.post(path, {**body, **named}).json["task"]
        assert task["params"] == {"input_data": {"wf_json": GRAPH}}
        assert (task["workflow_name"], task["target_port"]) == ("portrait", curl.moved[3003])


def test_create_takes_priority_user_attempts_and_callback(curl: Curl) -> None:
    more = {"user_id": "anna", "max_attempts": 2, "callback_url": "https://example.com/hook"}
    for given, shown in (("vip", "vip"), ("guest", "guest"), (5, "5"), ("normal", "normal")):
        task = curl.post("/tasks/create/invert", {"wf_json": GRAPH, "priority": given, **more}).json["task"]
        assert (task["priority"], task["user_id"]) == (shown, "anna")
    order = [curl(FETCH).json["taskId"] for _ in range(4)]
    ranked = [curl.get(f"/tasks/{task}")["priority"] for task in order]
    assert ranked.index("vip") < ranked.index("normal") < ranked.index("guest")


def test_an_idempotency_key_makes_one_task(curl: Curl) -> None:
    line = f"curl -X POST http://localhost:8001/tasks/create/invert -H 'Idempotency-Key: order-1' {KIND} -d "
    made = {curl(f"""{line}'{{"user_id": "anna"}}'""").json["taskId"] for _ in range(2)}
    assert len(made) == 1
    assert curl.get("/tasks")["queue_length"] == 1
    assert curl(f"""{line}'{{"user_id": "ben"}}'""").status == 422


@pytest.mark.parametrize("path", ["/tasks/create/unheard-of", "/tasks/create"])
def test_an_unknown_workflow_is_404_and_the_known_ones_are_listed(curl: Curl, path: str) -> None:
    reply = curl.post(path, {"workflow_name": "unheard-of", "wf_json": GRAPH})
    assert (reply.status, reply.json["error"]["code"]) == (404, "unknown_workflow")
    for name in ("invert", "portrait", "portrait_fast", "face_swap"):
        assert name in reply.json["detail"]


def test_a_workflow_without_graph_is_refused(curl: Curl) -> None:
    reply = curl.post("/tasks/create/portrait")
    assert (reply.status, reply.json["error"]["code"]) == (422, "missing_workflow_graph")


# stats and clear
def test_stats_count_by_state_and_workflow(curl: Curl) -> None:
    zero = dict.fromkeys(("total", "pending", "fetched", "processing", "completed", "failed", "cancelled"), 0)
    assert curl.get("/api/stats") == {"success": True, "stats": zero, "workflow_stats": {}}
    for _ in range(3):
        create(curl)
    create(curl, "portrait")
    done, running, _ = (curl(FETCH).json["taskId"] for _ in range(3))
    update(curl, done, "COMPLETED")
    update(curl, running, "PROCESSING")
    counted = curl.get("/api/stats")
    assert counted["stats"] == zero | {"total": 4, "pending": 1, "fetched": 1, "processing": 1, "completed": 1}
    assert counted["workflow_stats"] == {"invert": 3, "portrait": 1}


def test_clear_keeps_what_runs(curl: Curl) -> None:
    for _ in range(3):
        create(curl)
    running = curl(FETCH).json["taskId"]
    update(curl, running, "PROCESSING")
    reply = curl("curl -X DELETE http://localhost:8001/api/tasks/clear")
    assert (reply.status, reply.json) == (200, {"message": "All tasks cleared", "cleared": 2})
    assert [t["taskId"] for t in curl.get("/tasks")["tasks"]] == [running]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/tasks"), ("GET", "/workflows"), ("GET", "/environments"), ("GET", "/comfyui-fetch-task"),
        ("POST", "/tasks/create/invert"), ("POST", "/tasks/create"), ("POST", "/comfyui-update-task"),
    ],
)  # fmt: skip
def test_task_routes_answer_under_api_as_well(curl: Curl, method: str, path: str) -> None:
    """A missing route would be 404 `not_found`; a body that lacks a field is 422 at both addresses."""
    body = f"{KIND} -d '{{}}'" if method == "POST" else ""
    replies = [curl(f"curl -X {method} http://localhost:8001{prefix}{path} {body}") for prefix in ("", "/api")]
    assert replies[0].status == replies[1].status
    assert replies[0].status in {200, 422}
    assert set(replies[0].json) == set(replies[1].json)
