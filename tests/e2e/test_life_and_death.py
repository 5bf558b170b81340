"""The daemon dies, is stopped, is upgraded, is started twice; the instances and tasks see what was promised."""

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest

from tests.daemon import Daemon, leftovers

SLEEPER = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 255}},
    "2": {"class_type": "TestSleep", "inputs": {"value": ["1", 0], "seconds": 3.0}},
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "slept"}},
}


def submit(daemon: Daemon, graph: object = None) -> str:
    body = {} if graph is None else {"params": {"input_data": {"wf_json": graph}}}
    return str(daemon.post("/tasks/create/invert", body)["taskId"])


def status_of(daemon: Daemon, task: str) -> str:
    return str(daemon.get(f"/tasks/{task}")["status"])


def test_sigkill_leaves_the_instances_and_the_next_daemon_adopts_them(daemon: Daemon) -> None:
    daemon.start().until_ready(0, 1)
    before = daemon.pids()
    daemon.kill()
    assert sorted(leftovers(daemon.root)) == sorted(before.values())
    daemon.start()
    daemon.until_ready(0, 1, timeout_s=5)
    assert daemon.pids() == before
    assert all(i["adopted"] and i["restarts"] == 0 for i in daemon.get("/api/comfyui/status")["instances"])
    assert sorted(leftovers(daemon.root)) == sorted(before.values())


def test_a_running_task_survives_sigkill_of_the_daemon_without_running_twice(daemon: Daemon) -> None:
    daemon.start().until_ready(0, 1)
    task = submit(daemon, SLEEPER)
    daemon.until(lambda: status_of(daemon, task) == "PROCESSING")
    daemon.until(lambda: any(i["in_flight"] for i in daemon.get("/api/comfyui/status")["instances"]))
    daemon.kill()
    daemon.start()
    daemon.until(lambda: status_of(daemon, task) == "COMPLETED", 30)
    shown = daemon.get(f"/tasks/{task}")
    assert shown["attempts"] == 1
    saved = list((daemon.root / "workspace/data/comm/output").rglob("slept_*.png"))
    assert len(saved) == 1, saved


def test_a_task_whose_instance_dies_is_run_again(daemon: Daemon) -> None:
    daemon.start().until_ready(0, 1)
    task = submit(daemon, SLEEPER)
    daemon.until(lambda: any(i["in_flight"] for i in daemon.get("/api/comfyui/status")["instances"]))
    busy = next(i for i in daemon.get("/api/comfyui/status")["instances"] if i["in_flight"])
    os.kill(busy["pid"], signal.SIGKILL)
    daemon.until(lambda: status_of(daemon, task) == "COMPLETED", 40)
    assert daemon.get(f"/tasks/{task}")["attempts"] == 1


def test_sigterm_ends_everything_in_time_with_exit_code_0(daemon: Daemon) -> None:
    daemon.start().until_ready(0, 1)
    pids = daemon.pids()
    began = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - began < 25
    assert leftovers(daemon.root) == []
    assert not any(os.path.exists(f"/proc/{p}") for p in pids.values())


def test_any_number_of_sigterms_gives_exit_code_0(daemon: Daemon) -> None:
    """Also one that arrives in the last moments, when everything is closed."""
    daemon.start()
    assert daemon.process is not None
    while daemon.process.poll() is None:
        daemon.signal(signal.SIGTERM)
        time.sleep(0.002)
    assert daemon.process.returncode == 0
    assert leftovers(daemon.root) == []


@pytest.mark.parametrize(
    "pause_s", [0.0, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.05, 0.2, 0.3, 0.4, 0.6))]
)
def test_a_sigterm_that_follows_an_upgrade_is_not_lost(daemon: Daemon, pause_s: float) -> None:
    """It may fall into the unwinding, into the exec or into the start of what follows."""
    daemon.start().until_ready(0, 1)
    daemon.signal(signal.SIGUSR2)
    time.sleep(pause_s)
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0, daemon.output[-3000:]
    assert leftovers(daemon.root) == []


def test_sigterm_with_keep_instances_leaves_them(daemon: Daemon) -> None:
    daemon.environ["COMFYD_KEEP_INSTANCES"] = "true"
    daemon.start().until_ready(0, 1)
    before = daemon.pids()
    assert daemon.stop() == 0
    assert sorted(leftovers(daemon.root)) == sorted(before.values())
    daemon.environ["COMFYD_KEEP_INSTANCES"] = "false"
    daemon.start().until_ready(0, 1, timeout_s=5)
    assert daemon.pids() == before


def test_sigusr2_upgrades_in_place(daemon: Daemon) -> None:
    daemon.start().until_ready(0, 1)
    before = daemon.pids()
    daemon.signal(signal.SIGUSR2)
    daemon.until(lambda: daemon.output.count("comfyd starts") == 2)
    daemon.until_ready(0, 1, timeout_s=10)
    assert daemon.pids() == before
    assert daemon.process is not None
    assert daemon.process.poll() is None
    assert daemon.stop() == 0


