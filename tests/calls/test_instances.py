"""The old instance calls: documented lines as written, then every promise about their shapes."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.calls.curl import Curl
from tests.daemon import Daemon, add_environment
from tests.ports import free_port

SINGLE = """curl -X POST "http://localhost:8001/api/comfyui/start-single" -H "Content-Type: application/json" -d '{"id": 0, "port": 3001, "name": "main-instance", "extra_args": "--lowvram", "enabled": true}' --data-urlencode "environment=comm\""""  # noqa: E501
QUICK = """curl -X POST "http://localhost:8001/api/comfyui/start-single" -H "Content-Type: application/json" -d '{"id": 0, "port": 3001, "name": "comfyui-quick", "extra_args": "", "enabled": true}'"""  # noqa: E501
SEVERAL = """curl -X POST "http://localhost:8001/api/comfyui/start-instances" -H "Content-Type: application/json" -d '{"environment": "comm", "instances": [{"id": 0, "port": 3001, "name": "main", "extra_args": "", "enabled": true}, {"id": 1, "port": 3002, "name": "backup", "extra_args": "--lowvram", "enabled": true}]}'"""  # noqa: E501
STATUS = "curl -X GET http://localhost:8001/api/comfyui/status"
STATUS_AGAIN = "curl -v http://localhost:8001/api/comfyui/status"
STOP_ALL = 'curl -X POST "http://localhost:8001/api/comfyui/stop-all"'

START_SINGLE, START_INSTANCES = "/api/comfyui/start-single", "/api/comfyui/start-instances"
INSTANCE_KEYS = {
    "id", "name", "environment", "port", "state", "ready", "pid", "since", "restarts", "gpus", "conditions", "override",
}  # fmt: skip


def command_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# the documented lines
def test_start_single_with_the_environment_behind_the_json(clean: Daemon, curl: Curl) -> None:
    reply = curl(SINGLE)
    assert reply.status == 200
    port = curl.moved[3001]
    assert reply.json["status"] == "success"
    assert reply.json["message"] == f"Instance 'main-instance' started on port {port}"
    assert reply.json["output"].startswith(reply.json["message"])
    shown = reply.json["instance"]
    assert (shown["id"], shown["port"], shown["environment"], shown["state"]) == (0, port, "comm", "ready")
    assert "--lowvram" in command_of(shown["pid"])
    assert listens(port)


def test_start_single(clean: Daemon, curl: Curl) -> None:
    reply = curl(QUICK)
    assert (reply.status, reply.json["status"]) == (200, "success")
    assert reply.json["message"] == f"Instance 'comfyui-quick' started on port {curl.moved[3001]}"
    assert "--lowvram" not in command_of(reply.json["instance"]["pid"])


def test_start_instances(clean: Daemon, curl: Curl) -> None:
    reply = curl(SEVERAL)
    assert reply.status == 200
    body = reply.json
    assert {k: body[k] for k in ("status", "environment", "message")} == {
        "status": "completed", "environment": "comm", "message": "Instances started",
    }  # fmt: skip
    assert (body["total_instances"], body["started_instances"], body["instances_count"]) == (2, 2, 2)
    ports = (curl.moved[3001], curl.moved[3002])
    assert [(r["instance_id"], r["name"], r["port"], r["status"]) for r in body["results"]] == [
        (0, "main", ports[0], "started"), (1, "backup", ports[1], "started"),
    ]  # fmt: skip
    assert [r["output"] for r in body["results"]] == [
        f"Instance 'main' started on port {ports[0]}", f"Instance 'backup' started on port {ports[1]}",
    ]  # fmt: skip
    assert body["output"] == "\n".join(r["output"] for r in body["results"])
    assert "--lowvram" in command_of(clean.pids()["comfyui/1"])
    assert "--lowvram" not in command_of(clean.pids()["comfyui/0"])


