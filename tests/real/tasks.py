"""A graph as a task of the daemon: create it, follow it, take its files."""

import json
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

from tests.graphs import Graph
from tests.real.conftest import RealComfyUI
from tests.real.png import Pixel, rgb_rows

TERMINAL = {"COMPLETED", "FAILED", "CANCELLED"}


def body(graph: Graph) -> dict[str, Any]:
    return {"params": {"input_data": {"wf_json": graph}}}


def create(comfyui: RealComfyUI, asked: Any, workflow: str = "invert") -> str:
    created = comfyui.daemon.post(f"/tasks/create/{workflow}", asked)
    assert created["success"] is True
    return str(created["taskId"])


def show(comfyui: RealComfyUI, task_id: str) -> dict[str, Any]:
    return dict(comfyui.daemon.get(f"/tasks/{task_id}"))


def asked(comfyui: RealComfyUI, path: str) -> Any:
    """What ComfyUI itself says."""
    with urllib.request.urlopen(f"{comfyui.url}/{path}", timeout=20) as answer:
        return json.load(answer)


def ended(comfyui: RealComfyUI, task_id: str) -> dict[str, Any]:
    """The task in its terminal state."""
    task: dict[str, Any] = {}

    def look() -> bool:
        task.update(show(comfyui, task_id))
        return task["status"] in TERMINAL

    comfyui.daemon.until(look, 60, f"{task_id} ends")
    return task


def run(comfyui: RealComfyUI, graph: Graph) -> dict[str, Any]:
    return ended(comfyui, create(comfyui, body(graph)))


def completed(comfyui: RealComfyUI, graph: Graph) -> dict[str, Any]:
    task = run(comfyui, graph)
    assert task["status"] == "COMPLETED", task
    return task


def files(comfyui: RealComfyUI, task: dict[str, Any], count: int) -> list[bytes]:
    """What /tasks/{id}/outputs/{n} gives for all files; there must be just `count` of them."""
    described = task["output_data"]["files"]
    assert len(described) == len(task["output_data"]["urls"]) == count
    answers = [comfyui.daemon.call("GET", url) for url in task["output_data"]["urls"]]
    assert [a.status for a in answers] == [200] * count
    assert [len(a.body) for a in answers] == [d["size"] for d in described]
    assert comfyui.daemon.call("GET", f"/tasks/{task['taskId']}/outputs/{count}").status == 404
    return [a.body for a in answers]


def only_picture(comfyui: RealComfyUI, task: dict[str, Any]) -> list[list[Pixel]]:
    return rgb_rows(files(comfyui, task, 1)[0])


def probed(comfyui: RealComfyUI, data: bytes, path: Path) -> dict[str, Any]:
    """What the environment's own libraries read in `data`, written to `path`, whose suffix says what it is."""
    path.write_bytes(data)
    probe = Path(__file__).with_name("probe.py")
    ran = subprocess.run(
        [comfyui.tree / "venv/bin/python", "-I", probe, path],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return dict(json.loads(ran.stdout))
