"""`/environments`, `/workflows` and `/health` with curl."""

import json
import re

from tests.calls.curl import Curl
from tests.daemon import Daemon

ENVIRONMENT_KEYS = {"name", "description", "port", "workflows", "nodes", "models", "installed", "state", "install"}


def test_health(curl: Curl) -> None:
    reply = curl("curl http://localhost:8001/health")
    assert (reply.status, reply.json["status"]) == (200, "healthy")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", reply.json["timestamp"])
    for path in ("/api/health", "/healthz", "/livez"):
        assert curl.get(path)["status"] == "healthy"
    assert curl("curl -I http://localhost:8001/health").status == 200


def test_ready_is_503_with_reasons_or_200(curl: Curl) -> None:
    for path in ("/ready", "/readyz"):
        assert curl.get(path)["status"] == "ready"


def test_environments(clean: Daemon, curl: Curl) -> None:
    body = curl("curl http://localhost:8001/environments").json
    assert set(body) == {"environments"}
    found = {one["name"]: one for one in body["environments"]}
    assert sorted(found) == ["aua-sp", "comm", "facefusion"]
    assert all(set(one) >= ENVIRONMENT_KEYS for one in found.values())
    comm, other = found["comm"], found["aua-sp"]
    assert (comm["port"], comm["workflows"], comm["installed"]) == (curl.moved[3001], ["invert"], True)
    assert (comm["state"], comm["install"]["state"]) == ("installed", "installed")
    assert {"step", "progress", "steps", "log"} <= set(comm["install"])
    assert (other["description"], other["port"], other["installed"]) == ("Portraits", curl.moved[3003], False)
    assert other["workflows"] == ["portrait", "portrait_fast"]
    assert [n["ref"] for n in other["nodes"]] == ["v1"]


def test_tokens_in_urls_are_masked(curl: Curl) -> None:
    for path in ("/environments", "/environments/aua-sp", "/api/comfyui/status"):
        assert "secret" not in json.dumps(curl.get(path))
    (model,) = curl.get("/environments/aua-sp")["models"]
    assert model["url"].startswith("https://models.example/a.safetensors")


def test_an_install_shows_its_nine_steps_and_the_end_of_its_log(clean: Daemon, curl: Curl) -> None:
    body = curl.get("/environments/comm/install")
    assert [step["state"] for step in body["install"]["steps"]] == ["done"] * 9
    assert body["install"]["log"].endswith("install_comm.log")
    reply = curl("curl http://localhost:8001/environments/nowhere")
    assert reply.status == 404
    assert "comm" in reply.json["detail"]


def test_workflows(clean: Daemon, curl: Curl) -> None:
    body = curl("curl http://localhost:8001/workflows").json
    assert set(body) == {"workflows", "mapping"}
    assert body["mapping"] == {
        "invert": "comm", "portrait": "aua-sp", "portrait_fast": "aua-sp", "face_swap": "facefusion",
    }  # fmt: skip
    found = {one["name"]: one for one in body["workflows"]}
    port = curl.moved[3001]
    assert found["invert"] == {"name": "invert", "environment": "comm", "port": port, "ready_ports": []}
    assert found["portrait"]["port"] == curl.moved[3003]
    clean.post("/api/comfyui/instances/0/start")
    clean.post("/api/comfyui/instances/1/start")
    (invert,) = [one for one in curl.get("/workflows")["workflows"] if one["name"] == "invert"]
    assert sorted(invert["ready_ports"]) == sorted([port, curl.moved[3002]])


def test_an_unknown_address_has_the_one_error_shape(curl: Curl) -> None:
    reply = curl("curl http://localhost:8001/nothing-here")
    assert reply.status == 404
    assert set(reply.json) == {"error", "detail"}
    assert set(reply.json["error"]) == {"code", "message", "details"}
    assert reply.json["detail"] == reply.json["error"]["message"]
