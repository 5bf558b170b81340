"""The daemon as a process on a root of its own, spoken to by plain HTTP as a user's program would."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
COMFYD = Path(sys.executable).with_name("comfyd")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def until(what: str, check: Callable[[], Any], timeout_s: float, period_s: float = 0.2) -> Any:
    """The first truthy answer of `check`; AssertionError that names `what` after timeout_s."""
    deadline = time.monotonic() + timeout_s
    while not (answer := check()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        time.sleep(period_s)
    return answer


class Daemon:
    """`comfyd run --root ROOT` on a free port. Ends only what it started."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = root.parent / "daemon-output.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        lines = (self.root / "build.env").read_text().splitlines()
        build = dict(word.split("=", 1) for line in lines for word in shlex.split(line))
        foreign = ("COMFYD_", "COMFYUI_", "TORCH_", "INDEX_", "XFORMERS_", "DISABLE_", "EXTRA_ARGS")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [COMFYD, "run", "--root", self.root],
                env=kept | build | {"COMFYD_PORT": str(self.port)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        until("the daemon answers /health\n" + self.tail(), self._healthy, 30)

    def _healthy(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the daemon ended with {self.process.returncode}:\n{self.tail()}"
        try:
            return bool(self.get("/health")["status"] == "healthy")
        except OSError:
            return False

    def stop(self, timeout_s: float = 60) -> int:
        """SIGTERM, as a container stop does; the exit code. SIGKILL and AssertionError when it does not end."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the daemon did not end within {timeout_s:g} s:\n{self.tail()}") from None

    def tail(self, path: Path | None = None, lines: int = 40) -> str:
        path = path or self.log
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else f"no {path}"

    def raw(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        data = None if body is None else json.dumps(body).encode()
        headers = {} if data is None else {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def get(self, path: str) -> Any:
        status, body = self.raw("GET", path)
        assert status == 200, f"GET {path}: {status} {body.decode(errors='replace')}"
        return json.loads(body)

    def post(self, path: str, body: Any = None) -> Any:
        status, answer = self.raw("POST", path, body)
        assert status == 200, f"POST {path}: {status} {answer.decode(errors='replace')}"
        return json.loads(answer)

    def instance(self, name: str) -> dict[str, Any]:
        found = [i for i in self.get("/api/comfyui/status")["instances"] if i["name"] == name]
        assert len(found) == 1, found
        return dict(found[0])

    def write_instances(self, *instances: dict[str, Any]) -> None:
        """What an editor does: a new file renamed over the old one."""
        fresh = self.root / "instances.json.new"
        fresh.write_text(json.dumps({"instances": instances, "global_settings": {"startup_delay": 0}}, indent=2))
        fresh.replace(self.root / "instances.json")

    def run_task(self, workflow: str, body: Any, timeout_s: float = 120) -> dict[str, Any]:
        """The task in its terminal state."""
        created = self.post(f"/tasks/create/{workflow}", body)
        assert created["success"] is True
        terminal = {"COMPLETED", "FAILED", "CANCELLED"}

        def ended() -> dict[str, Any] | None:
            task = self.get(f"/tasks/{created['taskId']}")
            task = task.get("task", task)
            return task if task["status"] in terminal else None

        return dict(until(f"task {created['taskId']} ends\n{self.tail()}", ended, timeout_s))


@dataclass
class RealComfyUI:
    """The running instance: the daemon that keeps it and its entry of instances.json."""

    daemon: Daemon
    entry: dict[str, Any]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.entry['port']}"
