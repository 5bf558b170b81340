"""A ComfyUI that misbehaves, and what the daemon does about it. Instance 0 behaves and must not notice anything."""

import fcntl
import os
import signal
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.daemon import Daemon, leftovers, make_root
from tests.graphs import fresh, sleep
from tests.ports import free_port

PROBE = {"period_s": 0.1, "timeout_s": 0.3, "failures": 3}
SOON = {**PROBE, "liveness_period_s": 0.1, "liveness_failures": 3}
"""Idle and silent for 0.3 s, or with a prompt for 3 s, and it is started anew."""
Start = Callable[..., Daemon]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """start(quirks of instance 1, **more of its fields): a daemon on both, instance 0 ready, its pid kept."""
    made: list[Daemon] = []

    def one(quirks: dict[str, str], environ: dict[str, str] | None = None, **fields: Any) -> Daemon:
        env = {f"FAKE_COMFYUI_{name}": value for name, value in quirks.items()}
        odd = {"id": 1, "port": free_port(), "name": "odd", "env": env, "probe": PROBE, **fields}
        root = make_root(tmp_path / "root", [{"id": 0, "port": free_port(), "name": "good"}, odd])
        made.append(Daemon(root, **(environ or {})))
        return made[0].start()

    yield one
    for daemon in made:
        daemon.end_everything()


def submit(daemon: Daemon, graph: Any = None) -> str:
    return str(daemon.post("/tasks/create/invert", {"wf_json": graph or fresh()})["taskId"])


def status_of(daemon: Daemon, task: str) -> str:
    return str(daemon.get(f"/tasks/{task}")["status"])


def only_odd(daemon: Daemon) -> None:
    """Stop the instance that behaves, so that a task has nowhere else to go."""
    daemon.post("/api/comfyui/instances/good/stop")


def condition(daemon: Daemon, kind: str) -> dict[str, Any]:
    return next((c for c in daemon.instance(1)["conditions"] if c["type"] == kind), {})


