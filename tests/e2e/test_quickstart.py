"""The first minutes of a user: the quickstart as shipped, a task, its picture."""

import shutil
import struct
import subprocess
import zlib
from pathlib import Path

from tests.daemon import QUICKSTART, Daemon, make_root
from tests.ports import free_port


def pixels(png: bytes) -> tuple[int, int, bytes]:
    """Width, height and RGB rows of an 8-bit RGB PNG whose rows use filter 0."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height, depth, colour = struct.unpack(">IIBB", png[16:26])
    assert (depth, colour) == (8, 2)
    packed, at = b"", 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            packed += png[at + 8 : at + 8 + length]
        at += 12 + length
    raw, stride = zlib.decompress(packed), width * 3 + 1
    rows = [raw[i * stride : (i + 1) * stride] for i in range(height)]
    assert all(row[0] == 0 for row in rows)
    return width, height, b"".join(row[1:] for row in rows)


def test_the_quickstart_installs_starts_and_answers_with_a_picture(tmp_path: Path) -> None:
    root = tmp_path / "quickstart"
    shutil.copytree(QUICKSTART, root, ignore=shutil.ignore_patterns("workspace"))
    daemon = Daemon(root)
    try:
        daemon.edit(lambda d: [i.update(port=free_port()) for i in d["instances"]])
        daemon.start()
        daemon.until_ready(0, 1, timeout_s=55)
        environment = daemon.get("/environments/comm")
        assert environment["installed"]
        assert [s["state"] for s in environment["install"]["steps"]] == ["done"] * 9
        assert (root / "workspace/ComfyUI-comm/venv/bin/activate").exists()
        assert (root / "workspace/ComfyUI-comm").resolve().name == ".ComfyUI-comm.1"
        assert (root / "workspace/ComfyUI-comm/models").resolve() == root / "workspace/shared-models"
        assert not Path("/ComfyUI").exists()

        created = daemon.post("/tasks/create/invert")
        assert created["success"] is True
        task = created["taskId"]
        daemon.until(lambda: daemon.get(f"/tasks/{task}")["status"] == "COMPLETED", 20)
        done = daemon.get(f"/tasks/{task}")
        answer = daemon.call("GET", done["output_data"]["urls"][0])
        assert answer.status == 200
        width, height, rgb = pixels(answer.body)
        graph = done["params"]["input_data"]["wf_json"]
        source = next(n["inputs"] for n in graph.values() if n["class_type"] == "EmptyImage")
        colour = source["color"].to_bytes(3, "big")
        assert (width, height) == (source["width"], source["height"])
        assert rgb == bytes(255 - c for c in colour) * (width * height)
        types = [line for line in (root / "workspace/logs/comfyui_instance_0.log").read_text().splitlines() if line]
        assert types
        assert daemon.stop() == 0
    finally:
        daemon.end_everything()


def test_the_documented_curl_line_starts_a_single_instance(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root", [])
    daemon = Daemon(root)
    port = free_port()
    try:
        daemon.start()
        body = f'{{"id": 0, "port": {port}, "name": "main-instance", "extra_args": "--lowvram", "enabled": true}}'
        url = f"http://localhost:{daemon.port}/api/comfyui/start-single"
        argv = ["curl", "-sS", "-X", "POST", url, "-H", "Content-Type: application/json", "-d", body]
        line = [*argv, "--data-urlencode", "environment=comm"]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=True)
        while '"status":"success"' in done.stdout.replace(" ", "") and "installing" in done.stdout:
            done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=True)
        assert f"Instance 'main-instance' started on port {port}" in done.stdout
        assert daemon.instance("main-instance")["origin"] == "override"
        stopped = subprocess.run(
            ["curl", "-sS", "-X", "POST", f"http://localhost:{daemon.port}/api/comfyui/stop-all"],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert "All instances stopped" in stopped.stdout
        assert daemon.pids() == {}
    finally:
        daemon.end_everything()
