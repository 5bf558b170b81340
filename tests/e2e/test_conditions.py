"""Why something is not ready, as a user sees it: status, API and doctor of a real daemon agree."""

import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Daemon, make_root
from tests.ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
SLOW_S = 90.0


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """Ids: 0 fine, 1 a bad argument (tried once), 2 exits, 3 its port is taken, 4 disabled, 5 no environment."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        fields: list[dict[str, Any]] = [
            {}, {"extra_args": "--lowvrm", "restart": {"policy": "never"}},
            {"env": {"FAKE_COMFYUI_EXIT": "3", "MY_TOKEN": "plant-instance"}},
            {"port": taken.getsockname()[1]}, {"enabled": False}, {"environment": "nowhere"},
        ]  # fmt: skip
        names = ("fine", "typo", "exits", "taken", "off", "lost")
        instances = [
            {"id": n, "port": free_port(), "name": name, **more}
            for n, (name, more) in enumerate(zip(names, fields, strict=True))
        ]
        one = Daemon(make_root(tmp_path / "root", instances), HF_TOKEN="plant-environment")
        try:
            yield one.start(60)
        finally:
            one.end_everything()


def reasons(daemon: Daemon, number: int) -> dict[str, dict[str, Any]]:
    return {f"{c['type']}/{c['reason']}": c for c in daemon.instance(number)["conditions"]}


def program(daemon: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("COMFYD_")}
    command = [sys.executable, "-m", "comfyd", *words, "--root", str(daemon.root)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_status_doctor_and_api_say_why_and_what_to_do(daemon: Daemon, tmp_path: Path) -> None:
    daemon.until_ready(0, timeout_s=SLOW_S)
    daemon.until(lambda: "failed/ended" in reasons(daemon, 1), SLOW_S)
    daemon.until(lambda: "told to exit with 3" in str(reasons(daemon, 2).get("backoff/crashed")), SLOW_S)

    typo = reasons(daemon, 1)
    assert "--lowvrm" in typo["bad_arguments/exit_2"]["message"]
    assert typo["argument_warning/unknown_flag"]["hint"] == "did you mean --lowvram?"
    assert f"process {os.getpid()} (" in reasons(daemon, 3)["blocked/port_in_use"]["message"]
    assert "stopped/disabled" in reasons(daemon, 4)
    assert "held/environment_unknown" in reasons(daemon, 5)
    for number in range(1, 6):
        assert all(c["hint"] and c["since"] for c in daemon.instance(number)["conditions"])

    before = {n: reasons(daemon, n) for n in (1, 3, 4, 5)}
    daemon.post("/api/comfyui/reload")
    daemon.post("/api/comfyui/reload")
    assert {n: reasons(daemon, n) for n in (1, 3, 4, 5)} == before, "a cause that lasts keeps its instant"
    warning = daemon.get("/api/comfyui/plan")["warnings"]["comfyui/1"][0]
    assert warning["since"] == typo["argument_warning/unknown_flag"]["since"]

    status = program(daemon, "status")
    assert status.returncode == 3
    assert "taken: blocked/port_in_use for " in status.stdout
    alone = program(daemon, "status", "exits")
    assert "  | the stand-in was told to exit with 3" in alone.stdout

    file = tmp_path / "report.tar.gz"
    doctor = program(daemon, "doctor", "--json", "--bundle", str(file))
    assert doctor.returncode == 1, doctor.stdout + doctor.stderr
    told = [(f["name"], f["subject"], f["level"]) for f in json.loads(doctor.stdout)["findings"]]
    for name, level in (("fine", "ok"), ("typo", "error"), ("off", "ok"), ("taken", "error"), ("lost", "error")):
        assert ("instance", name, level) in told
    assert ("venv", "comm", "ok") in told
    with tarfile.open(file) as archive:
        texts = {m.name: archive.extractfile(m) for m in archive.getmembers()}
        held = {name for name, data in texts.items() if data is not None and b"plant-" in data.read()}
    assert held == set()
    assert "comfyd-report/logs/comfyui_instance_2.log" in texts


def test_a_kill_by_hand_names_its_signal_and_doctor_of_a_dead_daemon_what_runs_on(daemon: Daemon) -> None:
    daemon.until_ready(0, timeout_s=SLOW_S)
    first = daemon.pids()["comfyui/0"]
    os.kill(first, signal.SIGKILL)
    daemon.until(lambda: daemon.pids().get("comfyui/0", first) != first, SLOW_S, "it runs again")
    assert daemon.instance(0)["last_exit"]["text"] == "killed by SIGKILL"
    daemon.until_ready(0, timeout_s=SLOW_S)
    pid = daemon.pids()["comfyui/0"]
    daemon.kill()
    findings = json.loads(program(daemon, "doctor", "--json").stdout)["findings"]
    told = {f["name"]: f for f in findings if f["name"] in ("daemon", "process")}
    assert "no daemon runs" in told["daemon"]["message"]
    assert f"comfyui/0 (pid {pid})" in told["process"]["message"]