@pytest.mark.parametrize("line", [STATUS, STATUS_AGAIN])
def test_status(clean: Daemon, curl: Curl, line: str) -> None:
    curl(QUICK)
    reply = curl(line)
    assert (reply.status, reply.json["status"]) == (200, "success")
    body = reply.json
    assert {"status", "output", "instances", "environments", "config"} <= set(body)
    assert isinstance(body["output"], str)
    first, second = body["instances"][:2]
    assert set(first) >= INSTANCE_KEYS
    assert (first["id"], first["name"], first["environment"]) == (0, "comfyui-quick", "comm")
    assert (first["port"], first["state"], first["ready"]) == (curl.moved[3001], "ready", True)
    assert isinstance(first["restarts"], int)
    assert first["override"]["want"] == "up"
    assert os.path.exists(f"/proc/{first['pid']}")
    assert (second["name"], second["state"], second["ready"], second["pid"]) == (
        "comfyui-backup",
        "stopped",
        False,
        None,
    )
    assert second["override"] is None
    assert {"type", "reason", "message"} <= set(second["conditions"][0])
    assert f"Instance 0 (comfyui-quick): ready, port {curl.moved[3001]}" in body["output"]
    assert [e["name"] for e in body["environments"]] == ["aua-sp", "comm", "facefusion"]
    assert body["config"]["state"] == "ok"
    assert ("< HTTP/1.1 200 OK" in reply.log) == ("-v" in line)


def test_stop_all_needs_no_body_and_waits_for_the_stops(clean: Daemon, curl: Curl) -> None:
    curl(SEVERAL)
    pids = clean.pids()
    reply = curl(STOP_ALL)
    assert (reply.status, reply.json["status"]) == (200, "success")
    assert reply.json["message"] == "All instances stopped"
    assert [(r["instance_id"], r["name"], r["status"]) for r in reply.json["results"]] == [
        (0, "main", "stopped"), (1, "backup", "stopped"),
    ]  # fmt: skip
    assert reply.json["output"] == "Instance 'main' stopped\nInstance 'backup' stopped"
    assert len(pids) == 2
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids.values())
    assert not listens(curl.moved[3001])
    again = curl(STOP_ALL)
    assert (again.status, again.json["message"]) == (200, "All instances stopped")
    assert again.json["results"] == []


@pytest.mark.parametrize(
    "body", ["-d ''", "-H 'Content-Type: application/json'", "-d '{}' -H 'Content-Type: application/json'"]
)
def test_stop_all_takes_whatever_clients_send_along(clean: Daemon, curl: Curl, body: str) -> None:
    assert curl(f"{STOP_ALL} {body}").json["message"] == "All instances stopped"


# start-single
def entry(**given: Any) -> dict[str, Any]:
    return {"id": 0, "port": 3001, "name": "main", **given}


def test_the_environment_of_the_query_holds_and_the_body_wins(clean: Daemon, curl: Curl) -> None:
    reply = curl.post(f"{START_SINGLE}?environment=nowhere&wait=5", entry())
    assert reply.status == 500
    assert reply.json["detail"].startswith("Failed to start instance: environment nowhere has no config folder")
    assert reply.json["error"]["message"] == reply.json["detail"]
    reply = curl.post(f"{START_SINGLE}?environment=nowhere", entry(environment="comm"))
    assert (reply.status, reply.json["instance"]["environment"]) == (200, "comm")


def test_enabled_false_and_missing_options_start_it_all_the_same(clean: Daemon, curl: Curl) -> None:
    reply = curl.post(START_SINGLE, entry(enabled=False))
    assert (reply.status, reply.json["instance"]["ready"]) == (200, True)


def test_an_id_that_no_file_names_makes_an_instance_of_the_default_environment(clean: Daemon, curl: Curl) -> None:
    port = free_port()
    reply = curl.post(START_SINGLE, {"id": 7, "port": port, "name": "Extra 七"})
    assert reply.json["message"] == f"Instance 'Extra 七' started on port {port}"
    assert reply.json["instance"]["environment"] == "comm"
    assert reply.json["instance"]["origin"] == "override"


def test_fields_that_are_given_override_the_file_and_the_others_stay(clean: Daemon, curl: Curl) -> None:
    other = free_port()
    shown = curl.post(START_SINGLE, {"id": 0, "port": other, "name": "comfyui-main"}).json["instance"]
    assert (shown["port"], shown["description"]) == (other, "Main")
    assert shown["override"]["fields"] == ["port"]


