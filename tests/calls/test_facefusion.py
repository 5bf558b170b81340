"""A service environment under supervision: the documented calls go to the service, the verbs to the daemon."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.calls.curl import Curl
from tests.daemon import Daemon

HEALTH = "curl http://localhost:3005/health"
PROCESS = """curl -X POST http://localhost:3005/process -H "Content-Type: application/json" -d '{"source_url": "https://files.example/source.jpg", "target_url": "https://files.example/target.jpg", "resolution": "1024x1024", "model": "inswapper_128_fp16"}'"""  # noqa: E501


@pytest.fixture
def service(daemon: Daemon) -> Iterator[Daemon]:
    """facefusion installed and ready; stopped afterwards."""
    daemon.post("/api/comfyui/instances/facefusion/start?wait=0.1")
    daemon.until_ready("facefusion")
    yield daemon
    daemon.post("/api/comfyui/instances/facefusion/stop")


def test_health_and_process(service: Daemon, curl: Curl) -> None:
    health = curl(HEALTH)
    assert (health.status, health.json["status"]) == (200, "healthy")
    reply = curl(PROCESS)
    assert reply.status == 200
    assert set(reply.json) >= {"status", "output_path", "processing_time", "job_id", "metadata"}
    assert reply.json["status"] == "success"
    metadata = reply.json["metadata"]
    assert (metadata["resolution"], metadata["model"]) == ("1024x1024", "inswapper_128_fp16")
    shown = service.instance("facefusion")
    assert metadata["pid"] == shown["pid"]
    assert (shown["environment"], shown["port"]) == ("facefusion", curl.moved[3005])


def test_its_log_and_pid_file_have_the_old_names(service: Daemon) -> None:
    logs = service.root / "workspace/logs"
    assert int((logs / "facefusion.pid").read_text()) == service.instance("facefusion")["pid"]
    assert "handler starts" in (logs / "facefusion.log").read_text()
    shown = service.call("GET", "/api/comfyui/instances/facefusion/logs?tail=5")
    assert b"handler starts" in shown.body


def test_a_crash_is_restarted_and_an_end_by_hand_is_not(service: Daemon, curl: Curl) -> None:
    first = service.instance("facefusion")["pid"]
    os.kill(first, signal.SIGKILL)
    service.until(lambda: service.pids().get("comfyui/2", first) != first, what="another process")
    service.until_ready("facefusion")
    os.kill(service.instance("facefusion")["pid"], signal.SIGTERM)
    service.until(lambda: service.state("facefusion") == "stopped", what="it stays stopped")
    shown = service.instance("facefusion")
    assert "SIGTERM" in shown["conditions"][0]["message"]
    assert service.get("/api/comfyui/plan")["actions"] == []


def test_it_is_stopped_and_started_like_any_instance(service: Daemon, curl: Curl) -> None:
    stopped = curl.post("/api/comfyui/instances/facefusion/stop")
    assert stopped.json["message"] == "Instance 'facefusion' stopped"
    assert not (service.root / "workspace/logs/facefusion.pid").exists()
    started = curl.post("/api/comfyui/instances/facefusion/start")
    assert started.json["message"] == f"Instance 'facefusion' started on port {curl.moved[3005]}"
    argv = Path(f"/proc/{started.json['instance']['pid']}/cmdline").read_bytes()
    assert b"fastapi_handler.py" in argv


CREATE = """curl -X POST http://localhost:8001/api/faceswap/create -H "Content-Type: application/json" -d '{"source_url": "https://files.example/source.jpg", "target_url": "https://files.example/target.jpg", "resolution": "1024x1024", "media_type": "image"}'"""  # noqa: E501


def test_a_face_swap_is_a_task(daemon: Daemon, curl: Curl) -> None:
    reply = curl(CREATE)
    assert reply.status == 200
    body = reply.json
    assert set(body) == {"success", "taskId", "status", "message", "task"}
    assert (body["success"], body["status"]) == (True, "PENDING")
    task = body["task"]
    assert (task["taskId"], task["workflow_name"], task["environment"]) == (body["taskId"], "face_swap", "facefusion")
    assert task["params"] == {
        "source_url": "https://files.example/source.jpg", "target_url": "https://files.example/target.jpg",
        "resolution": "1024x1024", "media_type": "image", "model": "inswapper_128_fp16",
    }  # fmt: skip
    assert curl.get(f"/tasks/{body['taskId']}") == task
    assert curl.post(f"/tasks/{body['taskId']}/cancel").status == 200


def test_what_a_face_swap_needs_and_takes(daemon: Daemon, curl: Curl) -> None:
    urls = {"source_url": "http://a/x", "target_url": "http://a/y"}
    bad = (
        {"source_url": None}, {"source_url": "file:///etc/passwd"}, {"target_url": "https://"}, {"resolution": "big"},
        {"resolution": "0x1024"}, {"media_type": "sound"}, {"model": "../x"}, {"user_id": 1},
    )  # fmt: skip
    for change in bad:
        reply = curl.post("/api/faceswap/create", {**urls, **change})
        assert (reply.status, reply.json["error"]["code"]) == (422, "validation_failed"), change
    more = {"media_type": "video", "resolution": "512x768", "priority": "vip", "user_id": "anna", "unknown": 1}
    reply = curl.post("/faceswap/create", {**urls, **more})
    assert (reply.status, reply.json["task"]["priority"], reply.json["task"]["user_id"]) == (200, "vip", "anna")
    kept = reply.json["task"]["params"]
    assert kept == {**urls, "media_type": "video", "resolution": "512x768", "model": "inswapper_128_fp16"}
    assert curl.post(f"/tasks/{reply.json['taskId']}/cancel").status == 200


def test_a_face_swap_task_needs_no_graph(service: Daemon, curl: Curl) -> None:
    body = {"params": {"source_url": "https://files.example/a.jpg", "target_url": "https://files.example/b.jpg"}}
    reply = curl.post("/tasks/create/face_swap", body)
    assert reply.status == 200
    assert (reply.json["task"]["environment"], reply.json["task"]["target_port"]) == ("facefusion", curl.moved[3005])
    assert reply.json["task"]["params"] == body["params"]
