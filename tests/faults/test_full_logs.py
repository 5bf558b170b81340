"""The folder of the logs is full: the daemon goes on, tells what it could not write, and needs no restart."""

import contextlib
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Daemon
from tests.faults.surroundings import mounting
from tests.faults.world import CONVERGED_S, SLACK_S, moved

pytestmark = [pytest.mark.timeout(120), pytest.mark.ns, pytest.mark.usefixtures("namespaces")]


def fill(file: Path) -> None:
    with file.open("ab", buffering=0) as out, contextlib.suppress(OSError):
        for size in (65536, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    out.write(b"x" * size)


def rename_first(daemon: Daemon, name: str) -> None:
    daemon.edit(lambda d: d["instances"][0].update(name=name))
    daemon.until(lambda: daemon.instance(0)["name"] == name, CONVERGED_S + SLACK_S, f"renamed to {name}")


@pytest.mark.slow
def test_a_full_disk_for_logs_stops_nothing(daemon: Daemon) -> None:
    logs = daemon.root / "workspace/logs"
    logs.mkdir(parents=True)
    daemon.prefix = mounting(("-t", "tmpfs", "-o", "size=512k", "tmpfs", str(logs)))
    daemon.start().until_ready(0, 1)
    assert daemon.process is not None
    inside = Path(f"/proc/{daemon.process.pid}/root{logs}")

    def records() -> list[dict[str, Any]]:
        return [json.loads(line) for line in whole_lines(inside / "comfyd.log")]

    before = moved(daemon)
    fill(inside / "filler")
    for turn in range(5):
        rename_first(daemon, f"full-{turn}")
        daemon.signal(signal.SIGUSR1)
    assert daemon.get("/health")["status"] == "healthy"
    assert moved(daemon) == before
    started = moved(daemon)["comfyui/1"][0]
    daemon.post("/api/comfyui/instances/1/stop")
    daemon.until(lambda: "comfyui/1" not in daemon.pids(), what="one is stopped as ever")
    assert moved(daemon)["comfyui/0"] == before["comfyui/0"]

    (inside / "filler").unlink()
    daemon.post("/api/comfyui/instances/1/start")
    daemon.until_ready(1)
    assert daemon.pids()["comfyui/1"] != started
    rename_first(daemon, "room-again")
    daemon.until(lambda: any(r["event"].startswith("log records lost: ") for r in records()), what="the loss is told")
    daemon.until(lambda: records()[-1]["event"] == "transition", what="the log goes on")
    assert "Traceback" not in daemon.output
    assert daemon.stop() == 0


def whole_lines(log: Path) -> list[bytes]:
    """Without the one line that may have been cut where the disk was full."""
    lines = [line for line in log.read_bytes().split(b"\n") if line]
    torn = [line for line in lines if not line.endswith(b"}")]
    assert len(torn) <= 1
    return [line for line in lines if line not in torn]
