"""`task …` and `env …` against a server that answers like a daemon."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.serving import World, comfyd, serving

GRAPH = {"1": {"class_type": "EmptyImage", "inputs": {"width": 8}}}
CREATE = "/tasks/create/portrait"
FILES = [{"filename": "图.png"}, {"filename": "../../evil\n.png"}, {"filename": "图.png"}]


def ended(state: str, **more: Any) -> dict[str, Any]:
    return {"status": state, "instance": "comfyui-main", "output_data": {"urls": [], "files": FILES}, **more}


@pytest.mark.parametrize(
    ("content", "sent"),
    [
        (GRAPH, {"params": {"input_data": {"wf_json": GRAPH}}}),
        ({"wf_json": GRAPH, "user_id": "u"}, {"user_id": "u", "params": {"input_data": {"wf_json": GRAPH}}}),
        ({"params": {"input_data": {"wf_json": GRAPH}}}, {"params": {"input_data": {"wf_json": GRAPH}}}),
        (None, None),
    ],
)
def test_what_is_submitted(tmp_path: Path, content: Any, sent: Any) -> None:
    file = tmp_path / "wf.json"
    file.write_text(json.dumps(content))
    with serving(World()) as seen:
        ran = comfyd("task", "submit", "portrait", *(["--file", str(file)] if content else []), "--url", seen.url)
    assert (ran.code, ran.out) == (0, "task_0\n")
    assert seen.asked("POST", CREATE) == [sent]


@pytest.mark.parametrize(("given", "sent"), [("vip", "vip"), ("Guest", "guest"), ("-5", -5)])
def test_from_stdin_with_a_priority(given: str, sent: str | int) -> None:
    with serving(World()) as seen:
        options = ["--file", "-", f"--priority={given}", "--json"]
        ran = comfyd("task", "submit", "portrait", *options, "--url", seen.url, stdin=json.dumps(GRAPH).encode())
    assert ran.json["task"]["taskId"] == "task_0"
    assert seen.asked("POST", CREATE)[0]["priority"] == sent


def test_a_start_and_a_deadline_are_handed_on_as_they_were_typed() -> None:
    times = {"run_after": "2099-01-01T00:00:00Z", "deadline": "2099-01-02T00:00:00Z"}
    with serving(World()) as seen:
        options = [f"--{name.replace('_', '-')}={value}" for name, value in times.items()]
        ran = comfyd("task", "submit", "portrait", *options, "--url", seen.url)
    assert ran.code == 0
    assert seen.asked("POST", CREATE) == [times]


@pytest.mark.parametrize("given", ["foo", "", "1.5", "9" * 10])
def test_a_priority_that_is_none_is_wrong_usage(given: str) -> None:
    with serving(World()) as seen:
        ran = comfyd("task", "submit", "portrait", f"--priority={given}", "--url", seen.url)
    assert (ran.code, ran.out) == (2, "")
    assert "vip, normal, guest or an integer" in ran.err
    assert seen.requests == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"[1]", "holds no JSON object"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"nodes": [], "links": []}', "Export (API)"),
        (None, "cannot read"),
    ],
)
def test_a_file_that_is_no_graph_is_refused_before_anything_is_sent(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    file = tmp_path / "wf.json"
    if content is not None:
        file.write_bytes(content)
    with serving(World()) as seen:
        ran = comfyd("task", "submit", "portrait", "--file", str(file), "--url", seen.url)
    assert ran.code == 2
    assert message in ran.err
    assert seen.requests == []


def test_wait_saves_every_output_below_the_folder_and_overwrites_nothing(tmp_path: Path) -> None:
    data = [b"a" * 200_000, b"b", b"c"]
    world = World(tasks={"next": ended("COMPLETED")}, outputs={n: ("plain.png", d) for n, d in enumerate(data)})
    with serving(world) as seen:
        ran = comfyd("task", "submit", "portrait", "--output", str(tmp_path / "out"), "--json", "--url", seen.url)
    saved = ran.json["outputs"]
    assert ran.code == 0
    assert [Path(p).read_bytes() for p in saved] == data
    assert [Path(p).name for p in saved] == ["图.png", "evil.png", "图-1.png"]
    assert {Path(p).parent for p in saved} == {tmp_path / "out"}


@pytest.mark.parametrize(
    ("state", "code", "message"),
    [("COMPLETED", 0, "COMPLETED on comfyui-main"), ("FAILED", 1, "node 7 broke"), ("CANCELLED", 1, "CANCELLED")],
)
def test_how_a_wait_ends(state: str, code: int, message: str) -> None:
    with serving(World(tasks={"next": ended(state, task_message="node 7 broke" if code else None)})) as seen:
        ran = comfyd("task", "submit", "portrait", "--wait", "--url", seen.url)
    assert (ran.code, ran.out) == (code, "task_0\n")
    assert message in ran.err


def test_a_wait_that_is_too_short_is_4_and_the_task_goes_on() -> None:
    with serving(World()) as seen:
        ran = comfyd("task", "submit", "portrait", "--wait", "--timeout", "0.2", "--url", seen.url)
    assert ran.code == 4
    assert "comfyd task show task_0" in ran.err


def test_list_show_and_errors() -> None:
    world = World(
        tasks={"task_9": {"taskId": "task_9", "workflow_name": "p", "status": "FAILED", "task_message": "no\tx"}}
    )
    with serving(world) as seen:
        table = comfyd("task", "list", "--status", "failed", "--limit", "3", "--url", seen.url)
        machine = comfyd("task", "list", "--json", "--url", seen.url)
        shown = comfyd("task", "show", "task_9", "--url", seen.url)
        missing = comfyd("task", "show", "../x", "--json", "--url", seen.url)
        cancel = comfyd("task", "cancel", "task_9", "--url", seen.url)
        assert comfyd("task", "list", "--limit", "0", "--url", seen.url).code == 2
    assert seen.requests[0][1] == "/tasks?status=FAILED&limit=3"
    assert table.out.splitlines()[1].split() == ["task_9", "p", "FAILED", "no", "x"]
    assert machine.json["queue_length"] == 1
    assert "status: FAILED" in shown.out
    assert (missing.code, missing.json["error"]["code"]) == (1, "task_not_found")
    assert seen.requests[3][1] == "/tasks/..%2Fx"
    assert (cancel.code, cancel.out) == (1, "")
    assert "it is COMPLETED" in cancel.err


def environment(then: dict[str, Any] | None = None, **install: Any) -> dict[str, Any]:
    before = {"state": "absent", "generation": None, "failures": 0, "steps": [], "conditions": [], **install}
    return {"name": "comm", "state": before["state"], "workflows": ["a", "b"], "install": before, "then": then or {}}


FAILED = {"type": "waiting_env", "reason": "install_failed", "message": "step run_script ended with 3"}


REBUILD = {"type": "install_failed", "reason": "script_failed", "message": "install.sh ended with exit code 7"}


@pytest.mark.parametrize(
    ("before", "then", "options", "code", "outcome"),
    [
        ({}, {"state": "installed", "generation": 1}, [], 0, "installed"),
        ({"state": "installed", "generation": 1}, {"state": "installed", "generation": 2}, [], 0, "installed"),
        ({}, {"state": "failed", "failures": 1, "conditions": [FAILED]}, [], 1, "failed"),
        ({"state": "installed", "generation": 1}, {"failures": 1, "conditions": [REBUILD]}, [], 1, "failed"),
        ({}, {"state": "conflict"}, [], 1, "failed"),
        ({}, {"conditions": [{"reason": "environment_invalid"}]}, [], 1, "failed"),
        ({}, {"conditions": [{"reason": "no_build_script"}]}, [], 1, "failed"),
        ({}, {"state": "installing", "step": "copy"}, ["--wait", "0.1"], 4, "installing"),
        ({"state": "installed", "generation": 1}, {}, ["--wait", "0.1"], 4, "installing"),
        ({}, {"state": "installing"}, ["--wait", "0"], 0, "asked"),
    ],
)
def test_how_an_install_ends(
    before: dict[str, Any], then: dict[str, Any], options: list[str], code: int, outcome: str
) -> None:
    with serving(World(environments=[environment(then, **before)])) as seen:
        ran = comfyd("env", "install", "comm", "--json", *options, "--url", seen.url)
    assert (ran.code, ran.json["outcome"]) == (code, outcome)
    assert len(seen.asked("POST", "/environments/comm/install")) == 1


def test_env_list_and_an_unknown_environment() -> None:
    with serving(World(environments=[environment()])) as seen:
        table = comfyd("env", "list", "--url", seen.url)
        wrong = comfyd("env", "install", "com", "--url", seen.url)
    assert table.out.splitlines()[1].split() == ["comm", "absent", "a,", "b"]
    assert wrong.code == 1
    assert "did you mean comm? known: comm" in wrong.err
