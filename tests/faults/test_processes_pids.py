"""In a pid namespace of its own: recycled pids, and the daemon as PID 1."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import make_root
from tests.faults.processes import OWN_PIDS, First, Patient, lives, need_pid_namespaces, only_child, outer

pytestmark = [pytest.mark.ns, pytest.mark.slow, pytest.mark.timeout(300)]

RECYCLED = """
import os, signal, sys
wanted, code, folder, *argv = sys.argv[1:]
for _ in range(50):
    open("/proc/sys/kernel/ns_last_pid", "w").write(str(int(wanted) - 1))
    if (child := os.fork()) == 0:
        if os.getpid() != int(wanted):
            os._exit(1)
        os.chdir(folder)
        os.execv(sys.executable, [*argv[:1], "-c", code, *argv[1:]])
    if child == int(wanted):
        break
    os.waitpid(child, 0)
print(child, flush=True)
os.waitpid(child, 0)
"""
DECOY = """
import os, signal, time
def told(number, frame):
    with open("signals", "a") as file:
        file.write(f"{number}\\n")
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
    signal.signal(number, told)
os.rename("starting", "ready")
while True:
    time.sleep(60)
"""


@pytest.fixture
def namespace() -> Iterator[int]:
    """Our pid of a process that is PID 1 of a fresh pid namespace and reaps."""
    need_pid_namespaces()
    code = "import os, time\nprint(flush=True)\nwhile True:\n try: os.wait()\n except OSError: time.sleep(0.02)"
    holder = subprocess.Popen([*OWN_PIDS, sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"\n"
    yield only_child(holder.pid)
    holder.kill()
    holder.wait(10)
    holder.stdout.close()


def inside(namespace: int) -> list[str]:
    return ["nsenter", f"--target={namespace}", "--pid", "--mount"]


class Guest(Patient):
    """A daemon that runs in a pid namespace of somebody else."""

    def __init__(self, root: Path, namespace: int) -> None:
        super().__init__(root)
        self.prefix = inside(namespace)

    def signal(self, number: int) -> None:
        """nsenter waits for it, and ends as it does."""
        assert self.process is not None
        os.kill(only_child(self.process.pid), number)


def test_a_recycled_pid_gets_no_signal_and_its_record_is_dropped(namespace: int, tmp_path: Path) -> None:
    daemon = Guest(make_root(tmp_path / "root"), namespace)
    decoy: subprocess.Popen[bytes] | None = None
    try:
        daemon.start().until_ready(0, 1)
        before = daemon.pids()
        victim = before["comfyui/0"]
        ours = outer(victim, namespace)
        argv = Path(f"/proc/{ours}/cmdline").read_bytes().decode().split("\0")[:-1]
        daemon.kill()
        os.kill(ours, signal.SIGKILL)
        daemon.until(lambda: not os.path.exists(f"/proc/{ours}"), what="its pid is free")

        folder = tmp_path / "decoy"
        folder.mkdir()
        (folder / "starting").touch()
        decoy = subprocess.Popen(
            [*inside(namespace), sys.executable, "-c", RECYCLED, str(victim), DECOY, str(folder), *argv],
            stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert decoy.stdout is not None
        assert int(decoy.stdout.readline()) == victim, "the pid is in use again"
        daemon.until((folder / "ready").exists, what="the decoy listens for signals")
        stranger = outer(victim, namespace)

        daemon.start().until_ready(0, 1)
        assert daemon.pids()["comfyui/1"] == before["comfyui/1"]
        assert daemon.pids()["comfyui/0"] != victim
        assert daemon.instance(0)["last_exit"]["text"] == "ended while no daemon was watching"
        daemon.post("/api/comfyui/instances/0/restart")
        assert daemon.stop() == 0
        assert lives(stranger)
        assert not (folder / "signals").exists()
        os.kill(stranger, signal.SIGUSR1)
        daemon.until((folder / "signals").exists, what="it does tell of signals")
    finally:
        daemon.end_everything()
        if decoy is not None:
            assert decoy.stdout is not None
            decoy.stdout.close()
            decoy.kill()
            decoy.wait(10)


def holds_back(pid: int, number: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.split("SigBlk:")[1].split()[0], 16) >> (number - 1) & 1)


@pytest.mark.parametrize("pause_s", [0.0, 0.1, 0.4])
def test_as_pid_1_a_sigterm_during_the_imports_is_heeded(tmp_path: Path, pause_s: float) -> None:
    """The kernel drops what PID 1 has no handler for; so it is held back until there is one."""
    need_pid_namespaces()
    daemon = First(make_root(tmp_path / "root", []))
    try:
        daemon.start(wait=False)
        daemon.until(lambda: holds_back(daemon.pid, signal.SIGTERM), what="signals are held back")
        time.sleep(pause_s)
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0, daemon.output[-3000:]
    finally:
        daemon.end_everything()


def test_as_pid_1_it_upgrades_in_place_and_ends_with_0(tmp_path: Path) -> None:
    need_pid_namespaces()
    daemon = First(make_root(tmp_path / "root"))
    try:
        daemon.start().until_ready(0, 1)
        before, pid = daemon.pids(), daemon.pid
        daemon.signal(signal.SIGUSR2)
        daemon.until(lambda: daemon.output.count("comfyd starts") == 2, what="upgraded")
        daemon.until_ready(0, 1)
        assert (daemon.pids(), daemon.pid) == (before, pid)
        os.kill(outer(before["comfyui/0"], pid), signal.SIGKILL)
        daemon.until(lambda: daemon.pids().get("comfyui/0") not in (None, before["comfyui/0"]), what="replaced")
        assert daemon.instance(0)["last_exit"]["signal"] == "SIGKILL", "still its child"
        assert daemon.stop() == 0
    finally:
        daemon.end_everything()