@pytest.mark.slow
def test_leaving_the_instances_waits_for_no_prompt(daemon: Daemon) -> None:
    """First an upgrade, then an end that keeps the instances, both while one prompt of 15 s runs."""
    saved = daemon.root / "workspace/data/comm/output"
    daemon.environ |= {"COMFYD_KEEP_INSTANCES": "true", "COMFYD_SHUTDOWN_DRAIN_S": "60"}
    daemon.start().until_ready(0, 1)
    graph = {**SLEEPER, "2": {"class_type": "TestSleep", "inputs": {"value": ["1", 0], "seconds": 15.0}}}
    task = submit(daemon, graph)
    daemon.until(lambda: any(i["in_flight"] for i in daemon.get("/api/comfyui/status")["instances"]))
    daemon.signal(signal.SIGUSR2)
    daemon.until(lambda: daemon.output.count("comfyd starts") == 2)
    assert daemon.stop() == 0
    assert list(saved.rglob("slept_*.png")) == [], "it still runs"
    daemon.start()
    daemon.until(lambda: status_of(daemon, task) == "COMPLETED", 40)
    assert daemon.get(f"/tasks/{task}")["attempts"] == 1
    assert len(list(saved.rglob("slept_*.png"))) == 1


def test_a_second_daemon_is_refused_and_the_holder_named(daemon: Daemon) -> None:
    daemon.start()
    assert daemon.process is not None
    began = time.monotonic()
    second = subprocess.run(
        [sys.executable, "-m", "comfyd", "run", "--root", str(daemon.root)],
        capture_output=True, text=True, timeout=30, env={**os.environ, "COMFYD_PORT": "1"}, check=False,
    )  # fmt: skip
    assert second.returncode == 75, second.stderr
    assert f"pid {daemon.process.pid}" in second.stderr
    assert time.monotonic() - began < 10


def test_overrides_survive_a_restart_and_are_cleared(daemon: Daemon) -> None:
    daemon.start().until_ready(0, 1)
    daemon.post("/api/comfyui/instances/comfyui-backup/stop")
    daemon.until(lambda: daemon.state(1) == "stopped")
    daemon.stop()
    daemon.start().until_ready(0)
    assert daemon.instance(1)["state"] == "stopped"
    assert daemon.instance(1)["override"]["want"] == "down"
    assert daemon.call("DELETE", "/api/comfyui/overrides/1").status == 200
    daemon.until_ready(1)


def test_accepted_tasks_survive_sigkill(daemon: Daemon) -> None:
    """Nothing is ready yet: the tasks wait, the daemon dies, the next one runs them all."""
    daemon.edit(lambda d: [i.update(enabled=False) for i in d["instances"]])
    daemon.start()
    tasks = [submit(daemon) for _ in range(20)]
    daemon.kill()
    daemon.edit(lambda d: [i.update(enabled=True) for i in d["instances"]])
    daemon.start()
    daemon.until(lambda: all(status_of(daemon, t) == "COMPLETED" for t in tasks), 40)


def test_running_out_of_descriptors_is_survived_without_a_flood(daemon: Daemon) -> None:
    """New connections wait, what runs is still watched, and everything goes on once there is room again."""
    daemon.start().until_ready(0, 1)
    assert daemon.process is not None
    before, pid = daemon.pids(), daemon.process.pid
    taken = len(os.listdir(f"/proc/{pid}/fd"))
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (taken + 10, hard))
    with ExitStack() as crowd:
        for _ in range(60):
            crowd.enter_context(socket.create_connection(("127.0.0.1", daemon.port)))
        daemon.until(lambda: "out of system resource" in daemon.output, what="descriptors are exhausted")
        os.kill(before["comfyui/1"], signal.SIGKILL)
        time.sleep(2)  # as long as a flood would take to be seen
        assert daemon.output.count("out of system resource") < 20
    daemon.until(lambda: daemon.pids().get("comfyui/1") not in (None, before["comfyui/1"]), what="replaced")
    daemon.until_ready(0, 1)
    assert daemon.pids()["comfyui/0"] == before["comfyui/0"]
    assert sorted(leftovers(daemon.root)) == sorted(daemon.pids().values())


def test_an_instance_that_dies_during_an_upgrade_leaves_no_zombie(daemon: Daemon) -> None:
    daemon.start().until_ready(0, 1)
    assert daemon.process is not None
    before = daemon.pids()
    daemon.signal(signal.SIGUSR2)
    daemon.until(lambda: "comfyd ends" in daemon.output)
    os.kill(before["comfyui/0"], signal.SIGKILL)
    daemon.until(lambda: daemon.pids().get("comfyui/0") not in (None, before["comfyui/0"]), what="replaced")
    assert not os.path.exists(f"/proc/{before['comfyui/0']}")
    assert daemon.pids()["comfyui/1"] == before["comfyui/1"]