def lives(process: psutil.Process) -> bool:
    """A zombie that nobody has collected yet is dead."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wedge(daemon: Daemon, seconds: float = 0) -> None:
    port = daemon.instance(1)["port"]
    urllib.request.urlopen(f"http://127.0.0.1:{port}/fake/wedge?seconds={seconds}", b"", timeout=5).close()


# starting
def test_a_slow_start_stays_starting_and_tasks_wait_for_it(start: Start) -> None:
    daemon = start({"START_DELAY": "3"})
    daemon.until_ready(0)  # an interrupt that meets a Python while it starts may get lost
    assert daemon.state(1) == "starting"
    only_odd(daemon)
    task = submit(daemon)
    daemon.until(lambda: "not open yet" in condition(daemon, "not_ready").get("message", ""))
    assert status_of(daemon, task) == "PENDING"
    assert daemon.instance(1)["ready"] is False
    daemon.until_ready(1)
    daemon.until(lambda: status_of(daemon, task) == "COMPLETED")
    assert daemon.instance(1)["restarts"] == 0


def test_never_ready_is_ended_at_the_deadline_and_retried_with_backoff(start: Start, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    daemon = start({"NEVER_READY": "1", "JOURNAL": str(journal)}, {"COMFYD_STARTUP_DEADLINE_S": "1.5"})
    daemon.until(lambda: daemon.state(1) == "starting")
    only_odd(daemon)
    task, first = submit(daemon), daemon.pids()["comfyui/1"]
    daemon.until(lambda: daemon.pids().get("comfyui/1", first) != first, what="tried again at once")
    assert not psutil.pid_exists(first)
    daemon.until(lambda: daemon.state(1) == "backoff", what="the second failure waits")
    shown = daemon.instance(1)
    assert shown["last_exit"]["text"].startswith("not ready within 1.5 s: port ")
    assert (shown["pid"], shown["last_exit"]["asked"]) == (None, False)
    hold = condition(daemon, "backoff")
    assert (hold["reason"], shown["last_exit"]["reason"]) == ("not_ready_in_time",) * 2
    assert condition(daemon, "unhealthy") == {}, "one cause, one condition"
    assert "ended 2 times in a row (not ready within 1.5 s" in hold["message"]
    assert "next start in" in hold["message"]
    assert 7 < daemon.get("/api/comfyui/plan")["wake_in_s"] < 12
    assert hold["message"] in daemon.get("/api/comfyui/status")["output"]
    assert status_of(daemon, task) == "PENDING"
    assert not journal.exists()


def test_an_exit_at_the_start_shows_its_code_and_the_end_of_its_log(start: Start) -> None:
    daemon = start({"EXIT": "3"})
    daemon.until_ready(0)
    good = daemon.pids()["comfyui/0"]
    daemon.until(lambda: daemon.state(1) == "backoff")
    shown = daemon.instance(1)
    assert (shown["last_exit"]["code"], shown["last_exit"]["text"]) == (3, "exit code 3")
    assert "the stand-in was told to exit with 3" in shown["last_exit"]["last_lines"][-1]
    assert "exit code 3" in condition(daemon, "backoff")["message"]
    assert daemon.pids() == {"comfyui/0": good}


def test_backoff_ends_at_once_when_its_settings_change(start: Start) -> None:
    daemon = start({"EXIT": "3"})
    daemon.until(lambda: daemon.state(1) == "backoff")
    daemon.edit(lambda d: d["instances"][1].update(env={}))
    daemon.until_ready(1, timeout_s=8)


def test_failed_imports_do_not_keep_it_from_being_ready(start: Start) -> None:
    daemon = start({"IMPORT_FAILED": "broken-node"})
    daemon.until_ready(1)
    tail = daemon.call("GET", "/api/comfyui/instances/1/logs?tail=20").body.decode()
    assert "(IMPORT FAILED)" in tail
    assert "broken-node" in tail


def test_two_of_the_newer_contract_have_databases_of_their_own(start: Start) -> None:
    daemon = start({"GENERATION": "new"})
    daemon.edit(lambda d: d["instances"][0].update(env={"FAKE_COMFYUI_GENERATION": "new"}))
    daemon.until_ready(0, 1)
    assert all(i["restarts"] < 2 for i in daemon.get("/api/comfyui/status")["instances"])
    locks = sorted((daemon.root / "workspace/data").rglob("*.db.lock"))
    assert len(locks) == 2
    task = submit(daemon)
    daemon.until(lambda: status_of(daemon, task) == "COMPLETED")


def test_a_database_that_a_peer_holds_ends_it_with_the_reason_shown(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "peer.db"
    with open(f"{path}.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        quirks = {"GENERATION": "new", "LOCK_WAIT": "0.3"}
        daemon = start(quirks, extra_args=f"--database-url sqlite:///{path}")
        daemon.until(lambda: daemon.state(1) == "backoff")
        shown = daemon.instance(1)
        assert shown["last_exit"]["code"] == 1
        assert "another process uses it" in shown["last_exit"]["last_lines"][-1]
    daemon.post("/api/comfyui/instances/1/start")
    assert daemon.instance(1)["ready"]


# stopping
def test_one_that_ignores_signals_is_killed_when_its_grace_is_over(start: Start) -> None:
    daemon = start({"IGNORE": "TERM,INT"}, stop_grace_s=1.0)
    daemon.until_ready(0, 1)
    shown, good = daemon.instance(1), daemon.pids()["comfyui/0"]
    began = time.monotonic()
    answer = daemon.post("/api/comfyui/instances/1/stop")
    took = time.monotonic() - began
    assert answer["message"] == "Instance 'odd' stopped"
    assert 1.0 <= took < 2.0
    assert not psutil.pid_exists(shown["pid"])
    assert not listens(shown["port"])
    last = daemon.instance(1)["last_exit"]
    assert (last["signal"], last["asked"]) == ("SIGKILL", True)
    assert daemon.pids() == {"comfyui/0": good}


@pytest.mark.parametrize("how", ["stop", "crash"])
def test_a_forked_child_is_gone_with_its_parent(start: Start, how: str) -> None:
    daemon = start({"FORK": "1"}, stop_grace_s=1.0)
    daemon.until_ready(1)
    parent = daemon.pids()["comfyui/1"]
    (child,) = psutil.Process(parent).children()
    if how == "stop":
        daemon.post("/api/comfyui/instances/1/stop")
        assert daemon.state(1) == "stopped"
    else:
        os.kill(parent, signal.SIGKILL)
        daemon.until(lambda: daemon.pids().get("comfyui/1", parent) != parent, what="another one")
    assert not lives(child)
    assert child.pid not in leftovers(daemon.root)


def test_a_daemon_that_ends_waits_for_the_stubborn_one(start: Start) -> None:
    daemon = start({"IGNORE": "TERM,INT", "FORK": "1"}, stop_grace_s=1.0)
    daemon.until_ready(0, 1)
    began = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - began < 10
    assert leftovers(daemon.root) == []


# running
def test_a_flood_of_output_slows_nothing_down(start: Start, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    daemon = start({"FLOOD_MB": "20", "JOURNAL": str(journal)})
    took: list[float] = []

    def flooded() -> bool:
        began = time.monotonic()
        daemon.get("/api/comfyui/status")
        took.append(time.monotonic() - began)
        return journal.exists() and "flooded" in journal.read_text()

    daemon.until(flooded, 40, "20 MB are written")
    assert max(took) < 0.5
    daemon.until_ready(0, 1)
    tail = daemon.call("GET", "/api/comfyui/instances/1/logs?tail=10000").body
    assert len(tail) <= 1024 * 1024
    assert daemon.instance(1)["restarts"] == 0


def test_a_wedged_one_is_unready_after_three_probes_and_gets_no_tasks(start: Start, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    daemon = start({"JOURNAL": str(journal)})
    daemon.until_ready(0, 1)
    pid = daemon.pids()["comfyui/1"]
    began = time.monotonic()
    wedge(daemon)
    daemon.until(lambda: daemon.state(1) == "unready")
    assert time.monotonic() - began > 0.6, "three probes of 0.3 s, not one"
    assert "no answer on port" in condition(daemon, "not_ready")["message"]
    assert condition(daemon, "not_ready")["reason"] == "unready"
    assert daemon.instance(1)["ready"] is False
    assert daemon.get("/workflows")["workflows"][0]["ready_ports"] == [daemon.instance(0)["port"]]
    tasks = [submit(daemon) for _ in range(4)]
    daemon.until(lambda: all(status_of(daemon, t) == "COMPLETED" for t in tasks))
    assert {daemon.get(f"/tasks/{t}")["instance"] for t in tasks} == {"good"}
    assert not journal.exists()
    assert daemon.pids()["comfyui/1"] == pid


def test_one_that_answers_again_is_ready_again_and_takes_the_waiting_tasks(start: Start) -> None:
    daemon = start({})
    daemon.until_ready(0, 1)
    only_odd(daemon)
    wedge(daemon, 2.5)
    daemon.until(lambda: daemon.state(1) == "unready")
    task = submit(daemon)
    assert status_of(daemon, task) == "PENDING"
    daemon.until_ready(1)
    daemon.until(lambda: status_of(daemon, task) == "COMPLETED")
    assert daemon.instance(1)["restarts"] == 0


@pytest.mark.slow
def test_a_silent_idle_one_is_started_anew_and_waits_the_second_time(start: Start) -> None:
    """Also where only failures are followed by a start: that it ends cleanly when told to is no success."""
    daemon = start({}, probe=SOON, restart={"policy": "on_failure"})
    daemon.until_ready(0, 1)
    good, odd = daemon.pids()["comfyui/0"], daemon.pids()["comfyui/1"]
    wedge(daemon)
    daemon.until(lambda: daemon.pids().get("comfyui/1", odd) != odd, what="another process")
    daemon.until_ready(1)
    shown = daemon.instance(1)
    assert (shown["restarts"], shown["last_exit"]["reason"], shown["last_exit"]["asked"]) == (1, "unresponsive", False)
    assert shown["last_exit"]["text"].startswith("no answer for ")
    assert condition(daemon, "unhealthy") == {}, "it is well again"
    wedge(daemon)
    daemon.until(lambda: daemon.state(1) == "backoff")
    why = condition(daemon, "backoff")
    assert why["reason"] == "unresponsive"
    assert "no answer for " in why["message"]
    assert why["hint"]
    assert why["since"]
    assert "ended 2 times in a row (no answer for" in condition(daemon, "backoff")["message"]
    assert daemon.pids() == {"comfyui/0": good}


@pytest.mark.slow
def test_a_stopped_one_loses_its_prompt_which_runs_once_more_uncharged(start: Start, tmp_path: Path) -> None:
    """SIGSTOP in the middle of a prompt: ten times the silence of an idle one, then the task starts again elsewhere."""
    journal = tmp_path / "journal"
    daemon = start({"JOURNAL": str(journal)}, probe=SOON, stop_grace_s=2)
    daemon.until_ready(0, 1)
    only_odd(daemon)
    task = submit(daemon, sleep(3.0, "stopped"))
    daemon.until(lambda: journal.exists() and "executed" in journal.read_text())
    pid = daemon.pids()["comfyui/1"]
    began = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    daemon.until(lambda: daemon.pids().get("comfyui/1", pid) != pid, 60, "another process")
    assert time.monotonic() - began >= 10 * 0.3
    daemon.until(lambda: status_of(daemon, task) == "COMPLETED", 60)
    done = daemon.get(f"/tasks/{task}")
    assert done["attempts"] == 1
    assert journal.read_text().count('"executed"') == 2
    assert daemon.instance(1)["last_exit"]["text"].startswith("no answer and no progress of its prompt for ")


@pytest.mark.slow
def test_a_prompt_outlives_a_hang_that_an_idle_one_would_not(start: Start, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    patient = {**PROBE, "liveness_period_s": 0.25, "liveness_failures": 4}
    daemon = start({"JOURNAL": str(journal)}, probe=patient)
    daemon.until_ready(0, 1)
    only_odd(daemon)
    task = submit(daemon, sleep(1.0, "patient"))
    daemon.until(lambda: journal.exists() and "executed" in journal.read_text())
    pid = daemon.pids()["comfyui/1"]
    wedge(daemon, 4)
    daemon.until(lambda: daemon.state(1) == "unready")
    daemon.until(lambda: status_of(daemon, task) == "COMPLETED", 40)
    assert daemon.pids()["comfyui/1"] == pid
    assert journal.read_text().count('"executed"') == 1


@pytest.mark.slow
def test_one_failed_probe_in_three_changes_nothing(start: Start, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    daemon = start({"FAIL_PROBE": "3", "JOURNAL": str(journal)}, probe={**SOON, "period_s": 0.05})
    daemon.until_ready(0, 1)
    daemon.until(lambda: journal.exists() and journal.read_text().count("refused") >= 8, 40, "probes failed")
    assert daemon.state(1) == "ready"
    assert daemon.instance(1)["restarts"] == 0
    assert '"to": "unready"' not in daemon.output
    assert "to=unready" not in daemon.output


@pytest.mark.slow
def test_a_prompt_in_a_short_hang_is_not_run_twice(start: Start, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    daemon = start({"JOURNAL": str(journal)})
    daemon.until_ready(0, 1)
    only_odd(daemon)
    task = submit(daemon, sleep(1.0, "hung"))
    daemon.until(lambda: journal.exists() and "executed" in journal.read_text())
    wedge(daemon, 1.5)
    daemon.until(lambda: status_of(daemon, task) == "COMPLETED", 30)
    assert journal.read_text().count('"executed"') == 1
    assert daemon.get(f"/tasks/{task}")["attempts"] == 1
    assert len(list((daemon.root / "workspace/data").rglob("hung_*.png"))) == 1


def test_a_device_error_has_the_instance_started_anew_and_the_task_run_elsewhere(start: Start) -> None:
    daemon = start({"DEVICE_ERROR": "1"})
    daemon.until_ready(0, 1)
    only_odd(daemon)
    first = daemon.pids()["comfyui/1"]
    task = submit(daemon)
    daemon.until(lambda: daemon.pids().get("comfyui/1", first) != first, what="another process")
    daemon.post("/api/comfyui/instances/good/start")
    daemon.until(lambda: status_of(daemon, task) == "COMPLETED", 40)
    done = daemon.get(f"/tasks/{task}")
    assert (done["instance"], done["attempts"]) == ("good", 1)
    last = daemon.instance(1)["last_exit"]
    assert (last["reason"], last["asked"]) == ("device_errors", False)
    assert "illegal memory access" in last["text"]


@pytest.mark.slow
def test_restart_of_a_hung_busy_one_does_not_wait_for_its_prompt(start: Start, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    daemon = start({"JOURNAL": str(journal)})
    daemon.until_ready(0, 1)
    only_odd(daemon)
    submit(daemon, sleep(1.0))
    daemon.until(lambda: journal.exists() and "executed" in journal.read_text())
    wedge(daemon)
    daemon.until(lambda: daemon.state(1) == "unready")
    assert "restarted" in daemon.post("/api/comfyui/instances/1/restart?wait=20")["message"]
