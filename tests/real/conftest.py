"""One real ComfyUI for all tests here: installed by the daemon from build/comm, then left running.

Without COMFYD_TEST_CACHE everything is made anew in a temporary folder (about two minutes, 1.8 GB); with it the root
is kept in that folder, and a later run starts the environment that an earlier one installed.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.daemon import CHECKOUT, Daemon, RealComfyUI, free_port, until

INSTALL_S = 900


def _root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = os.environ.get("COMFYD_TEST_CACHE")
    root = Path(cache).absolute() / "real-root" if cache else tmp_path_factory.mktemp("real") / "root"
    made = subprocess.run([CHECKOUT / "scripts/dev/real_root.sh", root], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    return root


def _ready(daemon: Daemon, name: str) -> bool:
    status = daemon.get("/api/comfyui/status")
    environment = next(e for e in status["environments"] if e["name"] == "comm")
    broken = environment["install"]["state"] in {"failed", "conflict"}
    assert not broken, f"{environment}\n{daemon.tail(daemon.root / 'workspace/logs/install_comm.log')}"
    instance = daemon.instance(name)
    log = daemon.root / "workspace/logs/comfyui_instance_0.log"
    assert instance["state"] not in {"failed", "conflict", "backoff"}, f"{instance}\n{daemon.tail(log)}"
    return bool(instance["ready"])


@pytest.fixture(scope="session")
def comfyui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealComfyUI]:
    daemon = Daemon(_root(tmp_path_factory))
    entry = {"id": 0, "port": free_port(), "name": "comfyui-main", "extra_args": "--cpu", "enabled": False}
    daemon.write_instances(entry)
    daemon.start()
    try:
        assert daemon.instance("comfyui-main")["state"] == "stopped"
        entry["enabled"] = True
        daemon.write_instances(entry)
        until("ComfyUI is installed and ready", lambda: _ready(daemon, "comfyui-main"), INSTALL_S, period_s=1)
        yield RealComfyUI(daemon, entry)
    finally:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.stop()
