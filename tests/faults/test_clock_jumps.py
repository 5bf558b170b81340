"""The wall clock jumps by hours, a day and decades: it is for display only."""

import time
from typing import Any

import pytest

from tests.daemon import Daemon
from tests.faults.surroundings import Shim
from tests.faults.world import moved
from tests.ports import free_port

HOUR = 3600.0
DECADES = 56 * 365 * 24 * HOUR
JUMPS = (-2 * HOUR, 24 * HOUR, -DECADES, 0.0)
GRAPH = {"1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}}}


def events(daemon: Daemon) -> list[dict[str, Any]]:
    """Everything that is kept, oldest first, as the stream of events tells it."""
    import http.client
    import json

    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=3)
    found: list[dict[str, Any]] = []
    try:
        connection.request("GET", "/events?after=0")
        response = connection.getresponse()
        while line := response.readline():
            if line.startswith(b"data: "):
                found.append(json.loads(line.removeprefix(b"data: ")))
    except TimeoutError:
        pass
    finally:
        connection.close()
    return found


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_jumps_expire_no_lease_restart_nothing_and_change_no_backoff(daemon: Daemon, shim: Shim) -> None:
    crashing = {"id": 2, "port": free_port(), "name": "crashing", "env": {"FAKE_COMFYUI_EXIT": "9"}}
    daemon.edit(lambda d: d["instances"].append(crashing))
    daemon.environ["COMFYD_DISPATCH"] = "off"
    daemon.start().until_ready(0, 1)
    daemon.until(lambda: daemon.state(2) == "backoff", 30, "the third one waits")
    fetched = daemon.post("/tasks/create/invert", {"wf_json": GRAPH})["taskId"]
    assert daemon.get("/comfyui-fetch-task")["taskId"] == fetched
    before, restarts, first_wall = moved(daemon), daemon.instance(2)["restarts"], daemon.get("/health")
    assert first_wall["status"] == "healthy"

    def next_try() -> float:
        """When the next start is due, on a clock that does not jump."""
        return time.monotonic() + float(daemon.get("/api/comfyui/status")["plan"]["wake_in_s"])

    due = next_try()
    for number, ahead_s in enumerate(JUMPS):
        shim.set_clock(ahead_s)
        daemon.edit(lambda d, n=number: d["instances"][0].update(name=f"jump-{n}"))
        daemon.until(lambda n=number: daemon.instance(0)["name"] == f"jump-{n}", what=f"an edit at {ahead_s:+.0f} s")
        if daemon.instance(2)["restarts"] == restarts and daemon.state(2) == "backoff":
            assert abs(next_try() - due) < 1.0
        assert daemon.get("/comfyui-fetch-task") == {}, "the lease of the task must stand"
        assert daemon.get(f"/tasks/{fetched}")["status"] == "FETCHED"
    assert moved(daemon)["comfyui/0"] == before["comfyui/0"]
    assert moved(daemon)["comfyui/1"] == before["comfyui/1"]
    assert daemon.instance(2)["restarts"] <= restarts + 1

    told = [e for e in events(daemon) if "seq" in e]
    assert [e["seq"] for e in told] == sorted({e["seq"] for e in told})
    assert [e["seq"] for e in told] == list(range(told[0]["seq"], told[-1]["seq"] + 1))
    years = [e["at"][:4] for e in told if e["type"] == "config"]
    assert any(year < "1980" for year in years), "the clock that the daemon reads did jump"
