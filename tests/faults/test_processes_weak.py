"""A kernel or sandbox without pidfds: identity is weaker and said to be, everything else is as ever."""

import errno
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import Daemon, leftovers, make_root
from tests.faults.processes import Patient, lives, missing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PIDFD_OPEN, PIDFD_SEND_SIGNAL = 434, 424
"""The same on every architecture."""
REFUSING = str(Path(__file__).with_name("refusing.py"))


def refusing(numbers: tuple[int, ...], error: int) -> list[str]:
    return [sys.executable, REFUSING, ",".join(map(str, numbers)), str(error)]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    one = Patient(make_root(tmp_path / "root"))
    yield one
    one.end_everything()


def need_seccomp() -> None:
    check = "import errno, os\ntry: os.pidfd_open(os.getpid())\nexcept OSError as e: raise SystemExit(e.errno)"
    argv = [*refusing((PIDFD_OPEN,), errno.ENOSYS), sys.executable, "-c", check]
    if os.spawnv(os.P_WAIT, argv[0], argv) != errno.ENOSYS:
        missing("no seccomp filters")


@pytest.mark.parametrize(
    ("numbers", "error", "shown"),
    [
        ((PIDFD_OPEN, PIDFD_SEND_SIGNAL), errno.ENOSYS, "weak"),
        ((PIDFD_SEND_SIGNAL,), errno.EPERM, "strong"),
    ],
)
def test_without_pidfds_everything_still_works(
    daemon: Daemon, numbers: tuple[int, ...], error: int, shown: str
) -> None:
    need_seccomp()
    daemon.prefix = refusing(numbers, error)
    daemon.start().until_ready(0, 1)
    assert {daemon.instance(n)["identity"] for n in (0, 1)} == {shown}
    before = daemon.pids()

    os.kill(before["comfyui/0"], signal.SIGKILL)
    daemon.until(lambda: daemon.pids().get("comfyui/0") not in (None, before["comfyui/0"]), what="the exit is noticed")
    assert daemon.instance(0)["last_exit"]["signal"] == "SIGKILL"
    daemon.until_ready(0)
    before = daemon.pids()
    daemon.kill()
    assert sorted(leftovers(daemon.root)) == sorted(before.values())

    daemon.start()
    daemon.until_ready(0, 1, timeout_s=20)
    assert daemon.pids() == before
    assert all(daemon.instance(n)["adopted"] and daemon.instance(n)["identity"] == shown for n in (0, 1))
    daemon.post("/api/comfyui/instances/1/stop")
    assert not lives(before["comfyui/1"])
    assert daemon.instance(1)["last_exit"]["asked"]
    os.kill(before["comfyui/0"], signal.SIGKILL)
    daemon.until(lambda: daemon.pids().get("comfyui/0") not in (None, before["comfyui/0"]), what="its end is noticed")
    last = daemon.instance(0)["last_exit"]
    assert (last["code"], last["signal"], last["text"]) == (None, None, "exit code unknown")
    began = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - began < 25
    assert leftovers(daemon.root) == []
