"""A real ComfyUI on the CPU: installed by the rewritten build script, started by an edit, a picture compared."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import REPOSITORY, leftovers
from tests.graphs import EXACT
from tests.real.conftest import NAME, RealComfyUI
from tests.real.png import rgb_rows

pytestmark = [pytest.mark.real, pytest.mark.timeout(1200)]

WIDTH, HEIGHT = 96, 64
COLOUR = EXACT[0]
INVERTED = tuple(255 - value for value in COLOUR.to_bytes(3, "big"))


def graph(prefix: str) -> dict[str, Any]:
    """EmptyImage -> ImageInvert -> SaveImage in ComfyUI's API format."""
    size = {"width": WIDTH, "height": HEIGHT, "batch_size": 1, "color": COLOUR}
    return {
        "1": {"class_type": "EmptyImage", "inputs": size},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": prefix}},
    }


def body(wf_json: dict[str, Any]) -> dict[str, Any]:
    return {"params": {"input_data": {"wf_json": wf_json}}}


def run_task(comfyui: RealComfyUI, asked: Any) -> dict[str, Any]:
    """The task of workflow `invert` in its terminal state."""
    created = comfyui.daemon.post("/tasks/create/invert", asked)
    assert created["success"] is True
    path = f"/tasks/{created['taskId']}"
    terminal = {"COMPLETED", "FAILED", "CANCELLED"}
    comfyui.daemon.until(lambda: comfyui.daemon.get(path)["status"] in terminal, 120, "the task ends")
    return dict(comfyui.daemon.get(path))


def only_picture(comfyui: RealComfyUI, task: dict[str, Any]) -> list[list[tuple[int, int, int]]]:
    answer = comfyui.daemon.call("GET", f"/tasks/{task['taskId']}/outputs/0")
    assert answer.status == 200, answer.body
    assert comfyui.daemon.call("GET", f"/tasks/{task['taskId']}/outputs/1").status == 404
    return rgb_rows(answer.body)


def test_the_script_was_rewritten_and_the_tree_is_whole(comfyui: RealComfyUI) -> None:
    workspace = comfyui.daemon.root / "workspace"
    link = workspace / "ComfyUI-comm"
    generation = link.resolve()
    assert link.is_symlink()
    assert generation.parent == workspace
    assert generation.name.startswith(".ComfyUI-comm.")
    assert (link / "main.py").is_file()
    assert (link / "models").resolve() == workspace / "shared-models"
    assert str(generation / "venv") in (link / "venv/bin/activate").read_text()
    assert Path(f"{link}/venv/bin/pip").read_text().splitlines()[0] == f"#!{generation}/venv/bin/python3"
    assert "/ComfyUI/venv" in (comfyui.daemon.root / "build/comm/install.sh").read_text(), "the original was edited"
    log = (workspace / "logs/install_comm.log").read_text()
    assert f"COMFYUI: installed to {generation}" in log
    install = comfyui.daemon.get("/environments/comm/install")
    assert install["installed"] is True
    assert [step["state"] for step in install["install"]["steps"]] == ["done"] * 9


def test_a_task_comes_back_as_the_inverted_picture(comfyui: RealComfyUI) -> None:
    task = run_task(comfyui, body(graph("inverted")))
    assert task["status"] == "COMPLETED", task
    assert task["instance"] == NAME
    rows = only_picture(comfyui, task)
    assert (len(rows[0]), len(rows)) == (WIDTH, HEIGHT)
    assert {pixel for row in rows for pixel in row} == {INVERTED}


def test_the_stored_workflow_runs_when_a_task_brings_none(comfyui: RealComfyUI) -> None:
    task = run_task(comfyui, None)
    assert task["status"] == "COMPLETED", task
    assert {pixel for row in only_picture(comfyui, task) for pixel in row} == {INVERTED}


def test_a_node_that_does_not_exist_fails_the_task_and_says_which(comfyui: RealComfyUI) -> None:
    wrong = graph("never")
    wrong["2"]["class_type"] = "NoSuchNode"
    task = run_task(comfyui, body(wrong))
    assert task["status"] == "FAILED", task
    assert "NoSuchNode" in json.dumps(task)
    assert task["attempts"] == 1, "a validation error is permanent"


def test_the_real_one_keeps_the_contract_that_the_stand_in_keeps(comfyui: RealComfyUI) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/contract", "-k", "real", "-rs", "-p", "no:xdist"],
        cwd=REPOSITORY,
        env=os.environ | {"COMFYD_REAL_COMFYUI_URL": comfyui.url},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    print(ran.stdout)
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    assert " passed" in ran.stdout
    assert "COMFYD_REAL_COMFYUI_URL is not set" not in ran.stdout


def test_z_disabling_it_ends_it_and_enabling_it_starts_it_without_an_install(comfyui: RealComfyUI) -> None:
    daemon = comfyui.daemon
    pid = daemon.instance(NAME)["pid"]
    assert b"--cpu" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    generation = daemon.get("/environments/comm")["generation"]
    comfyui.write_instances(enabled=False)
    daemon.until(lambda: daemon.state(NAME) == "stopped", 60, "the edit stops it")
    assert not Path(f"/proc/{pid}").exists()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", comfyui.entry["port"]))

    comfyui.write_instances(enabled=True)
    daemon.until_ready(NAME, timeout_s=120)
    assert daemon.get("/environments/comm")["generation"] == generation
    again = daemon.instance(NAME)["pid"]
    assert again != pid
    assert daemon.stop() == 0
    assert not Path(f"/proc/{again}").exists()
    assert leftovers(daemon.root) == []
