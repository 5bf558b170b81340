"""The README's first minutes, as written: `make demo` in a fresh copy, then its commands in order, with other ports."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import leftovers
from tests.docs.markdown import CHECKOUT, commands
from tests.ports import free_port
from tests.real.png import rgb_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

MADE_BY_MAKE_S = 150
BOTH_READY_S = 60
CONVERGED_S = 30
PORTS = ("3001", "3002", "3012", "8001")


def until(what: str, check: Callable[[], Any], timeout_s: float) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (answer := check()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.1)
    return answer


@dataclass
class Demo:
    """A copy of the checkout in which `make demo` runs. `moved`: port of the README -> port of this test."""

    folder: Path
    moved: dict[str, str]
    process: subprocess.Popen[bytes]
    log: Path

    def written(self, command: str) -> str:
        for port, other in self.moved.items():
            command = command.replace(port, other)
        return command

    def sh(self, command: str) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("COMFYD_")}
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.written(command)],
            cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            timeout=60,
        )  # fmt: skip

    def instance(self, name: str) -> dict[str, Any]:
        told = self.sh(".venv/bin/comfyd status --json --root examples/quickstart")
        assert self.process.poll() is None, self.log.read_text()
        shown = json.loads(told.stdout)["instances"] if told.returncode in {0, 3} else []
        not_yet = {"state": "unknown", "ready": False, "port": None, "pid": None}
        return next((i for i in shown if i["name"] == name), not_yet)

    def ready(self, name: str) -> bool:
        return bool(self.instance(name)["ready"])


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    folder = tmp_path / "fresh-copy"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=CHECKOUT, capture_output=True,
        check=True,
    )  # fmt: skip
    moved = {port: str(free_port()) for port in PORTS}
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (CHECKOUT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, folder / name)
    for name in ("instances.json", "config/environments/comm/config.json"):
        path = folder / "examples/quickstart" / name
        text = path.read_text()
        for port, other in moved.items():
            text = text.replace(port, other)
        path.write_text(text)
    log = tmp_path / "demo.log"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("COMFYD_", "VIRTUAL_ENV", "MAKE"))}
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["make", "demo"], cwd=folder, env=environment | {"COMFYD_PORT": moved["8001"]},
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    yield Demo(folder, moved, process, log)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def test_the_readme_does_what_it_says(demo: Demo) -> None:
    until("make demo made .venv", (demo.folder / ".venv/.ready-run").exists, MADE_BY_MAKE_S)
    until("the first is ready", lambda: demo.ready("comfyui-main"), BOTH_READY_S)
    until("the second is ready", lambda: demo.ready("comfyui-backup"), BOTH_READY_S)
    first = demo.instance("comfyui-main")["pid"]
    lines = [c for c in commands((demo.folder / "README.md").read_text()) if not c.startswith("make ")]
    assert len(lines) > 10

    for line in lines:
        ran = demo.sh(line)
        allowed = {0, 3} if "comfyd status" in line else {0}
        assert ran.returncode in allowed, f"{line}\n{ran.stdout}{ran.stderr}\n{demo.log.read_text()}"
        check_the_world(demo, line, ran)
        assert demo.instance("comfyui-main")["pid"] == first, f"the first instance moved at: {line}"

    ends_by_ctrl_c(demo, first)


def check_the_world(demo: Demo, line: str, ran: subprocess.CompletedProcess[str]) -> None:
    if "3012" in line:
        until("the second moved", lambda: str(demo.instance("comfyui-backup")["port"]) == demo.moved["3012"], 10)
        until("the second is ready again", lambda: demo.ready("comfyui-backup"), CONVERGED_S)
    elif '"enabled": false' in line:
        until("the second ended", lambda: demo.instance("comfyui-backup")["state"] == "stopped", CONVERGED_S)
    elif "task submit" in line:
        (picture,) = (demo.folder / "pictures").glob("*.png")
        (red, _, blue) = rgb_rows(picture.read_bytes())[0][0]
        assert red > blue, "orange, not blue"
    elif """"enabeld"/'""" in line:
        told = demo.sh(".venv/bin/comfyd validate --root examples/quickstart")
        assert told.returncode == 78
        assert "enabeld" in told.stdout + told.stderr
    elif line.startswith("curl"):
        assert json.loads(ran.stdout), ran.stdout


def ends_by_ctrl_c(demo: Demo, first: int) -> None:
    os.killpg(demo.process.pid, signal.SIGINT)
    demo.process.wait(30)
    assert not Path(f"/proc/{first}").exists()
    assert leftovers(demo.folder) == []
