"""One daemon for each module: comm with two instances, a face swap service, and aua-sp that no instance names.

DISABLE_AUTOLAUNCH is on, as in the documented `docker run`: the file only declares.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.calls.curl import Curl
from tests.daemon import Daemon, make_root, running_daemon
from tests.ports import free_port

DOCUMENTED = (8001, 3001, 3002, 3003, 3005)
HANDLER = Path(__file__).with_name("fastapi_handler.py")


def make_calls_root(folder: Path, moved: dict[int, int]) -> Path:
    instances = [
        {"id": 0, "port": moved[3001], "name": "comfyui-main", "description": "Main"},
        {"id": 1, "port": moved[3002], "name": "comfyui-backup"},
        {"id": 2, "port": moved[3005], "name": "facefusion", "environment": "facefusion",
         "restart": {"policy": "on_failure"}},
    ]  # fmt: skip
    root = make_root(folder, instances)
    comm = root / "config/environments/comm/config.json"
    comm.write_text(json.dumps(json.loads(comm.read_text()) | {"port": moved[3001]}))
    add_facefusion(root, moved[3005])
    other = root / "config/environments/aua-sp"
    other.mkdir()
    model = {"url": "https://user:secret@models.example/a.safetensors?token=secret", "type": "loras"}
    config = {
        "name": "aua-sp", "description": "Portraits", "port": moved[3003], "workflows": ["portrait", "portrait_fast"],
        "nodes": ["cubiq/ComfyUI_essentials@v1"], "models": [model],
    }  # fmt: skip
    (other / "config.json").write_text(json.dumps(config))
    return root


def add_facefusion(root: Path, port: int) -> None:
    """A service environment as an operator writes it; its handler is a stand-in."""
    config = {
        "name": "facefusion", "description": "Face swap", "port": port, "workflows": ["face_swap"],
        "service_type": "facefusion", "command": [sys.executable, "fastapi_handler.py"],
        "probe": {"type": "http", "path": "/health", "period_s": 0.2},
    }  # fmt: skip
    folder, build = root / "config/environments/facefusion", root / "build/facefusion"
    folder.mkdir()
    build.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(HANDLER, build)
    script = build / "install.sh"
    script.write_text(
        '#!/usr/bin/env bash\nset -e\nmkdir /ComfyUI\ncp "$(dirname "$0")/fastapi_handler.py" /ComfyUI/\n'
    )
    script.chmod(0o755)


@pytest.fixture(scope="module")
def moved() -> dict[int, int]:
    return {port: free_port() for port in DOCUMENTED}


@pytest.fixture(scope="module")
def environ() -> dict[str, str]:
    """More variables for the daemon; modules override it."""
    return {}


@pytest.fixture(scope="module")
def daemon(
    tmp_path_factory: pytest.TempPathFactory, moved: dict[int, int], environ: dict[str, str]
) -> Iterator[Daemon]:
    root = make_calls_root(tmp_path_factory.mktemp("calls") / "root", moved)
    with running_daemon(root, DISABLE_AUTOLAUNCH="true", **environ) as one:
        moved[8001] = one.port
        yield one


@pytest.fixture(scope="module")
def curl(tmp_path_factory: pytest.TempPathFactory, daemon: Daemon, moved: dict[int, int]) -> Curl:
    return Curl(tmp_path_factory.mktemp("curl"), moved)


@pytest.fixture
def clean(daemon: Daemon) -> Iterator[Daemon]:
    """The daemon with comm installed, nothing running and nothing overridden; left like that."""
    if not daemon.get("/environments/comm")["installed"]:
        daemon.post("/environments/comm/install", status=202)
        daemon.until(lambda: daemon.get("/environments/comm")["installed"], what="comm installed")
    yield daemon
    daemon.post("/api/comfyui/stop-all")
    daemon.call("DELETE", "/api/comfyui/overrides")
    daemon.until(lambda: not daemon.pids(), what="nothing runs")
