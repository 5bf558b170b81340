"""Adoption, a second daemon, floods of flips, starts that the system refuses, and a stop under load."""

import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Daemon, leftovers, make_root
from tests.faults.processes import Patient, daemon_on, entry, lives, missing
from tests.graphs import sleep
from tests.reliability.sampler import Sampler

pytestmark = pytest.mark.timeout(300)

PIDS = Path("/sys/fs/cgroup/pids")
FREEZER = Path("/sys/fs/cgroup/freezer")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    one = Patient(make_root(tmp_path / "root"))
    yield one
    one.end_everything()


def shown(daemon: Daemon) -> dict[str, dict[str, Any]]:
    return {one["key"]: one for one in daemon.get("/api/comfyui/status")["instances"]}


def entries(daemon: Daemon, change: Callable[[list[dict[str, Any]]], None]) -> None:
    daemon.edit(lambda data: change(data["instances"]))


# adoption
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT, signal.SIGUSR2])
def test_what_lives_is_adopted_ready_what_died_is_replaced_what_is_not_wanted_is_ended(
    tmp_path: Path, number: signal.Signals
) -> None:
    with daemon_on(tmp_path, [entry(n) for n in range(4)]) as daemon, Sampler(daemon.root, frozenset()) as sampler:
        daemon.start().until_ready(0, 1, 2, 3)
        before = shown(daemon)
        if number is signal.SIGUSR2:
            daemon.signal(number)
            daemon.until(lambda: "comfyd ends" in daemon.output, what="it has left everything")
        else:
            daemon.signal(number)
            daemon.wait()
        os.kill(before["comfyui/1"]["pid"], signal.SIGKILL)
        entries(daemon, lambda given: given.pop(2))
        if number is not signal.SIGUSR2:
            daemon.start(wait=False)
        first: dict[str, dict[str, Any]] = {}

        def answers() -> bool:
            first.update(first or shown(daemon))
            return True

        daemon.until(answers, 30, "the first status")
        for key in ("comfyui/0", "comfyui/3"):
            assert first[key]["ready"], "ready in the very first status"
            assert (first[key]["pid"], first[key]["generation"]) == (before[key]["pid"], before[key]["generation"])
        daemon.until_ready(0, 1, 3)
        daemon.until(lambda: not lives(before["comfyui/2"]["pid"]), what="the one that nobody wants is ended")
        now = shown(daemon)
        assert sorted(now) == ["comfyui/0", "comfyui/1", "comfyui/3"]
        assert {key: (now[key]["adopted"], now[key]["restarts"]) for key in now} == {
            "comfyui/0": (True, 0), "comfyui/1": (False, 1), "comfyui/3": (True, 0),
        }  # fmt: skip
        assert now["comfyui/1"]["pid"] != before["comfyui/1"]["pid"]
        assert sorted(leftovers(daemon.root)) == sorted(one["pid"] for one in now.values())
        assert now["comfyui/1"]["last_exit"]["text"] == "ended while no daemon was watching"
        assert daemon.stop() == 0
    assert sampler.violations == []


@pytest.mark.slow
def test_daemon_after_daemon_adopts_the_same_processes(daemon: Daemon) -> None:
    daemon.start().until_ready(0, 1)
    before = daemon.pids()
    for _ in range(6):
        daemon.kill()
        daemon.start()
        assert daemon.pids() == before
        assert all(one["ready"] and one["restarts"] == 0 for one in shown(daemon).values())
    assert sorted(leftovers(daemon.root)) == sorted(before.values())


