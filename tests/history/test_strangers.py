"""The tenth mutant: a stop that believes its pid file signals a stranger. A stop by identity does not."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from comfyd.host import procfs
from comfyd.host.clock import boot_id
from comfyd.host.proc import Identity, adopt
from tests.history import record
from tests.history.checker import check
from tests.history.final import Final
from tests.history.record import Recorder

LAST = signal.SIGRTMIN
"""Our own; delivered after all others that are pending."""
STRANGER = """
import signal, sys, time
def told(number, frame):
    with open(sys.argv[1], "a") as file:
        file.write(f"{number}\\n")
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCONT, signal.SIGHUP, signal.SIGRTMIN):
    signal.signal(number, told)
print("ready", flush=True)
while True:
    time.sleep(60)
"""
Stop = Callable[[Identity, Path], None]


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that got the pid of an instance that is gone; it has a uuid of its own."""
    argv = [sys.executable, "-I", "-c", STRANGER, str(tmp_path / "signals")]
    environ = {**os.environ, "COMFYD_PROCESS_UUID": "f" * 32}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=environ, start_new_session=True) as one:
        assert one.stdout is not None
        assert one.stdout.readline() == b"ready\n"
        yield one
        one.kill()


def stop_by_identity(identity: Identity, pid_file: Path) -> None:
    """As control does."""
    process = adopt(identity, boot_id(), procfs.pid_namespace())
    if process is not None:
        process.send(signal.SIGTERM)
        process.close()


def stop_by_pid_file(identity: Identity, pid_file: Path) -> None:
    os.kill(int(pid_file.read_text()), signal.SIGTERM)


def signals_of(stranger: subprocess.Popen[bytes], told: Path) -> int:
    """How many it got, without our own."""
    stranger.send_signal(LAST)
    deadline = time.monotonic() + 20
    while not told.exists() or str(int(LAST)) not in told.read_text().split():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return len(told.read_text().split()) - 1


@pytest.mark.parametrize("same_start", [False, True])
@pytest.mark.parametrize(("stop", "rules"), [(stop_by_identity, []), (stop_by_pid_file, ["V3"])])
def test_a_kill_by_pid_file_is_caught(
    tmp_path: Path, stranger: subprocess.Popen[bytes], stop: Stop, rules: list[str], same_start: bool
) -> None:
    stat = procfs.read_stat(stranger.pid)
    assert stat is not None
    started = stat.starttime if same_start else stat.starttime - 1
    pid_file = tmp_path / "instance.pid"
    pid_file.write_text(f"{stranger.pid}\n")
    stop(Identity(stranger.pid, started, boot_id(), procfs.pid_namespace(), "a" * 32), pid_file)
    (tmp_path / "history").mkdir()
    recorder = Recorder(tmp_path / "history", "stranger", time.monotonic)
    recorder.invoke("signals", "stranger").answer(count=signals_of(stranger, tmp_path / "signals"))
    assert [violation.rule for violation in check(record.read(tmp_path / "history"), Final())] == rules
