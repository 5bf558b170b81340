"""The daemon as a real process in a temporary root: start it, ask it, end it. Used by every tier above the rooms."""

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.ports import free_port

REPOSITORY = Path(__file__).parents[1]
QUICKSTART = REPOSITORY / "examples/quickstart"
BYTECODE = REPOSITORY / ".cache/bytecode"
DROPPED = ("COMFYD_", "COMFYUI_", "PYTHONDONTWRITEBYTECODE")
"""Without bytecode every start of a daemon compiles all that it imports, which costs more than all else it does."""


class DaemonEnded(RuntimeError):
    """The daemon ended although the test waits for it."""


class Answer:
    """status and parsed body of one call."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Daemon:
    """One `comfyd run`. environ: added variables. The root outlives restarts."""

    def __init__(self, root: Path, **environ: str) -> None:
        self.root = root
        self.port = free_port()
        self.environ = dict(environ)
        self.prefix: list[str] = []
        """A program with arguments that executes the daemon in surroundings of its own."""
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def output(self) -> str:
        return self.out.read_text(errors="replace")

    @property
    def out(self) -> Path:
        """Beside the root, never in it: what the daemon prints must not look like an edit."""
        return self.root.with_name(f"{self.root.name}.out")

    def start(self, timeout_s: float = 20, wait: bool = True) -> "Daemon":
        kept = {k: v for k, v in os.environ.items() if not k.startswith(DROPPED)}
        kept |= {"PYTHONUNBUFFERED": "1", "PYTHONPYCACHEPREFIX": str(BYTECODE)}
        env = {**kept, "COMFYD_PORT": str(self.port), **self.environ}
        with self.out.open("ab") as out:
            self.process = subprocess.Popen(
                [*self.prefix, sys.executable, "-m", "comfyd", "run", "--root", str(self.root)],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, cwd="/",
            )  # fmt: skip
        if wait:
            self.until(lambda: self._answers(), timeout_s, "the API answers")
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise DaemonEnded(f"the daemon ended with {self.process.returncode}:\n{self.output[-6000:]}")
        with suppress(OSError, urllib.error.URLError):
            return self.call("GET", "/health").status == 200
        return False

    def call(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, timeout: float = 60
    ) -> Answer:
        data = body if isinstance(body, bytes) else (None if body is None else json.dumps(body).encode())
        given = {"Content-Type": "application/json"} if data is not None else {}
        url = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(url, data, {**given, **(headers or {})}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return Answer(answer.status, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.read())

    def get(self, path: str) -> Any:
        answer = self.call("GET", path)
        assert answer.status == 200, (path, answer.status, answer.body)
        return answer.json

    def post(self, path: str, body: Any = None, status: int = 200) -> Any:
        answer = self.call("POST", path, body)
        assert answer.status == status, (path, answer.status, answer.body)
        return answer.json

    def instance(self, wanted: int | str) -> dict[str, Any]:
        found = [i for i in self.get("/api/comfyui/status")["instances"] if wanted in (i["id"], i["name"], i["key"])]
        assert found, f"no instance {wanted}"
        return dict(found[0])

    def pids(self) -> dict[str, int]:
        """key -> pid of everything alive."""
        return {i["key"]: i["pid"] for i in self.get("/api/comfyui/status")["instances"] if i["pid"]}

    def state(self, wanted: int | str) -> str:
        return str(self.instance(wanted)["state"])

    def until_ready(self, *wanted: int | str, timeout_s: float = 60) -> None:
        self.until(lambda: all(self.instance(w)["ready"] for w in wanted), timeout_s, f"{wanted} ready")

    def until(self, condition: Callable[[], Any], timeout_s: float = 20, what: str = "condition") -> None:
        """Poll a fact with a deadline; a failure shows the end of the daemon's output and its status."""
        deadline = time.monotonic() + timeout_s
        while True:
            with suppress(AssertionError, OSError, http.client.HTTPException):
                if condition():
                    return
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} did not come true in {timeout_s} s\n{self.output[-6000:]}")
            time.sleep(0.02)

    def edit(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Read instances.json, change it, write it back in place."""
        path = self.root / "instances.json"
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data, indent=1))

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 30) -> int:
        assert self.process is not None
        return self.process.wait(timeout_s)

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()

    def end_everything(self) -> None:
        """Stop the daemon; then end, by uuid of their owner, whatever it left (a test that failed midway)."""
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGTERM)
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                self.kill()
        for pid in leftovers(self.root):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def leftovers(root: Path) -> list[int]:
    """Processes that a daemon on `root` started and that still live."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with suppress(OSError):
            raw = Path(f"/proc/{entry}/environ").read_bytes()
            if b"COMFYD_PROCESS_UUID=" not in raw:
                continue
            cwd = os.readlink(f"/proc/{entry}/cwd")
            if cwd.startswith(str(root)):
                found.append(int(entry))
    return found


def make_root(folder: Path, instances: list[dict[str, Any]] | None = None, **top: Any) -> Path:
    """A root with the quickstart's environment and the given instances (default: two on free ports).

    Its build script makes a venv of links only, so that an install takes a tenth of a second.
    """
    shutil.copytree(QUICKSTART, folder, ignore=shutil.ignore_patterns("workspace"), dirs_exist_ok=True)
    if instances is None:
        names = ("comfyui-main", "comfyui-backup")
        instances = [{"id": n, "port": free_port(), "name": name} for n, name in enumerate(names)]
    write_quick_install(folder / "build/comm")
    (folder / "instances.json").write_text(json.dumps({"instances": instances, **top}, indent=1))
    return folder


def write_quick_install(build: Path, body: str = "") -> None:
    """An install.sh in the usual style: copies the stand-in to /ComfyUI and makes a venv of links."""
    build.mkdir(parents=True, exist_ok=True)
    if not (build / "comfyui").exists():
        shutil.copytree(QUICKSTART / "build/comm/comfyui", build / "comfyui")
    script = build / "install.sh"
    script.write_text(
        "#!/usr/bin/env bash\nset -euo pipefail\n"
        'here="$(cd "$(dirname "$0")" && pwd)"\n'
        "mkdir -p /ComfyUI/venv/bin /ComfyUI/custom_nodes /ComfyUI/models\n"
        'cp "$here/comfyui/main.py" /ComfyUI/main.py\n'
        f"ln -s {os.path.realpath(sys.executable)} /ComfyUI/venv/bin/python\n"
        f"touch /ComfyUI/venv/bin/activate\n{body}\n"
    )
    script.chmod(0o755)


def add_environment(root: Path, name: str, body: str = "", **config: Any) -> None:
    """Another environment of stand-ins; body: more lines for its install.sh."""
    folder = root / "config/environments" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"name": name, **config}))
    write_quick_install(root / "build" / name, body)


@contextmanager
def running_daemon(root: Path, **environ: str) -> Iterator[Daemon]:
    daemon = Daemon(root, **environ)
    try:
        yield daemon.start()
    finally:
        daemon.end_everything()