# a second daemon
def test_a_second_daemon_is_refused_before_it_has_done_anything(daemon: Daemon) -> None:
    """The bar is a second; most of it would be imports, so it must not get that far. CPU time does not mind company."""
    daemon.start(wait=False)
    daemon.until(lambda: "comfyd starts" in daemon.output, what="the first one holds the folder")
    assert daemon.process is not None
    argv = [sys.executable, "-X", "importtime", "-m", "comfyd", "run", "--root", str(daemon.root)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    second = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert second.returncode == 75
    assert f"is held by pid {daemon.process.pid} " in second.stderr
    imported = set(re.findall(r"^import time:.*\| +([\w.]+)$", second.stderr, re.MULTILINE))
    assert "comfyd.settings" in imported
    assert not imported & {"comfyd.daemon", "aiohttp", "watchfiles", "sqlite3"}
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 4.0, (
        "without bytecode, on a busy machine"
    )


# flips
@pytest.mark.slow
def test_two_hundred_flips_never_make_two(tmp_path: Path) -> None:
    """Off and on again within the grace: INT is ignored, so each stop takes half of it."""
    stubborn = entry(0, env={"FAKE_COMFYUI_IGNORE": "INT"}, stop_grace_s=0.8)
    with daemon_on(tmp_path, [stubborn]) as daemon:
        daemon.start().until_ready(0)
        with Sampler(daemon.root, frozenset([int(str(stubborn["port"]))])) as sampler:
            for number in range(200):
                entries(daemon, lambda given, on=number % 2 == 1: given[0].update(enabled=on))  # type: ignore[misc]
                time.sleep((0.01, 0.03, 0.08)[number % 3])
            daemon.until_ready(0)
            time.sleep(1)  # whatever is still on its way
            daemon.until_ready(0)
            assert len(sampler.ours()) == 1
        assert sampler.samples > 50
        assert sampler.violations == []
        assert daemon.instance(0)["restarts"] == 0
        assert daemon.instance(0)["conditions"] == []


# starts that the system refuses
@contextmanager
def cgroup_of(pid: int) -> Iterator[Path]:
    """A pids cgroup of its own for a process and what it begets from now on."""
    folder = PIDS / f"comfyd-test-{pid}"
    try:
        folder.mkdir()
        (folder / "cgroup.procs").write_text(f"{pid}\n")
    except OSError as error:
        missing(f"no pids cgroup: {error}")
    try:
        yield folder
    finally:
        (folder / "pids.max").write_text("max")
        for one in (folder / "cgroup.procs").read_text().split():
            (PIDS / "cgroup.procs").write_text(one)
        folder.rmdir()


@pytest.mark.ns
@pytest.mark.slow
def test_without_room_for_a_process_it_waits_and_starts_soon_after_there_is_room(tmp_path: Path) -> None:
    with daemon_on(tmp_path, [entry(0), entry(1, enabled=False), entry(2)]) as daemon:
        daemon.start().until_ready(0, 2)
        assert daemon.process is not None
        before = daemon.pids()
        with cgroup_of(daemon.process.pid) as group:
            (group / "pids.max").write_text((group / "pids.current").read_text())
            entries(daemon, lambda given: given[1].update(enabled=True))
            daemon.until(lambda: daemon.state(1) == "backoff", what="it cannot be started")
            (hold,) = daemon.instance(1)["conditions"]
            assert hold["reason"] == "no_resources"
            assert os.strerror(11) in hold["message"]
            os.kill(before["comfyui/2"], signal.SIGKILL)
            daemon.until(lambda: daemon.state(2) == "backoff", what="the exit is noticed all the same")
            time.sleep(5)
            assert daemon.instance(1)["state"] == "backoff"
            assert daemon.pids() == {"comfyui/0": before["comfyui/0"]}
            (group / "pids.max").write_text("max")
            began = time.monotonic()
            daemon.until(lambda: len(daemon.pids()) == 3, what="both are started")
            assert time.monotonic() - began < 8
            daemon.until_ready(0, 1, 2)
        assert daemon.pids()["comfyui/0"] == before["comfyui/0"]
        assert daemon.stop() == 0


@pytest.mark.slow
def test_with_64_descriptors_the_api_pauses_and_nothing_else_happens(daemon: Daemon) -> None:
    daemon.prefix = ["prlimit", "--nofile=64"]
    daemon.start().until_ready(0, 1)
    assert daemon.process is not None
    before, mine = daemon.pids(), sockets_of(daemon.process.pid)
    for pid in before.values():
        assert not sockets_of(pid) & mine, "no socket of the daemon"
        named = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
        assert not [name for name in named if "/.comfyd/" in name]
    with ExitStack() as crowd:
        for _ in range(120):
            crowd.enter_context(socket.create_connection(("127.0.0.1", daemon.port)))
        daemon.until(lambda: "out of system resource" in daemon.output, what="descriptors are exhausted")
        assert daemon.process.poll() is None
    daemon.until(daemon._answers, what="the API answers again")
    assert daemon.pids() == before
    assert all(one["restarts"] == 0 for one in shown(daemon).values())
    assert daemon.stop() == 0


def sockets_of(pid: int) -> set[str]:
    links = (os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
    return {link for link in links if link.startswith("socket:")}


# the end
@pytest.mark.slow
def test_sigterm_under_load_releases_what_runs_and_fails_nothing(daemon: Daemon) -> None:
    daemon.environ["COMFYD_SHUTDOWN_DRAIN_S"] = "1"
    daemon.start().until_ready(0, 1)
    graphs = [sleep(30.0, f"long{n}") for n in range(2)] + [sleep(0.2, f"short{n}") for n in range(6)]
    tasks = [str(daemon.post("/tasks/create/invert", {"wf_json": graph})["taskId"]) for graph in graphs]
    daemon.until(lambda: sum(one["in_flight"] > 0 for one in shown(daemon).values()) == 2, what="both work")
    began = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - began < 25
    assert leftovers(daemon.root) == []
    entries(daemon, lambda given: [one.update(enabled=False) for one in given])
    daemon.start()
    found = [daemon.get(f"/tasks/{task}") for task in tasks]
    assert {one["status"] for one in found} <= {"PENDING", "COMPLETED"}
    assert {one["attempts"] for one in found if one["status"] == "PENDING"} <= {0, 1}


@contextmanager
def frozen(pid: int) -> Iterator[Callable[[], None]]:
    """A process that not even SIGKILL ends, until the yielded call thaws it."""
    folder = FREEZER / f"comfyd-test-{pid}"
    try:
        folder.mkdir()
        (folder / "cgroup.procs").write_text(f"{pid}\n")
        (folder / "freezer.state").write_text("FROZEN")
    except OSError as error:
        missing(f"no freezer cgroup: {error}")
    thaw = partial((folder / "freezer.state").write_text, "THAWED")
    try:
        yield thaw
    finally:
        thaw()
        while (folder / "cgroup.procs").read_text():
            time.sleep(0.01)
        folder.rmdir()


@pytest.mark.ns
@pytest.mark.slow
def test_one_that_outlives_sigkill_is_named_and_has_no_second_beside_it(tmp_path: Path) -> None:
    with daemon_on(tmp_path, [entry(0, stop_grace_s=0.5), entry(1)]) as daemon:
        daemon.start().until_ready(0, 1)
        pid = daemon.pids()["comfyui/0"]
        with frozen(pid) as thaw:
            daemon.post("/api/comfyui/instances/0/restart?wait=0")

            def conditions() -> list[tuple[str, str]]:
                return [(c["type"], c["reason"]) for c in daemon.instance(0)["conditions"]]

            daemon.until(lambda: ("unkillable", "frozen") in conditions())
            assert "thaw" in next(c["hint"] for c in daemon.instance(0)["conditions"] if c["type"] == "unkillable")
            entries(daemon, lambda given: given[1].update(extra_args="--lowvram"))
            other = daemon.pids()["comfyui/1"]
            daemon.until(lambda: daemon.pids().get("comfyui/1", other) != other, what="others go on")
            assert daemon.pids()["comfyui/0"] == pid, "it has no second beside it"
            begun = time.monotonic()
            assert daemon.stop() == 0
            assert time.monotonic() - begun < 25, "a stop waits for nothing that cannot end"
            assert lives(pid)
            daemon.start().until_ready(1)
            daemon.until(lambda: ("unkillable", "frozen") in conditions(), what="the next daemon finds it")
            assert daemon.pids()["comfyui/0"] == pid
            thaw()
            daemon.until(lambda: daemon.pids().get("comfyui/0", pid) != pid)
            daemon.until_ready(0)
            assert ("unkillable", "frozen") not in conditions()
