"""A daemon under faults: what it runs as the system sees it, and what it has told of its configuration."""

import json
import signal
from pathlib import Path
from typing import Any

from tests.daemon import Daemon

CONVERGED_S = 2.0
SLACK_S = 8.0
"""A busy machine may take this much longer for what happens within CONVERGED_S on a quiet one."""


def started_at(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def moved(daemon: Daemon) -> dict[str, tuple[int, str, int]]:
    """key -> pid, start time, restarts of everything alive: equal before and after where nothing moves."""
    shown = daemon.get("/api/comfyui/status")["instances"]
    return {i["key"]: (i["pid"], started_at(i["pid"]), i["restarts"]) for i in shown if i["pid"]}


def config(daemon: Daemon) -> dict[str, Any]:
    return dict(daemon.get("/api/comfyui/status")["config"])


def until_config(daemon: Daemon, state: str, timeout_s: float = CONVERGED_S + SLACK_S) -> dict[str, Any]:
    daemon.until(lambda: config(daemon)["state"] == state, timeout_s, f"config is {state}")
    return config(daemon)


def records(daemon: Daemon, event: str | None = None) -> list[dict[str, Any]]:
    """Of comfyd.log; every line must be one whole record."""
    path = daemon.root / "workspace/logs/comfyd.log"
    found = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    return [one for one in found if event in (None, one["event"])]


def transitions(daemon: Daemon, kind: str) -> list[dict[str, Any]]:
    return [one for one in records(daemon, "transition") if one["type"] == kind]


def passes(daemon: Daemon) -> int:
    """How many reconcile passes there were, told by the dump that SIGUSR1 asks for."""
    before = len(records(daemon, "state"))
    daemon.signal(signal.SIGUSR1)
    daemon.until(lambda: len(records(daemon, "state")) > before, what="the state is dumped")
    return int(records(daemon, "state")[-1]["passes"])