def test_started_again_as_it_runs_changes_nothing(clean: Daemon, curl: Curl) -> None:
    first = curl(SINGLE).json["instance"]
    again = curl(SINGLE)
    assert again.json["message"] == f"Instance 'main-instance' started on port {curl.moved[3001]}"
    assert again.json["instance"]["pid"] == first["pid"]
    assert again.json["instance"]["restarts"] == first["restarts"]


def test_other_arguments_restart_it(clean: Daemon, curl: Curl) -> None:
    first = curl(SINGLE).json["instance"]
    reply = curl(QUICK)
    assert reply.status == 200
    assert reply.json["instance"]["pid"] != first["pid"]
    assert "--lowvram" not in command_of(reply.json["instance"]["pid"])


def test_a_wait_that_ends_says_starting(clean: Daemon, curl: Curl) -> None:
    slow = entry(env={"FAKE_COMFYUI_NEVER_READY": "1"})
    reply = curl.post(f"{START_SINGLE}?wait=0.5", slow)
    assert (reply.status, reply.json["status"]) == (200, "success")
    assert reply.json["message"] == "Instance 'main' is starting"
    assert (reply.json["instance"]["state"], reply.json["instance"]["ready"]) == ("starting", False)


def test_a_missing_environment_says_installing(clean: Daemon, curl: Curl) -> None:
    gate = clean.root / "go-on"
    add_environment(clean.root, "slow", f"until [ -e {gate} ]; do sleep 0.05; done", workflows=["slow_one"])
    clean.until(lambda: clean.call("GET", "/environments/slow").status == 200)
    reply = curl.post(START_SINGLE, {"id": 9, "port": free_port(), "name": "waits", "environment": "slow"})
    assert (reply.status, reply.json["status"]) == (200, "success")
    assert reply.json["message"] == "Instance 'waits' is installing"
    assert reply.json["instance"]["state"] == "waiting_env"
    several = curl.post(
        START_INSTANCES, {"environment": "slow", "instances": [{"id": 9, "port": 3003, "name": "waits"}]}
    )
    assert [(r["status"], r["output"]) for r in several.json["results"]] == [
        ("installing", "Instance 'waits' is installing")
    ]
    assert several.json["started_instances"] == 0
    gate.touch()
    clean.until_ready(9)


def test_a_process_that_ends_is_a_failure_with_its_reason(clean: Daemon, curl: Curl) -> None:
    reply = curl.post(START_SINGLE, entry(extra_args="--no-such-flag"))
    assert reply.status == 500
    assert reply.json["detail"].startswith("Failed to start instance: ")
    assert "exit code 2" in reply.json["detail"]
    assert reply.json["error"]["code"] == "start_failed"
    (bad,) = [c for c in clean.instance(0)["conditions"] if c["type"] == "bad_arguments"]
    assert "--no-such-flag" in bad["message"]


@pytest.mark.parametrize("what", ["port", "name"])
def test_what_a_running_instance_holds_is_refused_and_allowed_once_it_is_stopped(
    clean: Daemon, curl: Curl, what: str
) -> None:
    curl(SINGLE)
    rival = {"id": 8, "port": free_port(), "name": "rival"}
    rival |= {"port": curl.moved[3001]} if what == "port" else {"name": "main-instance"}
    reply = curl.post(START_SINGLE, rival)
    assert reply.status == 500
    assert reply.json["detail"].startswith("Failed to start instance: ")
    assert "main-instance" in reply.json["detail"]
    assert "comfyui/8" not in clean.pids()
    curl(STOP_ALL)
    assert curl.post(START_SINGLE, rival).status == 200


def test_a_port_of_somebody_else_is_refused_and_the_holder_named(clean: Daemon, curl: Curl) -> None:
    with socket.socket() as foreign:
        foreign.bind(("127.0.0.1", 0))
        foreign.listen()
        port = foreign.getsockname()[1]
        reply = curl.post(f"{START_SINGLE}?wait=10", {"id": 8, "port": port, "name": "late"})
    assert reply.status == 500
    assert reply.json["detail"].startswith(f"Failed to start instance: port {port} is held by process {os.getpid()} ")
    own = curl.post(START_SINGLE, {"id": 8, "port": 8001, "name": "late"})
    assert (own.status, "the API's own port" in own.json["detail"]) == (500, True)


