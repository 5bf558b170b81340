"""The stand-in for ComfyUI as a test double: spawn it, wait for its port, end it. The file is the quickstart's."""

import asyncio
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.ports import free_port

FAKE_COMFYUI = Path(__file__).parents[1] / "examples/quickstart/build/comm/comfyui/main.py"


@dataclass
class Fake:
    """One running stand-in. folder holds output/, input/, user/ and instance/temp/ and the log."""

    process: subprocess.Popen[bytes]
    port: int
    folder: Path
    environ: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def output(self) -> Path:
        return self.folder / "output"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/prompt", timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def wait_ready(self, timeout_s: float = 20) -> "Fake":
        deadline = time.monotonic() + timeout_s
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the stand-in does not answer (exit {self.process.poll()}):\n{self.log}")
            time.sleep(0.02)
        return self

    def kill(self) -> None:
        """SIGKILL to its group; returns when it is gone."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


def spawn(folder: Path, *extra: str, port: int = 0, **environ: str) -> Fake:
    """Start a stand-in whose folders lie below `folder`; environ: FAKE_COMFYUI_* without the prefix."""
    port = port or free_port()
    for name in ("output", "input", "user", "instance"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-I", str(FAKE_COMFYUI), "--listen", "127.0.0.1", "--port", str(port), "--cpu"]
    for name, place in (("output", "output"), ("input", "input"), ("user", "user"), ("temp", "instance")):
        argv += [f"--{name}-directory", str(folder / place)]
    env = {**os.environ, **{f"FAKE_COMFYUI_{k}": v for k, v in environ.items()}}
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [*argv, *extra], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True
        )
    return Fake(process, port, folder, environ)


@contextmanager
def running(folder: Path, *extra: str, **environ: str) -> Iterator[Fake]:
    """A ready stand-in, gone afterwards."""
    fake = spawn(folder, *extra, **environ)
    try:
        yield fake.wait_ready()
    finally:
        fake.kill()


async def eventually(condition: object, timeout_s: float = 15, what: str = "condition") -> None:
    """Wait until `condition()` (a plain or async callable) is true, or fail with its name."""
    assert callable(condition)
    deadline = time.monotonic() + timeout_s
    while True:
        result = condition()
        if asyncio.iscoroutine(result):
            result = await result
        if result:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {timeout_s} s")
        await asyncio.sleep(0.01)
