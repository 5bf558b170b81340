"""Logs on a live daemon: a flooding instance is rotated, its reader goes on, status stays quick."""

import os
import time

import pytest

from tests.daemon import Daemon


@pytest.mark.slow
def test_a_flood_is_rotated_and_the_daemon_stays_quick(daemon: Daemon) -> None:
    daemon.environ["FAKE_COMFYUI_FLOOD_MB"] = "70"
    daemon.edit(lambda d: d["instances"].pop())
    daemon.start().until_ready(0)
    log = daemon.root / "workspace/logs/comfyui_instance_0.log"
    slowest = 0.0

    def rotated() -> bool:
        nonlocal slowest
        began = time.monotonic()
        daemon.get("/api/comfyui/status")
        slowest = max(slowest, time.monotonic() - began)
        return log.with_name(log.name + ".1").exists()

    daemon.until(rotated, 40)
    pid = daemon.pids()["comfyui/0"]
    assert os.readlink(f"/proc/{pid}/fd/1") == str(log)
    assert slowest < 2.0
    daemon.until(lambda: log.stat().st_size < 20_000_000, what="the log is small again")
    assert daemon.instance(0)["restarts"] == 0
