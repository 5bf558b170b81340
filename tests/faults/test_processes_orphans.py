"""The daemon as PID 1 without an init, and as subreaper: orphans are collected, escapees ended, exit codes right."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from tests.daemon import Daemon
from tests.faults.processes import (
    First,
    Patient,
    add_service,
    daemon_on,
    entry,
    lives,
    look,
    marked,
    need_pid_namespaces,
    outer,
    zombies_of,
)

pytestmark = [pytest.mark.ns, pytest.mark.slow, pytest.mark.timeout(300)]

OLDEST_S = 2.0

ORPHANS = """
import os, sys, time
for number in range(1000):
    child = os.fork()
    if child == 0:
        if os.fork() == 0:
            os.close(1)
            os.setsid()
            os._exit(number % 256)
        os._exit(0)
    os.waitpid(child, 0)
print("all forked", flush=True)
time.sleep(600)
"""
CODES = "import sys, time; time.sleep(0.3); sys.exit(10 + int(sys.argv[1]))"

ESCAPE = """
import os, subprocess, sys, time
SLEEP = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
def sleeper(kind, twice=False, **more):
    argv = [sys.executable, "-c", SLEEP, "MARK-" + kind]
    if not twice:
        subprocess.Popen(argv, env={}, cwd="/", start_new_session=True, **more)
        return
    if (child := os.fork()) == 0:
        os.setsid()
        subprocess.Popen(argv, env={}, cwd="/", start_new_session=True, **more)
        os._exit(0)
    os.waitpid(child, 0)
quiet = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
sleeper("once", **quiet)
sleeper("twice-with-log", twice=True)
sleeper("twice", twice=True, **quiet)
time.sleep(600)
"""


@pytest.fixture(params=["pid 1", "subreaper"])
def kind(request: pytest.FixtureRequest) -> type[Daemon]:
    if request.param == "pid 1":
        need_pid_namespaces()
    return First if request.param == "pid 1" else Patient


def own_pid(daemon: Daemon) -> int:
    assert daemon.process is not None
    return daemon.pid if isinstance(daemon, First) else daemon.process.pid


def oldest_zombie_s(daemon: Daemon, done: Callable[[], bool], timeout_s: float) -> float:
    """Watch until `done` and no zombie is left; how long any one of them was seen."""
    since: dict[int, float] = {}
    oldest, end = 0.0, time.monotonic() + timeout_s
    while time.monotonic() < end:
        now, dead = time.monotonic(), zombies_of(own_pid(daemon))
        since = {pid: since.get(pid, now) for pid in dead}
        oldest = max([oldest, *(now - begun for begun in since.values())])
        if not dead and done():
            return oldest
        time.sleep(0.02)
    raise AssertionError(f"{len(since)} zombies left after {timeout_s} s: {daemon.output[-3000:]}")


def test_a_thousand_orphans_are_collected_and_exit_codes_are_those_of_the_children(
    kind: type[Daemon], tmp_path: Path
) -> None:
    instances = [entry(0, "orphans"), *(entry(number, "codes") for number in range(1, 9))]
    with daemon_on(tmp_path, instances, kind) as daemon:
        add_service(daemon.root, "orphans", ORPHANS)
        add_service(daemon.root, "codes", CODES)
        daemon.start()
        daemon.until(lambda: daemon.instance(0)["ready"], 40, "the orphans are begotten")
        forked = lambda: "all forked" in Path(daemon.instance(0)["log"]).read_text()  # noqa: E731
        assert oldest_zombie_s(daemon, forked, 60) < OLDEST_S
        daemon.until(lambda: all(daemon.state(n) == "backoff" for n in range(1, 9)), 40, "two exits each")
        shown = {n: daemon.instance(n)["last_exit"] for n in range(1, 9)}
        assert {n: one["code"] for n, one in shown.items()} == {n: 10 + n for n in range(1, 9)}
        daemon.post("/api/comfyui/instances/0/stop")
        assert daemon.instance(0)["last_exit"]["signal"] == "SIGTERM"
        assert daemon.stop() == 0


@pytest.mark.parametrize("how", ["stop", "crash"])
def test_nothing_escapes_by_casting_off_session_parent_and_environment(
    kind: type[Daemon], how: str, tmp_path: Path
) -> None:
    mark = uuid4().hex
    kinds = ("once", "twice-with-log", "twice")
    with daemon_on(tmp_path, [entry(0), entry(1, "escape", stop_grace_s=1.0)], kind) as daemon:
        add_service(daemon.root, "escape", ESCAPE.replace("MARK", mark))
        daemon.start().until_ready(0)
        daemon.until(lambda: all(marked(f"{mark}-{one}") for one in kinds), 40, "three escapees")
        escaped = {one: marked(f"{mark}-{one}")[0] for one in kinds}
        parents = {one: seen.parent for one, pid in escaped.items() if (seen := look(pid))}
        assert parents["twice"] == parents["twice-with-log"] == own_pid(daemon), "handed to the daemon"
        good = daemon.pids()["comfyui/0"]
        stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env={}, cwd="/")
        try:
            if how == "stop":
                daemon.post("/api/comfyui/instances/1/stop")
            else:
                os.kill(outer(daemon.pids()["comfyui/1"], own_pid(daemon)), signal.SIGKILL)
                daemon.until(lambda: daemon.instance(1)["restarts"] == 1, 20, "started again")
            assert not any(lives(pid) for pid in escaped.values())
            assert daemon.pids()["comfyui/0"] == good
            assert stranger.poll() is None
            assert daemon.stop() == 0
            assert not any(marked(f"{mark}-{one}") for one in kinds)
            assert stranger.poll() is None
        finally:
            stranger.kill()
            stranger.wait()
            for one in kinds:
                for pid in marked(f"{mark}-{one}"):
                    os.kill(pid, signal.SIGKILL)
