"""A real ComfyUI on the CPU: installed by the rewritten build script, started by an edit, a picture compared."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.daemon import REPOSITORY, leftovers
from tests.graphs import EXACT, Graph
from tests.real.conftest import NAME, NODES, RealComfyUI
from tests.real.tasks import asked, completed, create, ended, only_picture

pytestmark = [pytest.mark.real, pytest.mark.timeout(1200)]

WIDTH, HEIGHT = 96, 64
COLOUR = EXACT[0]
INVERTED = tuple(255 - value for value in COLOUR.to_bytes(3, "big"))


def graph(prefix: str) -> Graph:
    """EmptyImage -> ImageInvert -> SaveImage in ComfyUI's API format."""
    size = {"width": WIDTH, "height": HEIGHT, "batch_size": 1, "color": COLOUR}
    return {
        "1": {"class_type": "EmptyImage", "inputs": size},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": prefix}},
    }


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


def test_the_pinned_node_is_installed(comfyui: RealComfyUI) -> None:
    environment = comfyui.daemon.get("/environments/comm")
    assert environment["conditions"] == []
    assert environment["resolved_nodes"] == {NODES: comfyui.nodes}
    assert (comfyui.tree / "custom_nodes" / NODES / "async_test_nodes.py").is_file()
    assert "seconds" in asked(comfyui, "object_info/TestSleep")["TestSleep"]["input"]["required"]


def test_a_task_comes_back_as_the_inverted_picture(comfyui: RealComfyUI) -> None:
    task = completed(comfyui, graph("inverted"))
    assert task["instance"] == NAME
    rows = only_picture(comfyui, task)
    assert (len(rows[0]), len(rows)) == (WIDTH, HEIGHT)
    assert {pixel for row in rows for pixel in row} == {INVERTED}


def test_the_stored_workflow_runs_when_a_task_brings_none(comfyui: RealComfyUI) -> None:
    task = ended(comfyui, create(comfyui, None))
    assert task["status"] == "COMPLETED", task
    assert {pixel for row in only_picture(comfyui, task) for pixel in row} == {INVERTED}


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
    assert " skipped" not in ran.stdout, "the test nodes are there: nothing is left out"


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
