"""A real ComfyUI on the CPU: installed by the rewritten build script, started by an edit, a picture compared."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.real.daemon import CHECKOUT, RealComfyUI, until
from tests.real.png import rgb_rows

pytestmark = [pytest.mark.real, pytest.mark.timeout(1200)]

WIDTH, HEIGHT = 96, 64
COLOUR = (0x20, 0x40, 0x60)
INVERTED = tuple(255 - value for value in COLOUR)


def graph(prefix: str, colour: tuple[int, int, int] = COLOUR) -> dict[str, Any]:
    """EmptyImage -> ImageInvert -> SaveImage in ComfyUI's API format."""
    red, green, blue = colour
    size = {"width": WIDTH, "height": HEIGHT, "batch_size": 1, "color": red << 16 | green << 8 | blue}
    return {
        "1": {"class_type": "EmptyImage", "inputs": size},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": prefix}},
    }


def body(wf_json: dict[str, Any]) -> dict[str, Any]:
    return {"params": {"input_data": {"wf_json": wf_json}}}


def only_picture(comfyui: RealComfyUI, task: dict[str, Any]) -> list[list[tuple[int, int, int]]]:
    status, png = comfyui.daemon.raw("GET", f"/tasks/{task['taskId']}/outputs/0")
    assert status == 200, png
    assert comfyui.daemon.raw("GET", f"/tasks/{task['taskId']}/outputs/1")[0] == 404
    return rgb_rows(png)


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
    assert install["state"] == "installed", install
    assert len(install["steps"]) == 9, install["steps"]


def test_a_task_comes_back_as_the_inverted_picture(comfyui: RealComfyUI) -> None:
    task = comfyui.daemon.run_task("invert", body(graph("inverted")))
    assert task["status"] == "COMPLETED", task
    assert task["instance"] == "comfyui-main"
    rows = only_picture(comfyui, task)
    assert (len(rows[0]), len(rows)) == (WIDTH, HEIGHT)
    assert {pixel for row in rows for pixel in row} == {INVERTED}


def test_the_stored_workflow_runs_when_a_task_brings_none(comfyui: RealComfyUI) -> None:
    task = comfyui.daemon.run_task("invert", None)
    assert task["status"] == "COMPLETED", task
    assert {pixel for row in only_picture(comfyui, task) for pixel in row} == {INVERTED}


def test_a_node_that_does_not_exist_fails_the_task_and_says_which(comfyui: RealComfyUI) -> None:
    wrong = graph("never")
    wrong["2"]["class_type"] = "NoSuchNode"
    task = comfyui.daemon.run_task("invert", body(wrong))
    assert task["status"] == "FAILED", task
    assert "NoSuchNode" in json.dumps(task)
    assert task["attempts"] == 1, "a validation error is permanent"


def test_the_real_one_keeps_the_contract_that_the_stand_in_keeps(comfyui: RealComfyUI) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/contract", "-p", "no:xdist", "-o", "addopts=-q -p no:cacheprovider"],
        cwd=CHECKOUT,
        env=os.environ | {"COMFYD_REAL_COMFYUI_URL": comfyui.url},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    assert " passed" in ran.stdout


def test_z_disabling_it_in_the_file_ends_it_and_a_running_prompt_is_not_needed(comfyui: RealComfyUI) -> None:
    pid = comfyui.daemon.instance("comfyui-main")["pid"]
    process = psutil.Process(pid)
    assert "--cpu" in process.cmdline()
    comfyui.daemon.write_instances(comfyui.entry | {"enabled": False})
    until("ComfyUI is gone", lambda: not process.is_running(), 60)
    until("status says stopped", lambda: comfyui.daemon.instance("comfyui-main")["state"] == "stopped", 10)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", comfyui.entry["port"]))

    started = time.monotonic()
    comfyui.daemon.write_instances(comfyui.entry)
    until("ComfyUI is ready again", lambda: comfyui.daemon.instance("comfyui-main")["ready"], 120)
    assert time.monotonic() - started < 120
    with urllib.request.urlopen(f"{comfyui.url}/prompt", timeout=10) as answer:
        assert json.load(answer) == {"exec_info": {"queue_remaining": 0}}
    again = comfyui.daemon.instance("comfyui-main")["pid"]
    assert again != pid
    assert comfyui.daemon.stop() == 0
    assert not psutil.pid_exists(again)