def test_unknown_keys_are_ignored_with_a_warning(clean: Daemon, curl: Curl) -> None:
    reply = curl.post(START_SINGLE, entry(colour="blue"))
    assert reply.status == 200
    assert any("colour" in warning for warning in reply.json["warnings"])


@pytest.mark.parametrize(
    "body",
    [{"port": 3001, "name": "x"}, {"id": 0, "name": "x"}, {"id": 0, "port": 3001}, entry(port="many"), entry(id=-1)],
)
def test_bodies_that_lack_or_spoil_a_field_are_422(daemon: Daemon, curl: Curl, body: dict[str, Any]) -> None:
    reply = curl.post(START_SINGLE, body)
    assert (reply.status, reply.json["error"]["code"]) == (422, "validation_failed")
    assert isinstance(reply.json["detail"], str)


@pytest.mark.parametrize("tail", ["&other=comm", "&environment=a&environment=b", " trailing"])
def test_only_the_documented_tail_is_accepted(daemon: Daemon, curl: Curl, tail: str) -> None:
    reply = curl.post(START_SINGLE, json.dumps(entry()) + tail)
    assert (reply.status, reply.json["error"]["code"]) == (400, "invalid_json")


# start-instances
def test_disabled_entries_count_but_have_no_result(clean: Daemon, curl: Curl) -> None:
    off = {"id": 1, "port": 3002, "name": "backup", "enabled": False}
    body = curl.post(START_INSTANCES, {"instances": [entry(), off]}).json
    assert [r["instance_id"] for r in body["results"]] == [0]
    assert (body["total_instances"], body["started_instances"], body["instances_count"]) == (2, 1, 2)
    assert body["environment"] == "comm"
    assert "comfyui/1" not in clean.pids()


def test_one_failure_and_one_slow_start_do_not_hold_up_the_others(clean: Daemon, curl: Curl) -> None:
    bad = {"id": 5, "port": free_port(), "name": "bad", "extra_args": "--no-such-flag"}
    slow = {"id": 6, "port": free_port(), "name": "slow", "env": {"FAKE_COMFYUI_NEVER_READY": "1"}}
    reply = curl.post(f"{START_INSTANCES}?wait=1.5", {"instances": [bad, slow, entry()]})
    assert reply.status == 200
    results = {r["instance_id"]: r for r in reply.json["results"]}
    assert {n: r["status"] for n, r in results.items()} == {5: "failed", 6: "timeout", 0: "started"}
    assert results[5]["error"].startswith("Failed to start instance: ")
    assert "starting" in results[6]["error"]
    assert (reply.json["total_instances"], reply.json["started_instances"]) == (3, 1)


def test_already_running_as_asked_is_started(clean: Daemon, curl: Curl) -> None:
    curl(SEVERAL)
    before = clean.pids()
    assert [r["status"] for r in curl(SEVERAL).json["results"]] == ["started", "started"]
    assert clean.pids() == before


def test_an_empty_list_starts_nothing(daemon: Daemon, curl: Curl) -> None:
    body = curl.post(START_INSTANCES, {"instances": []}).json
    assert (body["status"], body["results"], body["total_instances"]) == ("completed", [], 0)


@pytest.mark.parametrize("body", [{}, {"instances": None}, {"instances": {}}, {"instances": "all"}])
def test_instances_that_are_no_list_are_400(daemon: Daemon, curl: Curl, body: dict[str, Any]) -> None:
    reply = curl.post(START_INSTANCES, body)
    assert (reply.status, reply.json["detail"]) == (400, "Invalid instances array")


@pytest.mark.parametrize("instances", [["x"], [{"id": 0}], [entry(port=0)], [entry(), entry(name="b")]])
def test_other_bad_bodies_are_422(daemon: Daemon, curl: Curl, instances: list[Any]) -> None:
    assert curl.post(START_INSTANCES, {"instances": instances}).status == 422
