"""Installs as a user meets them: what is shown while one runs, how the command line tells its end, what stops leave."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Daemon, leftovers, write_quick_install

WAITS = "echo begun; while [ ! -e {gate} ]; do sleep 0.05; done"
STUBBORN = "trap '' TERM INT HUP; (trap '' TERM; setsid sleep 300) & echo begun; sleep 300"


def comfyd(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "comfyd", *arguments, "--root", str(root)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=40, check=False)


def begun(daemon: Daemon) -> bool:
    log = daemon.root / "workspace/logs/install_comm.log"
    return log.exists() and "begun" in log.read_text()


def install_of(daemon: Daemon) -> dict[str, Any]:
    return dict(daemon.get("/environments/comm/install")["install"])


def test_a_running_install_is_shown_step_by_step(daemon: Daemon, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    write_quick_install(daemon.root / "build/comm", WAITS.format(gate=gate))
    daemon.environ["COMFYD_POLL_S"] = "600"
    daemon.start().until(lambda: begun(daemon))
    daemon.until(lambda: install_of(daemon)["step"] == "run_script", 3, "the step is shown")
    assert 0 < install_of(daemon)["progress"] < 1
    daemon.until(lambda: daemon.instance(0)["conditions"][0]["reason"] == "installing", 3, "the instance says so")
    assert "run_script" in comfyd(daemon.root, "status").stdout
    gate.touch()
    daemon.until_ready(0, 1)


def test_the_command_line_tells_a_failed_rebuild_from_a_good_one(daemon: Daemon) -> None:
    daemon.start().until_ready(0, 1)
    before = daemon.pids()
    assert "generation 2" in comfyd(daemon.root, "env", "install", "comm").stdout
    write_quick_install(daemon.root / "build/comm", "echo no wheel; exit 7")
    ran = comfyd(daemon.root, "env", "install", "comm", "--json")
    assert (ran.returncode, json.loads(ran.stdout)["outcome"]) == (1, "failed")
    assert install_of(daemon)["generation"] == 2
    shown = daemon.get("/environments/comm")
    assert shown["install"]["last_lines"][-1] == "no wheel"
    assert shown["conditions"][0]["message"] == "install.sh ended with exit code 7: no wheel"
    (listed,) = daemon.get("/api/comfyui/status")["environments"]
    assert listed["install"]["last_lines"] == shown["install"]["last_lines"]
    assert daemon.pids() == before


def test_a_rebuild_in_the_place_of_an_adopted_directory_ends_with_a_reason(daemon: Daemon) -> None:
    tree = daemon.root / "workspace/ComfyUI-comm"
    write_quick_install(tree.parent, "")
    (tree / "venv/bin").mkdir(parents=True)
    (tree.parent / "comfyui/main.py").rename(tree / "main.py")
    (tree / "venv/bin/python").symlink_to(os.path.realpath(sys.executable))
    (tree / "venv/bin/activate").touch()
    daemon.start().until_ready(0, 1)
    for _ in range(2):
        ran = comfyd(daemon.root, "env", "install", "comm", "--wait", "20")
        assert ran.returncode == 1
        assert "move" in ran.stderr + ran.stdout
    assert not tree.is_symlink()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_daemon_that_ends_during_an_install_leaves_nothing_half(daemon: Daemon, number: int) -> None:
    write_quick_install(daemon.root / "build/comm", STUBBORN)
    daemon.start().until(lambda: begun(daemon))
    if number == signal.SIGTERM:
        assert daemon.stop() == 0
        assert leftovers(daemon.root) == []
    else:
        daemon.kill()
    workspace = daemon.root / "workspace"
    assert not (workspace / "ComfyUI-comm").exists()
    write_quick_install(daemon.root / "build/comm")
    daemon.start().until_ready(0, 1, timeout_s=30)
    assert len(leftovers(daemon.root)) == 2
    assert (workspace / "ComfyUI-comm/.comfyd-environment.json").exists()
    assert os.readlink(workspace / "ComfyUI-comm") != ".ComfyUI-comm.1"
