"""A container without an engine: the image's root in namespaces of its own, its entrypoint as PID 1, a volume for
/workspace. Like `docker run`, `docker exec`, `docker stop` and `docker kill`."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.daemon import Answer

INSIDE = Path(__file__).with_name("inside.py")
NAMESPACES = ("--pid", "--mount", "--net", "--uts", "--ipc")


class ContainerEnded(RuntimeError):
    """PID 1 is gone although the test waits for something inside."""


@dataclass(frozen=True, slots=True)
class Image:
    """An unpacked image. rootfs: its files, never written to; config: as `docker inspect` shows it."""

    rootfs: Path
    config: Mapping[str, Any]

    @property
    def environ(self) -> dict[str, str]:
        return dict(entry.split("=", 1) for entry in self.config["Env"])


class Container:
    """One `docker run`; may be started again on the same volumes, with a fresh layer. `folder` must be empty."""

    def __init__(
        self, image: Image, folder: Path, volumes: Mapping[str, Path], environ: Mapping[str, str] | None = None
    ) -> None:
        self.image = image
        self.folder = folder
        self.volumes = dict(volumes)
        self.environ = {**image.environ, "HOME": "/root", **(environ or {})}
        self.unshare: subprocess.Popen[bytes] | None = None
        self.pid = 0

    @property
    def output(self) -> str:
        """All that PID 1 and what it started printed, over all starts."""
        return (self.folder / "output").read_text(errors="replace")

    def start(self, *command: str) -> "Container":
        """command: as after the image's name; empty = the image's own. Returns once PID 1 is the entrypoint."""
        (self.folder / "scratch").mkdir(parents=True, exist_ok=True)
        config = self.image.config
        spec = {
            "rootfs": str(self.image.rootfs),
            "scratch": str(self.folder / "scratch"),
            "volumes": {inside: str(outside) for inside, outside in self.volumes.items()},
            "argv": [*config["Entrypoint"], *(command or config["Cmd"])],
            "environ": self.environ,
            "workdir": config["WorkingDir"],
        }
        (self.folder / "spec.json").write_text(json.dumps(spec))
        with (self.folder / "output").open("ab") as out:
            self.unshare = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL",
                 "unshare", *NAMESPACES, "--propagation", "private", "--fork", "--kill-child=SIGKILL",
                 sys.executable, "-I", str(INSIDE), str(self.folder / "spec.json")],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/",
            )  # fmt: skip
        self.until(self._is_laid_out, 20, "the entrypoint")
        return self

    def _is_laid_out(self) -> bool:
        assert self.unshare is not None
        below = Path(f"/proc/{self.unshare.pid}/task/{self.unshare.pid}/children").read_text().split()
        if not below:
            return False
        self.pid = int(below[0])
        return Path(f"/proc/{self.pid}/comm").read_text().strip() == Path(self.image.config["Entrypoint"][0]).name

    def exec(self, *argv: str, stdin: bytes = b"", timeout: float = 30) -> subprocess.CompletedProcess[bytes]:
        """Like `docker exec`: not a login shell, the image's variables and folder."""
        given = [f"{name}={value}" for name, value in self.environ.items()]
        return subprocess.run(
            ["nsenter", f"--target={self.pid}", *NAMESPACES, "--root",
             "/usr/bin/env", "-i", f"--chdir={self.image.config['WorkingDir']}", *given, *argv],
            input=stdin, capture_output=True, timeout=timeout, check=False,
        )  # fmt: skip

    def text(self, *argv: str) -> str:
        """What a command that must succeed prints."""
        done = self.exec(*argv)
        assert done.returncode == 0, (argv, done.returncode, done.stdout, done.stderr)
        return done.stdout.decode()

    def call(self, method: str, path: str, body: Any = None) -> Answer:
        """One request to the API by the image's own curl. Raises OSError while nobody answers."""
        sent = [] if body is None else ["--header", "Content-Type: application/json", "--data-binary", "@-"]
        done = self.exec(
            "curl", "--silent", "--show-error", "--request", method, "--write-out", "\n%{http_code}", *sent,
            f"http://127.0.0.1:8001{path}", stdin=b"" if body is None else json.dumps(body).encode(),
        )  # fmt: skip
        if done.returncode != 0:
            raise ConnectionError(done.stderr.decode())
        answer, _, status = done.stdout.rpartition(b"\n")
        return Answer(int(status), answer)

    def get(self, path: str) -> Any:
        answer = self.call("GET", path)
        assert answer.status == 200, (path, answer.status, answer.body)
        return answer.json

    def post(self, path: str, body: Any = None) -> Any:
        answer = self.call("POST", path, body)
        assert answer.status == 200, (path, answer.status, answer.body)
        return answer.json

    def answers(self) -> bool:
        return self.call("GET", "/health").status == 200

    def states(self) -> dict[str, str]:
        return {i["name"]: i["state"] for i in self.get("/api/comfyui/status")["instances"]}

    def commands(self) -> list[str]:
        """The command line of every process inside, but for the one that asks."""
        listed = self.text("ps", "-e", "--no-headers", "-o", "args").splitlines()
        return [line.strip() for line in listed if not line.strip().startswith("ps -e")]

    def until(self, condition: Callable[[], Any], timeout_s: float = 20, what: str = "condition") -> None:
        """Poll a fact with a deadline; a failure shows the end of the output."""
        deadline = time.monotonic() + timeout_s
        while True:
            with suppress(AssertionError, OSError):
                if condition():
                    return
            if self.unshare is not None and self.unshare.poll() is not None:
                raise ContainerEnded(f"ended with {self.unshare.returncode}, waiting for {what}\n{self.output[-6000:]}")
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} did not come true in {timeout_s} s\n{self.output[-6000:]}")
            time.sleep(0.05)

    def stop(self, timeout_s: float = 60) -> int:
        """The image's stop signal to PID 1, then wait. Returns the exit code of the container."""
        assert self.unshare is not None
        os.kill(self.pid, signal.Signals[self.image.config["StopSignal"]])
        return self.unshare.wait(timeout_s)

    def kill(self) -> None:
        """Everything inside ends at once, as when the machine's power goes."""
        if self.unshare is not None and self.unshare.poll() is None:
            os.kill(self.pid or self.unshare.pid, signal.SIGKILL)
            self.unshare.wait(30)
