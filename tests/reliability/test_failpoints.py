"""The daemon is killed at every durable step and started again: nothing is lost, nothing runs twice, all converges."""

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.environments.fileserver import Served, serving
from tests.environments.house import safetensors
from tests.graphs import invert
from tests.reliability.checks import ENDS, read_database
from tests.reliability.decoys import argv_of
from tests.reliability.ground import FOREIGN, Ground, ground
from tests.reliability.names import failpoints
from tests.reliability.stories import (
    RUNS,
    KillRun,
    break_file,
    cancel_task,
    create,
    pause_queue,
    run_task,
    states,
    stop_busy_daemon,
)

MODEL = safetensors(2_500_000)
TASKS = (run_task, cancel_task, stop_busy_daemon)


def test_every_failpoint_has_a_run_that_is_killed_at_it() -> None:
    """Whether it is reached is found out by the runs: each ends by the SIGKILL that only its failpoint gives."""
    assert {run.name for run in RUNS} == failpoints()
    assert len({run.title for run in RUNS}) == len(RUNS)


def test_a_failpoint_without_a_run_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("def save():\n    failpoint('never_killed')\n")
    assert failpoints(tmp_path) == {"never_killed"}
    (tmp_path / "two.py").write_text("failpoint(f'part_{n}')\n")
    with pytest.raises(AssertionError, match="literal"):
        failpoints(tmp_path)


@contextmanager
def model_server() -> Iterator[str]:
    """URL of a model, served by a thread."""
    ready, over, base = threading.Event(), threading.Event(), [""]

    async def serve() -> None:
        async with serving() as server:
            server.files["/m.safetensors"] = Served(MODEL)
            base[0] = server.url("/m.safetensors")
            ready.set()
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(20)
        yield base[0]
    finally:
        over.set()
        thread.join(20)


def want_model(root: Path, url: str) -> None:
    path = root / "config/environments/comm/config.json"
    config = json.loads(path.read_text())
    config["models"] = [{"url": url, "type": "checkpoints"}]
    path.write_text(json.dumps(config))


def run_into_it(ground: Ground, run: KillRun) -> None:
    """Bring the daemon to the failpoint."""
    daemon = ground.daemon
    if run.adopted:
        daemon.start().until_ready(0, 1)
        ground.decoys.start_likenesses(daemon)
        daemon.kill()
    daemon.environ["COMFYD_FAILPOINT"] = f"{run.name}#{run.nth}=kill"
    if run.ready:
        daemon.start().until_ready(0, 1)
        if not run.adopted:
            ground.decoys.start_likenesses(daemon)
    run.story(ground)
    assert daemon.wait(60) == -signal.SIGKILL, f"{run.title} was not reached\n{daemon.output[-3000:]}"
    del daemon.environ["COMFYD_FAILPOINT"]


def start_again(ground: Ground, run: KillRun) -> None:
    """The next daemon takes over: what nothing asked to move has not moved, all else converges."""
    daemon, before = ground.daemon, ground.leaders()
    daemon.start()
    if run.story is break_file:
        assert daemon.get("/api/comfyui/status")["config"]["state"] == "stale"
        (ground.root / "instances.json").write_text(ground.good)
    assert ground.unaccounted() == set()
    began = time.monotonic()
    daemon.until_ready(0, 1)
    daemon.until(lambda: wanted_arguments(ground) <= set(argv_of(daemon.pids()["comfyui/0"])), what="the wish is met")
    daemon.until_ready(0, 1)
    ground.tell(f"converged in {time.monotonic() - began:.1f} s")
    after = ground.leaders()
    moved = {key for key, one in before.items() if after.get(key) != one}
    assert moved <= run.touched, f"{moved} moved: {before} {after}"


def wanted_arguments(ground: Ground) -> set[str]:
    """What the command line of instance 0 must have in the end: as the file says, or a stored override."""
    rows = read_database(ground.database, "SELECT body FROM override WHERE kind = 'spec'")
    fields = json.loads(str(rows[0][0]))["fields"] if rows else {}
    text = (ground.root / "instances.json").read_text()
    given = fields.get("extra_args") or json.loads(text)["instances"][0].get("extra_args", "")
    return set(given if isinstance(given, list) else given.split())


def check_tasks(ground: Ground, run: KillRun) -> None:
    """The client asks again with its key: one task, which ends. Another one is run as if nothing had been."""
    wanted = {}
    if run.story is pause_queue:
        assert ground.daemon.get("/api/comfyui/status")["paused"], "it is still so"
        ground.daemon.post("/api/queue/resume")
    if run.story in TASKS:
        task = create(ground)
        assert set(ground.acknowledged) == {task}
        wanted[task] = "CANCELLED" if run.story is cancel_task else "COMPLETED"
    later = ground.daemon.post("/tasks/create/invert", {"wf_json": invert()})["taskId"]
    wanted[later] = "COMPLETED"
    for task, end in wanted.items():
        ground.daemon.until(lambda one=task: ground.daemon.get(f"/tasks/{one}")["status"] in ENDS, 60, f"{task} ends")
        assert ground.daemon.get(f"/tasks/{task}")["status"] == end
    assert len(states(ground)) == len(wanted)


def check_install(ground: Ground, run: KillRun) -> None:
    tree = ground.root / "workspace/ComfyUI-comm"
    assert os.readlink(tree) == f".ComfyUI-comm.{run.generation}"
    assert list((ground.root / "workspace/.comfyd/build").iterdir()) == []
    if run.model:
        model = tree / "models/checkpoints/m.safetensors"
        ground.daemon.until(model.exists, 60, "the model is there")
        assert model.read_bytes() == MODEL
        assert not model.with_name("m.safetensors.part").exists()


@pytest.mark.reliability
@pytest.mark.timeout(400)
@pytest.mark.parametrize("run", RUNS, ids=[run.title for run in RUNS])
def test_a_kill_at_every_durable_step(tmp_path: Path, run: KillRun) -> None:
    with ExitStack() as stack:
        one = stack.enter_context(ground(tmp_path, run.title, 0, COMFYD_ALLOW_PRIVATE_URLS="true", **run.environ))
        if run.model:
            want_model(one.root, stack.enter_context(model_server()))
        run_into_it(one, run)
        one.tell("killed")
        run.left(one)
        start_again(one, run)
        one.tell("started again")
        check_tasks(one, run)
        one.tell("tasks ended")
        check_install(one, run)
        assert one.daemon.state(FOREIGN) == "blocked"
        one.check_end()
