"""Runs as PID 1 of a pid namespace of its own: an instance ends while no daemon looks, and a stranger gets its pid.

Usage: recycled.py FOLDER. Prints JSON: the pid, who carried it, what the stranger was sent, what runs in the end.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tests.daemon import Daemon, make_root
from tests.reliability.decoys import Decoys, argv_of

TRIES = 200


def start_as(decoys: Decoys, wanted: int, argv: list[str]) -> None:
    """A stranger with exactly this pid: the kernel gives the one behind the last unless somebody is faster."""
    for number in range(TRIES):
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(wanted - 1))
        name = f"stranger{number}"
        if decoys.start(name, argv) == wanted:
            return
        other = decoys.processes.pop(name)
        other.kill()
        other.wait(10)
        assert other.stdout is not None
        other.stdout.close()
    raise SystemExit(f"pid {wanted} could not be had")


def gone(pid: int) -> None:
    """As PID 1 we are its parent now: only when it is reaped its pid is free."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0] == pid:
                return
        time.sleep(0.02)
    raise SystemExit(f"{pid} did not end")


def main(folder: Path) -> None:
    daemon, decoys = Daemon(make_root(folder / "root")), Decoys(folder / "decoys")
    try:
        daemon.start(60).until_ready(0, 1, timeout_s=120)
        before = daemon.pids()
        victim = before["comfyui/0"]
        argv = argv_of(victim)
        daemon.kill()
        os.kill(victim, signal.SIGKILL)
        gone(victim)
        start_as(decoys, victim, argv)
        daemon.start(60).until_ready(0, 1, timeout_s=120)
        after = daemon.pids()
        daemon.stop()
        print(json.dumps({"before": before, "after": after, "harmed": decoys.harmed()}))
    finally:
        daemon.end_everything()
        decoys.end()


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except (AssertionError, subprocess.SubprocessError) as error:
        raise SystemExit(f"{error}") from error
