"""Daemons that share a queue in a real PostgreSQL, which goes away and comes back meanwhile."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Daemon, make_root
from tests.ports import free_port
from tests.postgres import Server, running_server

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(600)]
LONG_S = 120
"""A busy machine needs ten times what an idle one does."""


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as one:
        yield one


@pytest.fixture
def daemons(tmp_path: Path, server: Server) -> Iterator[tuple[Daemon, Daemon]]:
    """Two nodes with one instance each; not started."""
    made = []
    for name in ("a", "b"):
        root = make_root(tmp_path / name, [{"id": 0, "port": free_port(), "name": f"on-{name}"}])
        made.append(Daemon(root, COMFYD_DATABASE_URL=server.url(), COMFYD_LOG_FORMAT="json"))
    try:
        yield made[0], made[1]
    finally:
        for daemon in made:
            daemon.end_everything()


def ended(daemon: Daemon, tasks: list[str]) -> bool:
    return all(daemon.get(f"/tasks/{task}")["status"] == "COMPLETED" for task in tasks)


def ready(daemon: Daemon) -> tuple[int, Any]:
    answer = daemon.call("GET", "/ready")
    return answer.status, answer.json


def test_two_daemons_share_a_queue_that_goes_away_and_comes_back(
    daemons: tuple[Daemon, Daemon], server: Server
) -> None:
    a, b = daemons
    a.start(LONG_S)
    a.until_ready("on-a", timeout_s=LONG_S)
    first = a.post("/tasks/create/invert")["taskId"]
    a.until(lambda: ended(a, [first]), LONG_S, "a task on one node")
    assert a.call("GET", a.get(f"/tasks/{first}")["output_data"]["urls"][0]).body.startswith(b"\x89PNG")

    b.start(LONG_S)
    b.until_ready("on-b", timeout_s=LONG_S)
    tasks = [node.post("/tasks/create/invert")["taskId"] for node in (a, b) * 12]
    a.until(lambda: ended(b, tasks), LONG_S, "tasks on two nodes")
    ran_on = {a.get(f"/tasks/{task}")["instance"] for task in tasks}
    assert ran_on == {"on-a", "on-b"}
    elsewhere = next(task for task in tasks if a.get(f"/tasks/{task}")["instance"] == "on-b")
    answer = a.call("GET", f"/tasks/{elsewhere}/outputs/0")
    assert (answer.status, answer.json["error"]["code"]) == (404, "unknown_output")
    assert "node" in answer.json["detail"]
    assert b.call("GET", f"/tasks/{elsewhere}/outputs/0").status == 200

    before = a.pids(), b.pids()
    queued = [a.post("/tasks/create/invert")["taskId"] for _ in range(6)]
    server.stop()
    a.until(lambda: ready(a)[0] == 503, LONG_S, "not ready")
    assert "task store" in ready(a)[1]["detail"]
    for node in daemons:
        for method, path in (("POST", "/tasks/create/invert"), ("GET", "/tasks"), ("GET", "/comfyui-fetch-task")):
            answer = node.call(method, path)
            assert (answer.status, answer.json["error"]["code"]) == (503, "store_unavailable"), path
        assert node.call("GET", "/health").status == 200
    assert (a.pids(), b.pids()) == before
    a.edit(lambda config: config["instances"][0].update(description="control goes on"))
    passes = a.post("/api/comfyui/reload")
    assert passes["status"] == "success"

    begun = time.monotonic()
    server.start()
    a.until(lambda: ready(a)[0] == ready(b)[0] == 200, LONG_S, "ready again")
    print(f"healed after {time.monotonic() - begun:.1f} s")
    last = b.post("/tasks/create/invert")["taskId"]
    a.until(lambda: ended(a, [*queued, last]), LONG_S, "the tasks that waited")
    assert (a.pids(), b.pids()) == before
    counts = a.get("/api/stats")["stats"]
    assert (counts["total"], counts["completed"]) == (len(tasks) + len(queued) + 2, counts["total"])
    assert [node.stop() for node in daemons] == [0, 0]


def test_a_daemon_starts_its_instances_before_its_queue_is_in_reach(
    daemons: tuple[Daemon, Daemon], server: Server
) -> None:
    a, _ = daemons
    server.stop()
    a.start(LONG_S)
    a.until_ready("on-a", timeout_s=LONG_S)
    pids = a.pids()
    answer = a.call("POST", "/tasks/create/invert")
    assert (answer.status, answer.json["error"]["code"]) == (503, "store_unavailable")
    status, body = ready(a)
    assert (status, body["error"]["code"]) == (503, "not_ready")
    server.start()
    a.until(lambda: ready(a)[0] == 200, LONG_S, "ready")
    task = a.post("/tasks/create/invert")["taskId"]
    a.until(lambda: ended(a, [task]), LONG_S, "the task")
    assert a.pids() == pids


def test_a_killed_node_gives_its_tasks_to_the_other_or_takes_them_up_again(
    daemons: tuple[Daemon, Daemon], server: Server
) -> None:
    a, b = daemons
    a.environ["COMFYD_LEASE_S"] = b.environ["COMFYD_LEASE_S"] = "8"
    a.start(LONG_S)
    a.until_ready("on-a", timeout_s=LONG_S)
    tasks = [a.post("/tasks/create/invert")["taskId"] for _ in range(4)]
    a.kill()
    b.start(LONG_S)
    b.until_ready("on-b", timeout_s=LONG_S)
    b.until(lambda: ended(b, tasks), LONG_S, "the tasks of a dead node")
    a.start(LONG_S)
    a.until_ready("on-a", timeout_s=LONG_S)
    more = [a.post("/tasks/create/invert")["taskId"] for _ in range(4)]
    a.until(lambda: ended(a, more), LONG_S, "tasks on both again")


def test_a_secret_in_the_address_is_told_to_nobody(daemons: tuple[Daemon, Daemon], server: Server) -> None:
    a, _ = daemons
    a.environ["COMFYD_DATABASE_URL"] = f"postgresql://postgres:pl4nted@127.0.0.1:{free_port()}/x"
    a.start(LONG_S)
    a.until(lambda: "task store" in ready(a)[1].get("detail", ""), LONG_S, "out of reach")
    shown = [a.call("GET", path).body for path in ("/ready", "/api/comfyui/status", "/tasks", "/metrics")]
    a.until_ready("on-a", timeout_s=LONG_S)
    pid = next(iter(a.pids().values()))
    inherited = Path(f"/proc/{pid}/environ").read_bytes()
    log = (a.root / "workspace/logs/comfyd.log").read_bytes()
    assert all(b"pl4nted" not in text for text in (*shown, inherited, log, a.output.encode()))
